"""Raw layouts in. A layout is one file here, and one entry in `LAYOUTS`."""

from shards.sources.casia_b import CASIA_B
from shards.sources.gait3d import GAIT3D
from shards.sources.grew import GREW
from shards.sources.layout import Layout, RawSequence
from shards.sources.opengait import OPENGAIT
from shards.sources.oumvlp import OUMVLP

__all__ = ["LAYOUTS", "Layout", "RawSequence", "find_layout"]

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (CASIA_B, OUMVLP, GREW, GAIT3D, OPENGAIT)}


def find_layout(name: str) -> Layout:
    """Raises ValueError naming the known layouts."""
    if name not in LAYOUTS:
        raise ValueError(f"layout {name!r} is not known; known are: {', '.join(sorted(LAYOUTS))}.")
    return LAYOUTS[name]
