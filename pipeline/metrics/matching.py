"""Every probe against the whole gallery, once: what all figures are made of.

The gallery stands by view. For each probe and gallery view it finds the rank of the first right sequence; over all
views the probe may be matched at, the nearest sequence, and the nearest right one where that is another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.metrics import intervals, ranks
from pipeline.metrics.distances import Metric, side_by_side
from pipeline.metrics.intervals import Block
from pipeline.metrics.protocols import Protocol

Progress = Callable[[int, int], None]
"""Called with (probes done, probes in all)."""

MANY = 1 / 32  # of all pairs: so many intervals that meet are settled faster in full


@dataclass(frozen=True)
class Matches:
    """What the distances said, by row of the embeddings: all figures follow from it, and it is small."""

    views: np.ndarray  # gallery views, str [num_views]
    first: np.ndarray  # rank of the first right gallery sequence at each view, int32 [n, num_views]
    average_precision: np.ndarray  # float64 [n], in 0..1; zeros unless the protocol asks
    inverse_negative_penalty: np.ndarray  # float64 [n], in 0..1
    mistakes: "Mistakes"


@dataclass(frozen=True)
class Mistakes:
    """Probes nearest to somebody else although their own subject is in the gallery, [k] each, rows ascending.

    Across views, what counts are gallery sequences at views other than the probe's.
    """

    probes: np.ndarray
    """int64, rows of the embeddings, as are `taken_for` and `right`."""
    taken_for: np.ndarray
    """The nearest gallery sequence, of a wrong subject."""
    right: np.ndarray
    """The nearest gallery sequence of the right subject."""
    distance_taken: np.ndarray
    """fp32"""
    distance_right: np.ndarray


@dataclass(frozen=True)
class _Gallery:
    """The gallery by view; a view's columns stand together, in order of rows."""

    rows: np.ndarray
    views: np.ndarray
    starts: list[int]
    stops: list[int]
    who: torch.Tensor
    """int64 [num_gallery], equal for equal subjects."""
    view_of: torch.Tensor
    """int64 [num_gallery], number of the view."""
    columns: torch.Tensor
    """int64 [num_subjects, most of one subject], the columns of each subject, -1 beyond."""


def match(
    embeddings: np.ndarray,
    subjects: Sequence[str],
    views: np.ndarray,
    gallery: np.ndarray,
    probes: np.ndarray,
    rules: Protocol,
    metric: Metric = "euclidean",
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Matches:
    """`gallery` and `probes` are rows (int64) of `embeddings`; `views` are those the protocol tells apart.

    Equal distances go to the lower row.
    """
    known, who = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    shelf = _arrange(gallery, views, who, len(known))
    first = np.full((len(views), len(shelf.views)), ranks.NO_GALLERY, np.int32)
    average, negative = np.zeros(len(views)), np.zeros(len(views))
    found: list[tuple[np.ndarray, ...]] = []
    for block in intervals.blocks(embeddings, probes, shelf.rows, device, metric, exact=rules.precision):
        rows = probes[block.rows]
        codes = torch.from_numpy(who[rows])
        first[rows], block = _first(block, codes, shelf)
        if rules.precision:
            right = codes.to(block.low.device)[:, None] == shelf.who.to(block.low.device)
            average[rows], negative[rows] = ranks.precision(ranks.keys(block.low), right)
        # A view that nobody in the gallery has is no number of one: -1 leaves all columns in.
        apart = torch.from_numpy(_numbers(views[rows], shelf.views)) if rules.across_views else None
        found.append(_mistakes(block, rows, codes, apart, shelf))
        if progress:
            progress(block.rows.stop, len(probes))
    if rules.unmatched == "drop":
        first[first == ranks.NO_MATCH] = ranks.NO_GALLERY
    empty = tuple(np.zeros(0, kind) for kind in (np.int64, np.int64, np.int64, np.float32, np.float32))
    columns = [np.concatenate(parts) for parts in zip(empty, *found, strict=True)]
    return Matches(shelf.views, first, average, negative, Mistakes(*columns))


def _arrange(gallery: np.ndarray, views: np.ndarray, who: np.ndarray, num_subjects: int) -> _Gallery:
    rows = gallery[np.argsort(views[gallery].astype(str), kind="stable")]
    names, starts, numbers = np.unique(views[rows].astype(str), return_index=True, return_inverse=True)
    by_subject = np.argsort(who[rows], kind="stable")
    counts = np.bincount(who[rows], minlength=num_subjects)
    columns = np.full((num_subjects, max(1, int(counts.max(initial=0)))), -1, np.int64)
    columns[np.arange(columns.shape[1]) < counts[:, None]] = by_subject
    return _Gallery(
        rows=rows,
        views=names,
        starts=starts.tolist(),
        stops=[*starts[1:].tolist(), len(rows)],
        who=torch.from_numpy(who[rows]),
        view_of=torch.from_numpy(numbers.astype(np.int64)),
        columns=torch.from_numpy(columns),
    )


def _numbers(views: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Number of each view among the sorted names, int64; -1 where it is none of them."""
    place = np.searchsorted(names, views.astype(str))
    known = names[np.minimum(place, len(names) - 1)] == views.astype(str)
    return np.where(known, place, -1).astype(np.int64)


def _own(block: Block, who: torch.Tensor, shelf: _Gallery) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Columns of each probe's own subject, int64 [rows, most], and low and high ends there, infinite where none is."""
    columns = shelf.columns[who]
    there, absent = columns.clamp_min(0).to(block.low.device), columns < 0
    low = block.low.gather(1, there).cpu().masked_fill_(absent, torch.inf)
    high = low if block.high is block.low else block.high.gather(1, there).cpu().masked_fill_(absent, torch.inf)
    return columns, low, high


def _first(block: Block, who: torch.Tensor, shelf: _Gallery) -> tuple[np.ndarray, Block]:
    """Rank, int32 [rows, views], of the first right gallery sequence at each view, `NO_MATCH` where there is none.

    The block comes back in full where the intervals said too little.
    """
    columns, own_low, own_high = _own(block, who, shelf)
    device = block.low.device
    rank = torch.full((len(who), len(shelf.views)), ranks.NO_MATCH, dtype=torch.int32)
    unsettled: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]] = {}

    def settle(view: int) -> None:
        start, stop = shelf.starts[view], shelf.stops[view]
        here = (columns >= start) & (columns < stop)
        # The nearest right sequence lies between these two.
        least = own_low.masked_fill(~here, torch.inf).amin(1)
        most = own_high.masked_fill(~here, torch.inf).amin(1)
        before = (block.high[:, start:stop] < least.to(device)[:, None]).sum(1).cpu()
        reached = (block.low[:, start:stop] <= most.to(device)[:, None]).sum(1).cpu()
        candidates = (here & (own_low <= most[:, None])).sum(1)
        matched = here.any(1)
        rank[:, view] = torch.where(matched, before + 1, ranks.NO_MATCH).int()
        rows = (matched & (reached - before > candidates)).nonzero()[:, 0]
        unsettled[view] = rows, least[rows], most[rows], int((reached - before)[rows].sum())

    side_by_side(settle, range(len(shelf.views)), device)
    num_unsettled = sum(num for *_, num in unsettled.values())
    if num_unsettled > MANY * block.low.numel() and block.high is not block.low:
        return _first(block.in_full(), who, shelf)
    for view, (rows, least, most, _) in sorted(unsettled.items()):
        if len(rows):
            rank[rows, view] += _ahead(block, rows, who, shelf, view, least, most)
    return rank.numpy(), block


