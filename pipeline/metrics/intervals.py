"""Intervals that hold the distances: fp32 at the speed of a matrix product, and a proven bound on its error.

Whether one gallery sequence is nearer than another is decided by these wherever their intervals do not meet, which is
nearly always; the few that meet are computed exactly (`distances.pairs`). So ranks are those of exact distances, at a
third of the time of fp64 (`distances.blocks`).

The bound, with u = 2^-24, part vectors x and y about the gallery's mean, N the sum of the largest |x| and |y| at hand:
    taking the mean off          moves a distance by at most                   u N
    |x|^2 + |y|^2 - 2xy          is a sum of 2 channels + 2 products:          delta = (2 channels + 8) u N^2
    its root s, s kept >= delta  is off by at most delta / sqrt(s), and        4 u sqrt(s) of rounding
    the sum over parts           rounds once a part                            parts u of the sum
Source: Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1 (whatever the order of summation).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.metrics import distances
from pipeline.metrics.distances import Metric

BLOCK_ELEMENTS = 1 << 26  # pairs in one block: 512 MiB
BLOCK_ROWS = 4096
TILE_ROWS, TILE_COLUMNS = 512, 512  # at most; a tile stays in a core's cache
LINE = 16  # fp32 values in a cache line
COPIED_ROWS = 64  # embeddings on their way to a tile

_ROUNDING = 2.0**-24
_SLACK = 1.01  # for the rounding of the bound itself, and products of errors


@dataclass(frozen=True)
class Block:
    """Some probes against the whole gallery: the fp32 distance of i and j lies in [low[i, j], high[i, j]]."""

    rows: slice
    """Of the probe rows."""
    low: torch.Tensor
    """fp32 [rows, gallery], as is `high`; the very same tensor where distances are exact."""
    high: torch.Tensor
    exact: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """Positions i [n] and j [n] in the block -> fp32 distances [n] on the CPU."""
    in_full: Callable[[], "Block"]
    """The same pairs with intervals of no width, for where very many intervals meet."""


def blocks(
    embeddings: np.ndarray,
    probe_rows: np.ndarray,
    gallery_rows: np.ndarray,
    device: str | torch.device = "cpu",
    metric: Metric = "euclidean",
    *,
    exact: bool = False,
) -> Iterator[Block]:
    """All probes against all of the gallery, first probes first.

    `embeddings` float [n, parts, channels], may be memory-mapped. `exact` asks for distances throughout; other
    devices than the CPU, cosine and a torch allowed to multiply in less than fp32 get them, too.
    """
    full_fp32 = torch.get_float32_matmul_precision() == "highest"
    if exact or metric != "euclidean" or torch.device(device).type != "cpu" or not full_fp32:
        for rows, found in distances.blocks(embeddings, probe_rows, gallery_rows, device, metric=metric):
            yield _exactly(rows, found)
        return
    num_rows = max(1, min(BLOCK_ROWS, BLOCK_ELEMENTS // max(1, len(gallery_rows))))
    centre = distances.mean(embeddings, gallery_rows)
    for start in range(0, len(probe_rows), num_rows):
        rows = slice(start, min(start + num_rows, len(probe_rows)))
        low, high = _intervals(embeddings, probe_rows[rows], gallery_rows, centre)

        def measure(i: torch.Tensor, j: torch.Tensor, rows: slice = rows) -> torch.Tensor:
            return distances.pairs(embeddings, probe_rows[rows][i.numpy()], gallery_rows[j.numpy()])

        def in_full(rows: slice = rows) -> Block:
            pieces = distances.blocks(embeddings, probe_rows[rows], gallery_rows, device)
            return _exactly(rows, torch.cat([piece for _, piece in pieces]))

        block = Block(rows, low, high, measure, in_full)
        # Lengths whose squares are beyond fp32 leave no interval.
        yield block if bool(torch.isfinite(high.sum())) else in_full()


def _exactly(rows: slice, found: torch.Tensor) -> Block:
    def look_up(i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return found[i.to(found.device), j.to(found.device)].cpu()

    return Block(rows, found, found, look_up, lambda: _exactly(rows, found))


def _intervals(
    embeddings: np.ndarray, probe_rows: np.ndarray, gallery_rows: np.ndarray, centre: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    num_parts, num_channels = centre.shape
    low, high = _empty(len(probe_rows), len(gallery_rows)), _empty(len(probe_rows), len(gallery_rows))
    left = _empty(num_parts, len(probe_rows), num_channels + 2)

    def prepare(start: int) -> None:
        rows = slice(start, start + TILE_ROWS)
        _fill(left[:, rows], centre, embeddings, probe_rows[rows])

    distances.side_by_side(prepare, range(0, len(probe_rows), TILE_ROWS))
    longest_left = _longest(left[:, :, -1])
    width = _width(len(gallery_rows))

    def compute(start: int) -> None:
        columns = slice(start, start + width)
        right = _empty(num_parts, len(gallery_rows[columns]), num_channels + 2)
        _fill(right, centre, embeddings, gallery_rows[columns])
        longest = longest_left + _longest(right[:, :, -1])
        right[:, :, :-2] *= -2
        right[:, :, -2:] = right[:, :, -2:].flip(2)  # squared lengths meet the ones of the other side
        delta = (_SLACK * (2 * num_channels + 8) * _ROUNDING * longest.square()).clamp_min(1e-30).tolist()
        moved = _SLACK * _ROUNDING * float(longest.sum())
        for i in range(0, len(probe_rows), TILE_ROWS):
            total, wide = _tile(left[:, i : i + TILE_ROWS], right, delta)
            wide.mul_(_SLACK).add_(moved).add_(total, alpha=_SLACK * (num_parts + 12) * _ROUNDING).div_(num_parts)
            total.div_(num_parts)
            torch.sub(total, wide, out=low[i : i + TILE_ROWS, columns])
            torch.add(total, wide, out=high[i : i + TILE_ROWS, columns])

    distances.side_by_side(compute, range(0, len(gallery_rows), width))
    return low, high


def _empty(*shape: int) -> torch.Tensor:
    """fp32; numpy asks for huge pages, and so a first touch takes a third of the time."""
    return torch.from_numpy(np.empty(shape, np.float32))


def _width(num_columns: int) -> int:
    """Of tiles: all cores get as many, so that none waits; whole cache lines, or all takes a third longer."""
    num_tiles = -(-num_columns // TILE_COLUMNS)
    num_tiles += -num_tiles % distances.num_cores()
    return max(1, min(TILE_COLUMNS, -(-num_columns // num_tiles // LINE) * LINE))


def _fill(out: torch.Tensor, centre: torch.Tensor, embeddings: np.ndarray, rows: np.ndarray) -> None:
    """Writes part vectors about the centre, a one and their squared lengths to fp32 [parts, rows, channels + 2]."""
    for start in range(0, len(rows), COPIED_ROWS):
        here = slice(start, start + COPIED_ROWS)
        vectors = (distances.take(embeddings, rows[here]) - centre.float()).float()
        out[:, here, :-2] = vectors.transpose(0, 1)
        out[:, here, -2] = 1
        out[:, here, -1] = vectors.square().sum(2).T


def _tile(left: torch.Tensor, right: torch.Tensor, delta: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over parts of the distances and of the bounds on their errors, fp32 [rows, columns]."""
    total = torch.zeros(left.shape[1], right.shape[1])
    wide, squared, inverse = torch.zeros_like(total), torch.empty_like(total), torch.empty_like(total)
    for a, b, least in zip(left, right, delta, strict=True):
        torch.mm(a, b.T, out=squared).clamp_min_(least)
        torch.rsqrt(squared, out=inverse)
        total.addcmul_(squared, inverse)
        wide.add_(inverse, alpha=least)
    return total, wide


def _longest(squared: torch.Tensor) -> torch.Tensor:
    """The greatest length of each part, fp64 [parts]."""
    return squared.amax(1).double().sqrt() * _SLACK
