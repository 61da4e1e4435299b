"""Embeddings of sequences too long for memory: piece by piece along time, and the same as in one go.

Every operation of HSTL before its maxima over time sees a few frames only: a convolution its neighbours, the temporal
aggregation windows of 3 and 5 frames every 3. So a piece that brings enough frames of either side gives, for its own
frames, the features of the whole sequence; the maximum over time is the greatest of the pieces'.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.model import HSTL, fast

STRIDE = 3
"""Frames to one step after the temporal aggregation (FTA)."""


def embed_long(network: HSTL, silhouettes: Tensor, frames_at_once: int) -> Tensor:
    """`network.embed` in memory bounded by `frames_at_once`, fp32 `[n, parts, channels]`, in evaluation mode.

    `silhouettes`: uint8 `[n, frames, 64, width]`, at least 3 frames. Equal to the whole up to the rounding of
    convolutions of another size: 1e-12 in fp64.
    """
    maxima: list[Tensor | None] = []
    with torch.autocast(silhouettes.device.type, torch.bfloat16, enabled=network.precision == "bf16"):
        for features in _pieces(network, silhouettes, frames_at_once):
            # The last piece may be too short for a step of its own.
            found = [fast.maximum_over_time(x) if x.shape[2] else None for x in features]
            maxima = [
                b if a is None else a if b is None else torch.maximum(a, b)
                for a, b in zip(maxima or [None] * len(found), found, strict=True)
            ]
        poolings = [network.astp[0], network.astp[1], network.astp_fta, *network.astp[2:]]
        whole = [x for x in maxima if x is not None]
        parts = [pool(x) for pool, x in zip(poolings, whole, strict=True)]
        parts.append(network.strips(whole[-1]))
    with torch.autocast(silhouettes.device.type, enabled=False):
        return network.norm(network.head(torch.cat(parts, dim=1)))


def halo(network: HSTL) -> int:
    """Frames on either side that the features of a piece depend on, rounded up to whole steps of the aggregation."""
    depths = [len(list(arme.children())) for arme in network.arme]
    before, after = sum(depths[:2]), sum(depths[2:])
    # The wider window reaches one frame beyond its step on either side.
    return STRIDE * math.ceil((STRIDE * after + 1 + before) / STRIDE)


def _pieces(network: HSTL, silhouettes: Tensor, frames_at_once: int) -> Iterator[list[Tensor]]:
    """Features of each level, `[n, c, t, h, w]`, for the frames of one piece after the other; t may be 0 at the end."""
    length, margin = silhouettes.shape[1], halo(network)
    core = max(frames_at_once // STRIDE, 1) * STRIDE
    scale = next(network.parameters()).new_tensor(1 / 255)
    for start in range(0, length, core):
        stop = min(start + core, length)
        first = max(start - margin, 0)
        piece = silhouettes[:, first : stop + margin].to(scale.dtype) * scale
        before, after = _features(network, piece[:, None])
        steps = slice((start - first) // STRIDE, (start - first) // STRIDE + stop // STRIDE - start // STRIDE)
        frames = slice(start - first, stop - first)
        yield [x[:, :, frames] for x in before] + [x[:, :, steps] for x in after]


def _features(network: HSTL, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Features before the temporal aggregation, a step a frame, and after it, a step every three."""
    bodies = network.arme[0]([x])
    before = [_whole(bodies)]
    if network.variant.halved:
        bodies = [fast.pooled(body, (1, 2, 2)) for body in bodies]
    bodies = network.arme[1](bodies)
    before.append(_whole(bodies))
    bodies = network.fta(bodies)
    after = [_whole(bodies)]
    for arme in network.arme[2:]:
        bodies = arme(bodies)
        after.append(_whole(bodies))
    return before, after


def _whole(bodies: list[Tensor]) -> Tensor:
    return torch.cat(bodies, dim=3)
