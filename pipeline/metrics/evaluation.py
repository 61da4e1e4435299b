"""Rates of recognition by a protocol, and the probes a network gets most wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.metrics import ranks
from pipeline.metrics.distances import blocks
from pipeline.metrics.protocols import Protocol, load, split

CMC_LENGTH = 20

Progress = Callable[[int, int], None]
"""Called with (probes done, probes in all)."""


def evaluate(
    embeddings: np.ndarray | torch.Tensor,
    subjects: Sequence[str],
    conditions: Sequence[str],
    views: Sequence[str],
    protocol: str | Path | Protocol,
    *,
    probes: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Rates in percent (0..100, unrounded; None where nothing was measured) as one JSON-serialisable dict.

    `embeddings` float [n, parts, channels]; `subjects`, `conditions`, `views`: n strings each.
    `protocol` is a name (`protocols.names()`), the path of a YAML file or a `Protocol`.
    `probes` are keys `subject-condition-view`, for protocols that take their probes from a list (gait3d).

    headline   one group of probes: rank-k, mAP, mINP; several: rank-1 of each group and their mean
    cmc        group -> rank-1 .. rank-20, counted in gallery sequences, averaged as the headline is
    counts     probe: group -> sequences; gallery; unused
    missing    what the protocol asks for and the data do not have, a sentence each
    and, for protocols across views,
    headline_including_identical_view   the headline with the diagonal kept
    by_view    group -> probe_views, num_probes [probe view], gallery_views, rank1 [probe view][gallery view]

    Means across views go over gallery views, then probe views; empty cells are left out.
    ValueError: lengths that differ, a value that is not finite, and what `protocols.load` and `.split`
    refuse.
    """
    rules = load(protocol)
    values = _checked(embeddings, subjects, conditions, views)
    chosen = split(rules, subjects, conditions, views, probes)
    # A protocol of one gallery is one across views whose only view is everywhere.
    seen_from = np.array(views if rules.across_views else [""] * len(views), dtype=object)
    found = _match(
        values, subjects, seen_from, chosen.gallery, list(chosen.probes.values()), rules, device, progress
    )
    missing = [*chosen.missing, *_unmatched(found, chosen.probes, seen_from, rules)]
    length = max(CMC_LENGTH, *rules.ranks)

    curves: dict[str, list[float | None]] = {}
    curves_identical: dict[str, list[float | None]] = {}
    by_view: dict[str, Any] = {}
    for group, rows in chosen.probes.items():
        probe_views, num_probes = np.unique(seen_from[rows].astype(str), return_counts=True)
        cells = _cells(found.first[rows], seen_from[rows], probe_views, length)
        identical = probe_views[:, None] == found.views[None, :]
        curves_identical[group] = _mean(cells, np.ones_like(identical))
        curves[group] = _mean(cells, ~identical) if rules.across_views else curves_identical[group]
        by_view[group] = {
            "probe_views": probe_views.tolist(),
            "num_probes": num_probes.tolist(),
            "gallery_views": found.views.tolist(),
            "rank1": [[_number(rate) for rate in row] for row in cells[:, :, 0]],
        }
        if len(rows) and curves[group][0] is None:
            missing.append(
                f"{group}: no gallery sequence at a view other than the probe's; left out of the mean"
            )
    precision = _precision(found, chosen.probes) if rules.precision else {}

    result: dict[str, Any] = {"protocol": rules.name}
    if rules.note:
        result["note"] = rules.note
    result["headline"] = _headline(rules, curves, precision)
    if rules.across_views:
        result["headline_including_identical_view"] = _headline(rules, curves_identical, {})
        result["by_view"] = by_view
    if precision:
        result["precision"] = precision
    result["cmc"] = {group: curve[:CMC_LENGTH] for group, curve in curves.items()}
    result["counts"] = {
        "probe": {group: len(rows) for group, rows in chosen.probes.items()},
        "gallery": len(chosen.gallery),
        "unused": chosen.num_unused,
    }
    result["missing"] = missing
    return result


