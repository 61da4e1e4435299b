"""Ellipsoids in space, gathered into parts: what a walker, and all they wear and carry, is made of."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from shards.walkers.gait import Array

LARGEST_PART = 4  # ellipsoids in one hull


@dataclass(frozen=True)
class Segment:
    """A moving frame: origin [frames, 3] and axes [frames, 3, 3] whose columns are ahead, left and up."""

    origin: Array
    axes: Array

    def at(self, ahead: float = 0.0, left: float = 0.0, up: float = 0.0) -> Array:
        """The point [frames, 3] this far from the origin along the segment's own axes."""
        return self.origin + self.axes @ np.array([ahead, left, up])


@dataclass
class Solid:
    """Ellipsoids over frames, and parts: each the convex hull of 1 to LARGEST_PART of them."""

    num_frames: int
    centres: list[Array] = field(default_factory=list)
    shapes: list[Array] = field(default_factory=list)
    parts: list[tuple[int, ...]] = field(default_factory=list)

    def ball(self, centre: Array, radius: float) -> int:
        """Adds a sphere at `centre` [frames, 3] and returns its number."""
        return self._add(centre, np.broadcast_to(radius**2 * np.eye(3), (self.num_frames, 3, 3)))

    def egg(self, centre: Array, axes: Array, depth: float, width: float, height: float) -> int:
        """Adds an ellipsoid with these half-lengths along `axes` [frames, 3, 3] and returns its number."""
        scaled = axes * np.array([depth, width, height])
        return self._add(centre, scaled @ scaled.transpose(0, 2, 1))

    def part(self, *numbers: int) -> None:
        """Makes the hull of these ellipsoids a part."""
        self.parts.append(numbers)

    def chain(self, *numbers: int) -> None:
        """Makes a part of each two neighbours."""
        self.parts.extend(pairwise(numbers))

    def _add(self, centre: Array, shape: Array) -> int:
        self.centres.append(centre)
        self.shapes.append(shape)
        return len(self.centres) - 1

    def stacked(self) -> tuple[Array, Array, Array]:
        """Centres [frames, n, 3], shapes [frames, n, 3, 3], parts [m, LARGEST_PART] padded by repeats."""
        parts = [part + part[-1:] * (LARGEST_PART - len(part)) for part in self.parts]
        return np.stack(self.centres, 1), np.stack(self.shapes, 1), np.array(parts)
