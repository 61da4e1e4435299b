"""Distances between embeddings, a block at a time: the mean over parts of the distance between part vectors.

Ranks are decided by the last digits, so the arithmetic has to be better than the fp32 it is reported in.
`|a|^2 + |b|^2 - 2ab` is the only form that runs at the speed of a matrix product, and in fp32 it loses
everything for near-duplicates. Here it is taken in fp64 about the mean vector of the gallery, where its
error is under 1e-14 of the squared lengths. The few pairs of part vectors whose squared distance is under
`CANCELLED` of those lengths, where even that would show, are computed again from their differences.
Every part's distance is then right to a relative 1e-8, and the mean over parts is rounded to fp32 once.
"""

from collections.abc import Iterator

import numpy as np
import torch

BLOCK_ELEMENTS = 1 << 24  # distances in one block: 64 MiB
TILE = 2048  # a tile of fp64 squared distances takes 32 MiB; smaller ones spend their time in threads meeting
CANCELLED = 1e-6
DIRECT_PAIRS = 1 << 14  # pairs computed from their differences at once


def blocks(
    embeddings: np.ndarray,
    probe_rows: np.ndarray,
    gallery_rows: np.ndarray,
    device: str | torch.device = "cpu",
    block_elements: int = BLOCK_ELEMENTS,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (slice of `probe_rows`, fp32 distances [that many, num_gallery] on `device`), first probes first.

    `embeddings` float [n, parts, channels] may be memory-mapped: a tile of rows is copied at a time.
    Memory is a few bytes for each of `block_elements`, whatever n. The device must know fp64.
    """
    device = torch.device(device)
    num_rows = max(1, block_elements // max(1, len(gallery_rows)))
    centre = _mean(embeddings, gallery_rows).to(device)
    for start in range(0, len(probe_rows), num_rows):
        rows = slice(start, min(start + num_rows, len(probe_rows)))
        out = torch.empty(rows.stop - start, len(gallery_rows), device=device)
        for i in range(start, rows.stop, TILE):
            probes = _parts(embeddings[probe_rows[i : min(i + TILE, rows.stop)]], device)
            for j in range(0, len(gallery_rows), TILE):
                gallery = _parts(embeddings[gallery_rows[j : j + TILE]], device)
                tile = _tile(probes, gallery, centre)
                out[i - start : i - start + tile.shape[0], j : j + tile.shape[1]] = tile
        yield rows, out


def distances(probes: np.ndarray, gallery: np.ndarray, device: str | torch.device = "cpu") -> torch.Tensor:
    """All at once, fp32 [n, m], for small sets: `probes` [n, parts, channels], `gallery` [m, parts,
    channels].
    """
    n, m = len(probes), len(gallery)
    out = torch.empty(n, m, device=device)
    for rows, block in blocks(np.concatenate([probes, gallery]), np.arange(n), np.arange(n, n + m), device):
        out[rows] = block
    return out


def _mean(embeddings: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    # In fp32: fp32 values less an fp32 centre are all but exact in fp64.
    total = np.zeros(embeddings.shape[1:])
    for start in range(0, len(rows), TILE):
        total += embeddings[rows[start : start + TILE]].sum(0, dtype=np.float64)
    return torch.from_numpy(total / max(1, len(rows))).float().double()


def _parts(embeddings: np.ndarray, device: torch.device) -> torch.Tensor:
    """[parts, rows, channels]: each part's vectors side by side."""
    return torch.from_numpy(embeddings).to(device).transpose(0, 1)


def _tile(probes: torch.Tensor, gallery: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """fp64 [rows, columns] from `probes` [parts, rows, channels] and `gallery` [parts, columns, channels]."""
    total = torch.zeros(probes.shape[1], gallery.shape[1], dtype=torch.float64, device=probes.device)
    for a, b, middle in zip(probes, gallery, centre, strict=True):
        total += _squared(a.double() - middle, b.double() - middle).sqrt_()
    return total / len(centre)


def _squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared distances [rows, columns] of the vectors a [rows, channels] and b [columns, channels]."""
    a_squared, b_squared = a.square().sum(1), b.square().sum(1)
    # Both squared lengths ride along in the product: two passes over the tile fewer.
    left = torch.cat([a, a_squared[:, None], torch.ones_like(a_squared)[:, None]], 1)
    right = torch.cat([-2 * b, torch.ones_like(b_squared)[:, None], b_squared[:, None]], 1)
    squared = left @ right.T
    if squared.numel() and squared.amin() < CANCELLED * (a_squared.amax() + b_squared.amax()):
        near = squared < CANCELLED * (a_squared[:, None] + b_squared[None, :])
        for pairs in near.nonzero().split(DIRECT_PAIRS):
            i, j = pairs.unbind(1)
            squared[i, j] = (a[i] - b[j]).square().sum(1)
    return squared.clamp_min_(0)
