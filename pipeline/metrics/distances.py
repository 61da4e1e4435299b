"""Distances between embeddings, a block at a time: the mean over parts of the distance between part vectors.

Ranks are decided by the last digits, so the arithmetic has to be better than the fp32 it is reported in.
`|a|^2 + |b|^2 - 2ab` is the only form that runs at the speed of a matrix product, and in fp32 it loses
everything for near-duplicates. Here it is taken in fp64 about the mean vector of the gallery, where its
error is under 1e-14 of the squared lengths. The few pairs of part vectors whose squared distance is under
`CANCELLED` of those lengths, where even that would show, are computed again from their differences.
Every part's distance is then right to a relative 1e-8, and the mean over parts is rounded to fp32 once.
(`pipeline.metrics.intervals` is the fast way to the same ranks, where only their order is asked for.)
"""

import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch

Metric = Literal["euclidean", "cosine"]
"""Of part vectors: the length of their difference, or 1 less the cosine of the angle between them."""

BLOCK_ELEMENTS = 1 << 24  # distances in one block: 64 MiB
TILE = 512  # a tile of fp64 squared distances takes 2 MiB
CANCELLED = 1e-6
SPREAD = 256  # gallery rows whose mean the distances are taken about, at least
DIRECT_PAIRS = 1 << 14  # pairs of part vectors computed from their differences at once
PAIR_ELEMENTS = 1 << 22  # floats of the embeddings that `pairs` holds at once


