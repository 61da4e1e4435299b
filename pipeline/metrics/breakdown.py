"""Where the errors lie: which probes, which pairs of people, which lengths, which missing views."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.metrics import ranks
from pipeline.metrics.matching import Matches, Mistakes
from pipeline.metrics.protocols import Protocol

NUM_LENGTHS = 8
NUM_PAIRS = 12


def hardest_cases(mistakes: Mistakes, subjects: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The worst of the mistakes by margin, one a pair of people; see `pipeline.metrics.hardest`."""
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    margins = mistakes.distance_taken.astype(np.float64) - mistakes.distance_right
    for i in np.argsort(margins, kind="stable").tolist():
        if len(worst) == count:
            break
        pair = (subjects[mistakes.probes[i]], subjects[mistakes.taken_for[i]])
        case = {
            "probe": int(mistakes.probes[i]),
            "taken_for": int(mistakes.taken_for[i]),
            "right": int(mistakes.right[i]),
            "distance_taken": float(mistakes.distance_taken[i]),
            "distance_right": float(mistakes.distance_right[i]),
        }
        worst.setdefault(pair, case)
    return list(worst.values())


def breakdown(
    found: Matches,
    rows: np.ndarray,
    subjects: Sequence[str],
    views: np.ndarray,
    frames: Sequence[int] | None,
    rules: Protocol,
) -> dict[str, Any]:
    """JSON-serialisable, over all probes `rows` together; rank-1 in percent, identical views left out.

    by_length          from, to (frames), num_probes, rank1: about `NUM_LENGTHS` ranges with as many probes each
    by_missing_views   missing (gallery views that lack the probe's subject), num_probes, rank1; across views alone
    confused           subject, taken_for, num_probes mistaken, of (the subject's probes); most often first

    A probe counts with its share of gallery views at which it is right, as the protocol counts them.
    """
    tried = found.first[rows] != ranks.NO_GALLERY
    if rules.across_views:
        tried &= views[rows].astype(str)[:, None] != found.views[None, :]
    right = (found.first[rows] == 1) & tried
    counted = tried.any(1)
    share = right.sum(1) / np.maximum(tried.sum(1), 1)
    result: dict[str, Any] = {"confused": _confused(found.mistakes, rows[counted], subjects)}
    if frames is not None:
        lengths = np.asarray(frames)[rows]
        result["by_length"] = _by_length(lengths[counted], share[counted])
    if rules.across_views:
        absent = ((found.first[rows] == ranks.NO_MATCH) & tried).sum(1)
        result["by_missing_views"] = [
            {"missing": num, **_rate(share[counted & (absent == num)])} for num in np.unique(absent[counted]).tolist()
        ]
    return result


def _by_length(lengths: np.ndarray, share: np.ndarray) -> list[dict[str, Any]]:
    if not len(lengths):
        return []
    starts = np.unique(lengths)
    if len(starts) > NUM_LENGTHS:
        starts = np.unique(np.quantile(lengths, np.arange(NUM_LENGTHS) / NUM_LENGTHS, method="lower"))
    bins = np.searchsorted(starts, lengths, side="right")
    made = []
    for number in np.unique(bins):
        here = bins == number
        made.append({"from": int(lengths[here].min()), "to": int(lengths[here].max()), **_rate(share[here])})
    return made


def _rate(share: np.ndarray) -> dict[str, Any]:
    return {"num_probes": len(share), "rank1": float(100 * share.mean())}


def _confused(mistakes: Mistakes, rows: np.ndarray, subjects: Sequence[str]) -> list[dict[str, Any]]:
    probes_of = Counter(subjects[row] for row in rows.tolist())
    pairs = Counter(
        (subjects[probe], subjects[taken])
        for probe, taken in zip(mistakes.probes.tolist(), mistakes.taken_for.tolist(), strict=True)
    )
    often = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:NUM_PAIRS]
    return [
        {"subject": subject, "taken_for": other, "num_probes": num, "of": probes_of[subject]}
        for (subject, other), num in often
    ]
