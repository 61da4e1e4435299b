"""Who is nearest: ranks, top-k, cumulative match, average precision and inverse negative penalty, by block.

All orders here are of *keys*: a distance and its gallery position in one integer. Keys are never equal, so
equal distances always fall the same way, the lower gallery position first, whatever the device or sorting
routine.
"""

from collections.abc import Iterable

import numpy as np
import torch

NO_MATCH = np.iinfo(np.int32).max  # rank of a probe whose subject is not in the gallery: an error at every rank
NO_GALLERY = -1  # rank of a probe against an empty gallery: not a trial at all

_POSITION = (1 << 32) - 1
LAST = torch.iinfo(torch.int64).max  # key of nobody: after every other


def keys(distances: torch.Tensor) -> torch.Tensor:
    """int64 keys [n, m] of fp32 distances [n, m] >= 0, ordered as (distance, gallery position)."""
    return key(distances, torch.arange(distances.shape[1], device=distances.device))


def key(distances: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """int64 keys of fp32 distances >= 0 at int64 positions that fit 32 bits, ordered as (distance, position)."""
    # The bits of non-negative floats order as the floats do; adding 0 makes a negative zero positive.
    return ((distances.float() + 0.0).contiguous().view(torch.int32).long() << 32) | positions


def position_of(keys: torch.Tensor) -> torch.Tensor:
    """Gallery positions, int64, of keys."""
    return keys & _POSITION


def distance_of(keys: torch.Tensor) -> torch.Tensor:
    """Distances, fp32, of keys."""
    return (keys >> 32).int().view(torch.float32)


def nearest(distances: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest of each row of fp32 distances [n, m], nearest first.

    Two tensors [n, min(k, m)]: distances fp32 and gallery positions int64.
    """
    least = keys(distances).topk(min(k, distances.shape[1]), dim=1, largest=False, sorted=True).values
    return distance_of(least), position_of(least)


def nearest_of_blocks(blocks: Iterable[tuple[slice, torch.Tensor]], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`nearest` over `distances.blocks` (one at least), on the CPU: only k entries a probe are kept."""
    found = [nearest(block, k) for _, block in blocks]
    return torch.cat([near.cpu() for near, _ in found]), torch.cat([where.cpu() for _, where in found])


def first(keys: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """The least key, int64 [n], of each row of keys [n, m] among those marked in bool [n, m]; `LAST` if
    none is.
    """
    if keys.shape[1] == 0:
        return torch.full((keys.shape[0],), LAST, device=keys.device)
    return torch.where(among, keys, LAST).amin(1)


def first_match(keys: torch.Tensor, right: torch.Tensor) -> np.ndarray:
    """Rank, int32 [n] from 1, of the nearest right gallery sequence: keys int64 [n, m], right bool [n, m].

    `NO_MATCH` where a row holds no right one, `NO_GALLERY` where m is 0.
    """
    if keys.shape[1] == 0:
        return np.full(keys.shape[0], NO_GALLERY, np.int32)
    nearest_right = first(keys, right)
    rank = (keys < nearest_right[:, None]).sum(1) + 1
    return torch.where(nearest_right == LAST, NO_MATCH, rank).to(torch.int32).cpu().numpy()


def precision(keys: torch.Tensor, right: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and inverse negative penalty, float64 [n] in 0..1, from keys and right (bool) [n, m].

    AP is the mean over a probe's right gallery sequences of (right ones so far / rank), INP is
    (right ones / rank of the last). Both are 0 where a row holds no right one.
    Source of INP: Ye et al., Deep Learning for Person Re-identification, 2021.
    """
    if keys.shape[1] == 0:
        return np.zeros(keys.shape[0]), np.zeros(keys.shape[0])
    hits = right.gather(1, position_of(keys.sort(1).values))
    so_far = hits.cumsum(1).double()
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device, dtype=torch.float64)
    num_right = so_far[:, -1]
    average = (so_far / rank * hits).sum(1) / num_right.clamp_min(1)
    last = (rank * hits).amax(1)
    return average.cpu().numpy(), (num_right / last.clamp_min(1)).cpu().numpy()


def cumulative_match(first: np.ndarray, length: int) -> np.ndarray:
    """Percentage of probes recognised within rank 1 .. length, float64 [length], from `first_match` [n].

    Probes that met no gallery are left out; NaN where none is left.
    """
    trials = first[first != NO_GALLERY]
    if not len(trials):
        return np.full(length, np.nan)
    within = trials[trials <= length]
    return 100 * np.bincount(within, minlength=length + 1)[1:].cumsum() / len(trials)