def blocks(
    embeddings: np.ndarray,
    probe_rows: np.ndarray,
    gallery_rows: np.ndarray,
    device: str | torch.device = "cpu",
    block_elements: int = BLOCK_ELEMENTS,
    metric: Metric = "euclidean",
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (slice of `probe_rows`, fp32 distances [that many, num_gallery] on `device`), first probes first.

    `embeddings` float [n, parts, channels] may be memory-mapped: a tile of rows is copied at a time.
    Memory is a few bytes for each of `block_elements`, whatever n. The device must know fp64.
    """
    device = torch.device(device)
    num_rows = max(1, block_elements // max(1, len(gallery_rows)))
    centre = mean(embeddings, gallery_rows).to(device) if metric == "euclidean" else None
    for start in range(0, len(probe_rows), num_rows):
        rows = slice(start, min(start + num_rows, len(probe_rows)))
        out = torch.empty(rows.stop - start, len(gallery_rows), device=device)

        def compute(j: int, rows: slice = rows, out: torch.Tensor = out) -> None:
            gallery = _parts(embeddings, gallery_rows[j : j + TILE], device)
            for i in range(0, len(out), TILE):
                probes = _parts(embeddings, probe_rows[rows][i : i + TILE], device)
                out[i : i + TILE, j : j + TILE] = _tile(probes, gallery, centre)

        side_by_side(compute, range(0, len(gallery_rows), TILE), device)
        yield rows, out


def distances(
    probes: np.ndarray, gallery: np.ndarray, device: str | torch.device = "cpu", metric: Metric = "euclidean"
) -> torch.Tensor:
    """All at once, fp32 [n, m], for small sets: `probes` [n, parts, channels], `gallery` [m, parts,
    channels].
    """
    n, m = len(probes), len(gallery)
    out = torch.empty(n, m, device=device)
    both = np.concatenate([probes, gallery])
    for rows, block in blocks(both, np.arange(n), np.arange(n, n + m), device, metric=metric):
        out[rows] = block
    return out


def pairs(embeddings: np.ndarray, a: np.ndarray, b: np.ndarray) -> torch.Tensor:
    """Euclidean distance of rows a [n] to rows b [n] of the embeddings, fp32 [n] on the CPU, from their differences.

    Right to the last bit but for values that lie within 1e-15 of the middle between two fp32 numbers.
    """
    num_parts = embeddings.shape[1]
    step = max(1, PAIR_ELEMENTS // max(1, num_parts * embeddings.shape[2]))
    out = torch.empty(len(a))

    def compute(start: int) -> None:
        here = slice(start, start + step)
        difference = take(embeddings, a[here]).double() - take(embeddings, b[here]).double()
        out[here] = difference.square_().sum(2).sqrt_().sum(1) / num_parts

    side_by_side(compute, range(0, len(a), step))
    return out


def take(embeddings: np.ndarray, rows: np.ndarray | slice) -> torch.Tensor:
    """A copy of some rows; pages of a memory-mapped file are given back at once, so that memory stays bounded."""
    taken = torch.from_numpy(np.array(embeddings[rows]))
    give_back(embeddings)
    return taken


def give_back(embeddings: np.ndarray) -> None:
    """Lets go of the pages of a memory-mapped file; what was written to them stays written."""
    pages = getattr(embeddings, "_mmap", None)
    # A private copy (mode c) would lose what was written; not every system can let go.
    if isinstance(pages, mmap.mmap) and getattr(embeddings, "mode", "c") != "c" and hasattr(pages, "madvise"):
        pages.madvise(mmap.MADV_DONTNEED)


def mean(embeddings: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    """About the mean of some rows, fp64 [parts, channels], of values that fp32 knows.

    It only keeps the numbers small, so a few hundred rows spread over all of them do.
    """
    spread = rows[:: max(1, len(rows) // SPREAD)]
    # fp32 values less an fp32 centre are all but exact in fp64.
    return take(embeddings, spread).mean(0, dtype=torch.float64).float().double()


def side_by_side(work: Callable[[int], None], items: Iterable[int], device: str | torch.device = "cpu") -> None:
    """`work` on every item: on the CPU by a thread a core, each computing alone; elsewhere one after another."""
    if torch.device(device).type != "cpu":
        for item in items:
            work(item)
        return
    with threads_apart(), ThreadPoolExecutor(num_cores()) as pool:
        for _ in pool.map(work, items):
            pass


@contextmanager
def threads_apart() -> Iterator[None]:
    """A block in which no operation of torch is shared out to several threads.

    Threads that wait for one another in every operation are slow as soon as anybody else needs a core, too.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _parts(embeddings: np.ndarray, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """[parts, rows, channels]: each part's vectors side by side."""
    return take(embeddings, rows).to(device).transpose(0, 1)


def _tile(probes: torch.Tensor, gallery: torch.Tensor, centre: torch.Tensor | None) -> torch.Tensor:
    """fp64 [rows, columns] from `probes` [parts, rows, channels] and `gallery` [parts, columns, channels].

    Euclidean about `centre` [parts, channels]; without one, cosine: half the squared distance of the unit vectors.
    """
    total = torch.zeros(probes.shape[1], gallery.shape[1], dtype=torch.float64, device=probes.device)
    for part, (a, b) in enumerate(zip(probes.double(), gallery.double(), strict=True)):
        if centre is None:
            total += _squared(_unit(a), _unit(b)) / 2
        else:
            total += _squared(a - centre[part], b - centre[part]).sqrt_()
    return total / len(probes)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def _squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared distances [rows, columns] of the vectors a [rows, channels] and b [columns, channels]."""
    a_squared, b_squared = a.square().sum(1), b.square().sum(1)
    # Both squared lengths ride along in the product: two passes over the tile fewer.
    left = torch.cat([a, a_squared[:, None], torch.ones_like(a_squared)[:, None]], 1)
    right = torch.cat([-2 * b, torch.ones_like(b_squared)[:, None], b_squared[:, None]], 1)
    squared = left @ right.T
    if squared.numel() and squared.amin() < CANCELLED * (a_squared.amax() + b_squared.amax()):
        near = squared < CANCELLED * (a_squared[:, None] + b_squared[None, :])
        for close in near.nonzero().split(DIRECT_PAIRS):
            i, j = close.unbind(1)
            squared[i, j] = (a[i] - b[j]).square().sum(1)
    return squared.clamp_min_(0)