def _ahead(
    block: Block,
    rows: torch.Tensor,
    who: torch.Tensor,
    shelf: _Gallery,
    view: int,
    least: torch.Tensor,
    most: torch.Tensor,
) -> torch.Tensor:
    """How many of the sequences whose intervals meet the nearest right one's are nearer than it, int32 [rows]."""
    start, stop, device = shelf.starts[view], shelf.stops[view], block.low.device
    chosen = rows.to(device)
    meet = block.low[chosen, start:stop] <= most.to(device)[:, None]
    meet &= block.high[chosen, start:stop] >= least.to(device)[:, None]
    i, j = meet.nonzero().cpu().unbind(1)
    j = j + start
    keys = _keys(block, rows[i], j, shelf)
    right = who[rows[i]] == shelf.who[j]
    nearest = torch.full((len(rows),), ranks.LAST).scatter_reduce(0, i[right], keys[right], "amin")
    return torch.bincount(i[keys < nearest[i]], minlength=len(rows)).int()


def _keys(block: Block, i: torch.Tensor, j: torch.Tensor, shelf: _Gallery) -> torch.Tensor:
    """int64 [n], ordered as (exact distance, row of the embeddings)."""
    return ranks.key(block.exact(i, j), torch.from_numpy(shelf.rows)[j])


def _mistakes(
    block: Block, rows: np.ndarray, who: torch.Tensor, apart: torch.Tensor | None, shelf: _Gallery
) -> tuple[np.ndarray, ...]:
    """The columns of `Mistakes` for this block. `apart`: int64 [rows], the view each probe is not matched at."""
    columns, own_low, own_high = _own(block, who, shelf)
    absent = columns < 0
    if apart is not None:
        absent |= shelf.view_of[columns.clamp_min(0)] == apart[:, None]
    most_own = own_high.masked_fill(absent, torch.inf).amin(1)
    closest = _closest(block, apart, shelf).masked_fill(most_own == torch.inf, -torch.inf)
    # All that may be the nearest, and all that may be the nearest right one.
    i, j = (block.low <= closest.to(block.low.device)[:, None]).nonzero().cpu().unbind(1)
    kept = torch.ones_like(i, dtype=torch.bool) if apart is None else shelf.view_of[j] != apart[i]
    i, j = i[kept], j[kept]
    wrong = torch.zeros(len(who), dtype=torch.bool)
    wrong[i[who[i] != shelf.who[j]]] = True
    i, j = i[wrong[i]], j[wrong[i]]
    own_i, slot = (~absent & (own_low <= most_own[:, None]) & wrong[:, None]).nonzero().unbind(1)
    taken, right = _keys(block, i, j, shelf), _keys(block, own_i, columns[own_i, slot], shelf)
    nearest = torch.full((len(who),), ranks.LAST).scatter_reduce(0, i, taken, "amin")
    nearest_right = torch.full((len(who),), ranks.LAST).scatter_reduce(0, own_i, right, "amin")
    mistaken = (nearest < nearest_right).nonzero()[:, 0]
    nearest, nearest_right = nearest[mistaken], nearest_right[mistaken]
    return (
        rows[mistaken.numpy()],
        ranks.position_of(nearest).numpy(),
        ranks.position_of(nearest_right).numpy(),
        ranks.distance_of(nearest).numpy(),
        ranks.distance_of(nearest_right).numpy(),
    )


def _closest(block: Block, apart: torch.Tensor | None, shelf: _Gallery) -> torch.Tensor:
    """The least high end over the views each probe may be matched at, fp32 [rows]: the nearest is no farther."""
    by_view = torch.stack(
        [block.high[:, start:stop].amin(1) for start, stop in zip(shelf.starts, shelf.stops, strict=True)], 1
    ).cpu()
    if apart is not None:
        by_view[torch.arange(len(shelf.views)) == apart[:, None]] = torch.inf
    return by_view.amin(1)
