"""Where the errors lie, by hand and against naive counts; one pass gives what two gave."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics import assess, evaluate, hardest


def on_a_line(*places: float) -> np.ndarray:
    return np.array(places, np.float32).reshape(-1, 1, 1)


SUBJECTS = ["a", "a", "b", "b", "a", "a", "b"]
CONDITIONS = ["nm-01", "nm-01", "nm-01", "nm-01", "nm-05", "nm-06", "nm-05"]
VIEWS = ["018", "036", "018", "036", "000", "000", "000"]
# The probes: a right at both views; a at 4.9 wrong at 018 (b at 5) and right at 036 (a at 4.8); b wrong at both.
PLACES = on_a_line(0, 4.8, 5, 9, 0.1, 4.9, 0.2)


def test_by_hand():
    found = assess(PLACES, SUBJECTS, CONDITIONS, VIEWS, "casia-b", frames=[9] * 4 + [20, 40, 40])
    assert found.metrics["headline"]["NM"] == 50.0
    assert found.breakdown["by_length"] == [
        {"from": 20, "to": 20, "num_probes": 1, "rank1": 100.0},
        {"from": 40, "to": 40, "num_probes": 2, "rank1": 25.0},
    ]
    assert found.breakdown["by_missing_views"] == [{"missing": 0, "num_probes": 3, "rank1": 50.0}]
    assert found.breakdown["confused"] == [{"subject": "b", "taken_for": "a", "num_probes": 1, "of": 1}]
    assert [case["probe"] for case in found.hardest] == [6]


def test_a_subject_without_a_gallery_view_stands_apart():
    kept = [0, 2, 3, 4, 5, 6]  # a has no gallery at 036
    columns = [[column[i] for i in kept] for column in (SUBJECTS, CONDITIONS, VIEWS)]
    found = assess(PLACES[kept], *columns, "casia-b")
    assert [(row["missing"], row["num_probes"]) for row in found.breakdown["by_missing_views"]] == [(0, 1), (1, 2)]
    assert "by_length" not in found.breakdown


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30))
def test_confused_pairs_and_lengths_equal_naive_counts_in_one_gallery(seed, n):
    rng = np.random.default_rng(seed)
    subjects = [f"{s}" for s in rng.integers(0, 4, 2 * n)]
    conditions = ["known"] * n + ["asked"] * n
    frames = rng.integers(5, 60, 2 * n).tolist()
    embeddings = rng.integers(0, 3, (2 * n, 2, 2)).astype(np.float32)
    rules = {"name": "x", "gallery": {"conditions": ["known"]}, "probes": {"p": {"conditions": ["asked"]}}}
    from pipeline.metrics.protocols import Protocol

    found = assess(embeddings, subjects, conditions, ["v"] * 2 * n, Protocol.model_validate(rules), frames=frames)
    confused: dict[tuple[str, str], int] = {}
    right = []
    for i in range(n, 2 * n):
        far = np.sqrt(((embeddings[i] - embeddings[:n]).astype(np.float64) ** 2).sum(2)).mean(1)
        nearest = subjects[min(range(n), key=lambda j, far=far: (np.float32(far[j]), j))]
        right.append(nearest == subjects[i])
        if nearest != subjects[i] and subjects[i] in subjects[:n]:
            confused[subjects[i], nearest] = confused.get((subjects[i], nearest), 0) + 1
    assert {(p["subject"], p["taken_for"]): p["num_probes"] for p in found.breakdown["confused"]} == confused
    lengths = found.breakdown["by_length"]
    assert sum(row["num_probes"] for row in lengths) == n
    for row in lengths:
        here = [ok for ok, length in zip(right, frames[n:], strict=True) if row["from"] <= length <= row["to"]]
        assert (row["num_probes"], row["rank1"]) == (len(here), pytest.approx(100 * np.mean(here)))


def test_one_pass_gives_what_evaluate_and_hardest_give():
    columns = (PLACES, SUBJECTS, CONDITIONS, VIEWS, "casia-b")
    found = assess(*columns, num_hardest=4)
    assert found.metrics == evaluate(*columns)
    assert found.hardest == hardest(*columns, 4)
