"""Rates of recognition by a protocol, and the probes a network gets most wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.metrics import ranks
from pipeline.metrics.breakdown import breakdown, hardest_cases
from pipeline.metrics.distances import Metric, side_by_side, take, threads_apart
from pipeline.metrics.matching import Matches, Progress, match
from pipeline.metrics.protocols import Protocol, Split, load, split

CMC_LENGTH = 20
CHECKED_ROWS = 256  # embeddings looked through at once


@dataclass(frozen=True)
class Assessment:
    """All that one pass over the distances gives."""

    metrics: dict[str, Any]
    """What `evaluate` returns."""
    hardest: list[dict[str, Any]]
    """What `hardest` returns."""
    breakdown: dict[str, Any]
    """What `breakdown.breakdown` returns."""


def evaluate(
    embeddings: np.ndarray | torch.Tensor,
    subjects: Sequence[str],
    conditions: Sequence[str],
    views: Sequence[str],
    protocol: str | Path | Protocol,
    *,
    probes: Sequence[str] | None = None,
    distance: Metric = "euclidean",
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Rates in percent (0..100, unrounded; None where nothing was measured) as one JSON-serialisable dict.

    `embeddings` float [n, parts, channels]; `subjects`, `conditions`, `views`: n strings each.
    `protocol` is a name (`protocols.names()`), the path of a YAML file or a `Protocol`.
    `probes` are keys `subject-condition-view`, for protocols that take their probes from a list (gait3d).
    `distance` is of part vectors; its mean over parts decides.

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
    options: dict[str, Any] = {"probes": probes, "distance": distance, "device": device, "progress": progress}
    return assess(embeddings, subjects, conditions, views, protocol, **options).metrics


def hardest(
    embeddings: np.ndarray | torch.Tensor,
    subjects: Sequence[str],
    conditions: Sequence[str],
    views: Sequence[str],
    protocol: str | Path | Protocol,
    count: int,
    **options: Any,
) -> list[dict[str, Any]]:
    """At most `count` probes, those taken for somebody else by the largest margin, worst first.

    Each: probe, taken_for (nearest gallery sequence of a wrong subject) and right (nearest of the right one),
    as positions in the arrays, distance_taken and distance_right. Across views, both are looked for at views
    other than the probe's. At most one for each (probe's subject, subject it was taken for), so that one bad
    pair does not fill the page. Arguments, options and errors as in `evaluate`.
    """
    return assess(embeddings, subjects, conditions, views, protocol, num_hardest=count, **options).hardest


def assess(
    embeddings: np.ndarray | torch.Tensor,
    subjects: Sequence[str],
    conditions: Sequence[str],
    views: Sequence[str],
    protocol: str | Path | Protocol,
    *,
    frames: Sequence[int] | None = None,
    probes: Sequence[str] | None = None,
    num_hardest: int = 12,
    distance: Metric = "euclidean",
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Assessment:
    """`evaluate`, `hardest` and where the errors lie, from one pass over the distances.

    `frames` int [n]: lengths of the sequences, for rank-1 over length. Other arguments and errors as in `evaluate`.
    """
    rules = load(protocol)
    values = _checked(embeddings, subjects, conditions, views)
    chosen = split(rules, subjects, conditions, views, probes)
    # A protocol of one gallery is one across views whose only view is everywhere.
    seen_from = np.array(views if rules.across_views else [""] * len(views), dtype=object)
    groups = list(chosen.probes.values())
    rows = np.unique(np.concatenate(groups)).astype(np.int64)
    with threads_apart():
        found = match(values, subjects, seen_from, chosen.gallery, rows, rules, distance, device, progress)
    return Assessment(
        metrics=_figures(rules, chosen, found, seen_from),
        hardest=hardest_cases(found.mistakes, subjects, num_hardest),
        breakdown=breakdown(found, rows, subjects, seen_from, frames, rules),
    )


def _figures(rules: Protocol, chosen: Split, found: Matches, seen_from: np.ndarray) -> dict[str, Any]:
    """What `evaluate` returns."""
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
            missing.append(f"{group}: no gallery sequence at a view other than the probe's; left out of the mean")
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


def _precision(found: Matches, groups: dict[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
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


def _unmatched(found: Matches, groups: dict[str, np.ndarray], views: np.ndarray, rules: Protocol) -> list[str]:
    if rules.unmatched == "drop":
        return []
    sentences = []
    for group, rows in groups.items():
        apart = views[rows, None] != found.views[None, :] if rules.across_views else np.ones((len(rows), 1), bool)
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
    _check_finite(embeddings, subjects, conditions, views)
    return embeddings


def _check_finite(
    embeddings: np.ndarray, subjects: Sequence[str], conditions: Sequence[str], views: Sequence[str]
) -> None:
    def check(start: int) -> None:
        values = take(embeddings, slice(start, start + CHECKED_ROWS)).flatten(1)
        # A sum is finite only if all its terms are, and much faster than asking each; it may overflow without.
        if values.sum().isfinite():
            return
        finite = values.isfinite().all(1)
        if not finite.all():
            row = start + int(finite.int().argmin())
            raise ValueError(
                f"the embedding of sequence {row} ({subjects[row]}-{conditions[row]}-{views[row]}) "
                "holds a NaN or infinity, and no distance to it means anything: use an earlier checkpoint"
            )

    side_by_side(check, range(0, len(embeddings), CHECKED_ROWS))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