def hardest(
    embeddings: np.ndarray | torch.Tensor,
    subjects: Sequence[str],
    conditions: Sequence[str],
    views: Sequence[str],
    protocol: str | Path | Protocol,
    count: int,
    *,
    probes: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """At most `count` probes, those taken for somebody else by the largest margin, worst first.

    Each: probe, taken_for (nearest gallery sequence of a wrong subject) and right (nearest of the right one),
    as positions in the arrays, distance_taken and distance_right. Across views, both are looked for at views
    other than the probe's. At most one for each (probe's subject, subject it was taken for), so that one bad
    pair does not fill the page. Arguments and errors as in `evaluate`.
    """
    rules = load(protocol)
    values = _checked(embeddings, subjects, conditions, views)
    chosen = split(rules, subjects, conditions, views, probes)
    who, where = _codes(subjects), _codes(views)
    gallery, rows = chosen.gallery, _union(list(chosen.probes.values()))
    found: list[dict[str, Any]] = []
    for part, distances in blocks(values, rows, gallery, device):
        keys = ranks.keys(distances).cpu()
        same = torch.from_numpy(who[rows[part], None] == who[None, gallery])
        allowed = torch.from_numpy(
            (where[rows[part], None] != where[None, gallery]) | (not rules.across_views)
        )
        taken, right = ranks.first(keys, allowed & ~same), ranks.first(keys, allowed & same)
        for i in torch.nonzero((taken < right) & (right != ranks.LAST))[:, 0].tolist():
            case: dict[str, Any] = {
                "probe": int(rows[part][i]),
                "taken_for": int(gallery[ranks.position_of(taken[i])]),
                "right": int(gallery[ranks.position_of(right[i])]),
                "distance_taken": float(ranks.distance_of(taken[i])),
                "distance_right": float(ranks.distance_of(right[i])),
            }
            found.append(case)
        if progress:
            progress(part.stop, len(rows))
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    for case in sorted(found, key=lambda case: case["distance_taken"] - case["distance_right"]):
        worst.setdefault((subjects[case["probe"]], subjects[case["taken_for"]]), case)
    return list(worst.values())[:count]


@dataclass(frozen=True)
class _Matches:
    """What the distances said, by row of the embeddings: all else follows from it, and it is small."""

    views: np.ndarray  # gallery views, str [num_views]
    first: np.ndarray  # rank of the first right gallery sequence at each view, int32 [n, num_views]
    average_precision: np.ndarray  # float64 [n], in 0..1
    inverse_negative_penalty: np.ndarray  # float64 [n], in 0..1


def _match(
    embeddings: np.ndarray,
    subjects: Sequence[str],
    views: np.ndarray,
    gallery: np.ndarray,
    groups: list[np.ndarray],
    rules: Protocol,
    device: str | torch.device,
    progress: Progress | None,
) -> _Matches:
    """Every probe-gallery distance is computed once; a view's columns stand together, in order."""
    who = _codes(subjects)
    rows = _union(groups)
    gallery = gallery[np.argsort(views[gallery].astype(str), kind="stable")]
    names, starts = np.unique(views[gallery].astype(str), return_index=True)
    stops = [*starts[1:], len(gallery)]
    first = np.full((len(views), len(names)), ranks.NO_GALLERY, np.int32)
    average, negative = np.zeros(len(views)), np.zeros(len(views))
    gallery_who = torch.from_numpy(who[gallery]).to(device)
    for part, distances in blocks(embeddings, rows, gallery, device):
        keys = ranks.keys(distances)
        right = torch.from_numpy(who[rows[part]]).to(device)[:, None] == gallery_who
        for view, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            first[rows[part], view] = ranks.first_match(keys[:, start:stop], right[:, start:stop])
        if rules.precision:
            average[rows[part]], negative[rows[part]] = ranks.precision(keys, right)
        if progress:
            progress(part.stop, len(rows))
    if rules.unmatched == "drop":
        first[first == ranks.NO_MATCH] = ranks.NO_GALLERY
    return _Matches(names, first, average, negative)


def _cells(first: np.ndarray, views: np.ndarray, probe_views: np.ndarray, length: int) -> np.ndarray:
    """Percentage within rank 1 .. length, [probe views, gallery views, length]; NaN if untried."""
    cells = np.full((len(probe_views), first.shape[1], length), np.nan)
    for i, probe_view in enumerate(probe_views):
        for j, column in enumerate(first[views == probe_view].T):
            cells[i, j] = ranks.cumulative_match(column, length)
    return cells


def _mean(cells: np.ndarray, keep: np.ndarray) -> list[float | None]:
    """Mean over kept gallery views, then probe views, of [probe views, gallery views, length]; no NaN."""
    kept = np.where(keep[:, :, None], cells, np.nan)
    rows = [row[~np.isnan(row[:, 0])].mean(0) for row in kept if not np.isnan(row[:, 0]).all()]
    return np.mean(rows, 0).tolist() if rows else [None] * cells.shape[2]


def _precision(found: _Matches, groups: dict[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
    result = {}
    for group, rows in groups.items():
        tried = rows[found.first[rows, 0] != ranks.NO_GALLERY]
        result[group] = {
            name: float(100 * values[tried].mean()) if len(tried) else None
            for name, values in (("mAP", found.average_precision), ("mINP", found.inverse_negative_penalty))
        }
    return result


def _headline(
    rules: Protocol, curves: dict[str, list[float | None]], precision: dict[str, dict[str, float | None]]
) -> dict[str, float | None]:
    if len(curves) == 1:
        ((group, curve),) = curves.items()
        return {**{f"rank-{rank}": curve[rank - 1] for rank in rules.ranks}, **precision.get(group, {})}
    rank1 = {group: curve[0] for group, curve in curves.items()}
    measured = [rate for rate in rank1.values() if rate is not None]
    return {**rank1, "mean": float(np.mean(measured)) if measured else None}


def _unmatched(
    found: _Matches, groups: dict[str, np.ndarray], views: np.ndarray, rules: Protocol
) -> list[str]:
    if rules.unmatched == "drop":
        return []
    sentences = []
    for group, rows in groups.items():
        apart = (
            views[rows, None] != found.views[None, :] if rules.across_views else np.ones((len(rows), 1), bool)
        )
        num = int(((found.first[rows] == ranks.NO_MATCH) & apart).sum())
        trials = "trials (a probe against one gallery view)" if rules.across_views else "probes"
        where = " at that view" if rules.across_views else ""
        if num:
            sentences.append(
                f"{group}: {num} of {int(apart.sum())} {trials} have no gallery sequence "
                f"of their subject{where}; counted as errors"
            )
    return sentences


def _checked(
    embeddings: np.ndarray | torch.Tensor,
    subjects: Sequence[str],
    conditions: Sequence[str],
    views: Sequence[str],
) -> np.ndarray:
    if isinstance(embeddings, torch.Tensor):
        embeddings = embeddings.detach().float().cpu().numpy()
    if embeddings.ndim != 3:
        raise ValueError(f"embeddings have shape {embeddings.shape}: give [sequences, parts, channels]")
    lengths = {
        "embeddings": len(embeddings),
        "subjects": len(subjects),
        "conditions": len(conditions),
        "views": len(views),
    }
    if len(set(lengths.values())) > 1:
        raise ValueError(f"one of each for every sequence is needed, and these differ: {lengths}")
    for start in range(0, len(embeddings), 1024):
        finite = np.isfinite(embeddings[start : start + 1024]).all((1, 2))
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise ValueError(
                f"the embedding of sequence {row} ({subjects[row]}-{conditions[row]}-{views[row]}) "
                "holds a NaN or infinity, and no distance to it means anything: use an earlier checkpoint"
            )
    return embeddings


def _codes(names: Sequence[str]) -> np.ndarray:
    """Equal int64 for equal names."""
    return np.unique(np.asarray(names, dtype=str), return_inverse=True)[1].astype(np.int64)


def _union(groups: list[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(groups)).astype(np.int64)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
