"""Every figure against a naive loop, and against cases worked out by hand."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import metrics
from pipeline.metrics import evaluate, hardest
from pipeline.metrics.protocols import Protocol

CONDITIONS = ["nm-01", "nm-02", "nm-03", "nm-04", "nm-05", "nm-06", "bg-01", "bg-02", "cl-01", "cl-02"]
GROUPS = {"NM": ("nm-05", "nm-06"), "BG": ("bg-01", "bg-02"), "CL": ("cl-01", "cl-02")}


def naive_distance(a: np.ndarray, b: np.ndarray) -> np.float32:
    parts = [np.sqrt(((a[p].astype(np.float64) - b[p].astype(np.float64)) ** 2).sum()) for p in range(len(a))]
    return np.float32(np.mean(parts))


def naive_casia_b(embeddings, subjects, conditions, views, rank, identical):
    """Rank-k in the field's way: for each condition and pair of views, sort the gallery for every probe."""
    n = len(subjects)
    every_view = sorted(set(views))
    result = {}
    for group, wanted in GROUPS.items():
        rows = []
        for probe_view in every_view:
            row = []
            for gallery_view in every_view:
                probes = [i for i in range(n) if conditions[i] in wanted and views[i] == probe_view]
                gallery = [i for i in range(n) if conditions[i] in CONDITIONS[:4] and views[i] == gallery_view]
                if not probes or not gallery or (probe_view == gallery_view and not identical):
                    continue
                right = 0
                for i in probes:
                    order = sorted(gallery, key=lambda j, i=i: (naive_distance(embeddings[i], embeddings[j]), j))
                    right += any(subjects[j] == subjects[i] for j in order[:rank])
                row.append(100 * right / len(probes))
            if row:
                rows.append(np.mean(row))
        result[group] = np.mean(rows) if rows else None
    return result


def ragged(seed: int, keep: float, levels: int = 4):
    """A small CASIA-B with sequences missing at random; few levels, so that many distances are equal."""
    rng = np.random.default_rng(seed)
    every = [(s, c, v) for s in ("001", "002", "003") for c in CONDITIONS for v in ("000", "090", "180")]
    kept = [sequence for sequence in every if rng.random() < keep]
    kept.append(("001", "nm-01", "000"))
    kept = list(dict.fromkeys(kept))
    embeddings = rng.integers(0, levels, (len(kept), 2, 3)).astype(np.float32)
    return embeddings, *map(list, zip(*kept, strict=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.15, 0.5, 1.0]), st.sampled_from([2, 4, 1000]))
def test_casia_b_equals_the_naive_loop_on_ragged_data_with_ties(seed, keep, levels):
    data = ragged(seed, keep, levels)
    result = evaluate(*data, "casia-b")
    for key, identical in (("headline", False), ("headline_including_identical_view", True)):
        wanted = naive_casia_b(*data, rank=1, identical=identical)
        for group in GROUPS:
            assert result[key][group] == pytest.approx(wanted[group], abs=1e-9), (key, group)
        measured = [rate for rate in wanted.values() if rate is not None]
        assert result[key]["mean"] == pytest.approx(np.mean(measured) if measured else None, abs=1e-9)
    third = naive_casia_b(*data, rank=3, identical=False)
    assert {g: curve[2] for g, curve in result["cmc"].items()} == pytest.approx(third, abs=1e-9)
    assert all(curve[0] == result["headline"][group] for group, curve in result["cmc"].items())
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def naive_precision(distances: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    order = sorted(range(len(distances)), key=lambda j: (distances[j], j))
    hits = [rank for rank, j in enumerate(order, 1) if right[j]]
    if not hits:
        return 0.0, 0.0
    return float(np.mean([k / rank for k, rank in enumerate(hits, 1)])), len(hits) / hits[-1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 40), st.sampled_from([2, 1000]))
def test_gait3d_equals_the_naive_loop(seed, n, levels):
    rng = np.random.default_rng(seed)
    subjects = [f"{s:04}" for s in rng.integers(0, 4, n)]
    conditions, views = [f"camid{i}" for i in range(n)], ["seq0"] * n
    embeddings = rng.integers(0, levels, (n, 2, 2)).astype(np.float32)
    probes = [f"{subjects[i]}-{conditions[i]}-seq0" for i in range(0, n, 3)]
    result = evaluate(embeddings, subjects, conditions, views, "gait3d", probes=probes)
    gallery = [j for j in range(n) if j % 3]
    firsts, found = [], []
    for i in range(0, n, 3):
        distances = np.array([naive_distance(embeddings[i], embeddings[j]) for j in gallery])
        right = np.array([subjects[j] == subjects[i] for j in gallery])
        order = sorted(range(len(gallery)), key=lambda k: (distances[k], k))
        firsts.append(next((rank for rank, k in enumerate(order, 1) if right[k]), np.inf))
        found.append(naive_precision(distances, right))
    wanted = {f"rank-{k}": 100 * np.mean(np.array(firsts) <= k) for k in (1, 5, 10)}
    wanted |= {
        "mAP": 100 * np.mean([ap for ap, _ in found]),
        "mINP": 100 * np.mean([inp for _, inp in found]),
    }
    assert result["headline"] == pytest.approx(wanted, abs=1e-9)
    assert "headline_including_identical_view" not in result


def on_a_line(*places: float) -> np.ndarray:
    return np.array(places, np.float32).reshape(-1, 1, 1)


def test_by_hand_casia_b():
    subjects = ["a", "b", "a", "b", "a", "b"]
    conditions = ["nm-01"] * 4 + ["nm-05"] * 2
    views = ["000", "000", "090", "090", "000", "000"]
    # At 000 both probes are nearest their own; at 090 the probe of a (0) is nearer b (1) than a (2).
    result = evaluate(on_a_line(0, 5, 2, 1, 0, 5), subjects, conditions, views, "casia-b")
    assert result["by_view"]["NM"] == {
        "probe_views": ["000"],
        "num_probes": [2],
        "gallery_views": ["000", "090"],
        "rank1": [[100.0, 0.0]],
    }
    assert result["headline"] == {"NM": 0.0, "BG": None, "CL": None, "mean": 0.0}
    assert result["headline_including_identical_view"]["NM"] == 50.0
    assert result["cmc"]["NM"][:2] == [0.0, 100.0]
    assert result["counts"] == {"probe": {"NM": 2, "BG": 0, "CL": 0}, "gallery": 4, "unused": 0}
    assert "BG: no probe sequence (conditions bg-01, bg-02); left out of the mean" in result["missing"]
    assert "NM: no sequence of nm-06; the others (2) are used" in result["missing"]
    assert any(sentence.startswith("NM: no sequence at view 090") for sentence in result["missing"])


def test_equal_distances_go_to_the_lower_gallery_position():
    conditions, views = ["nm-01", "nm-01", "nm-05"], ["000", "000", "090"]
    first = evaluate(on_a_line(-1, 1, 0), ["a", "b", "a"], conditions, views, "casia-b")
    second = evaluate(on_a_line(-1, 1, 0), ["b", "a", "a"], conditions, views, "casia-b")
    assert (first["headline"]["NM"], second["headline"]["NM"]) == (100.0, 0.0)


def test_oumvlp_probes_without_a_gallery_are_errors_unless_dropped_by_name():
    subjects = ["1", "2", "1", "2", "3"]
    conditions = ["01", "01", "00", "00", "00"]
    views = ["000", "000", "015", "015", "015"]
    data = (on_a_line(0, 9, 1, 8, 4), subjects, conditions, views)
    kept, dropped = evaluate(*data, "oumvlp"), evaluate(*data, "oumvlp-matched")
    assert kept["headline"] == {"rank-1": pytest.approx(200 / 3)}
    assert dropped["headline"] == {"rank-1": 100.0}
    assert "dropped" in dropped["note"]
    assert any("1 of 3 trials" in sentence and "counted as errors" in sentence for sentence in kept["missing"])


def test_grew_takes_each_subjects_first_sequence_as_gallery_and_says_it_is_unofficial():
    subjects, conditions = ["1", "1", "2", "2"], ["b", "a", "d", "c"]
    result = evaluate(on_a_line(0, 1, 10, 2), subjects, conditions, ["0"] * 4, "grew")
    # Gallery: a (at 1) of 1 and c (at 2) of 2; probe b at 0 is right, probe d at 10 is right.
    assert result["headline"] == {"rank-1": 100.0, "rank-5": 100.0, "rank-10": 100.0, "rank-20": 100.0}
    assert result["note"].startswith("Unofficial")


def test_one_view_only_has_no_result_across_views():
    result = evaluate(on_a_line(0, 0), ["a", "a"], ["nm-01", "nm-05"], ["000", "000"], "casia-b")
    assert result["headline"]["mean"] is None
    assert result["headline_including_identical_view"]["NM"] == 100.0
    assert any(sentence.startswith("NM: no gallery sequence at a view other") for sentence in result["missing"])


def test_torch_and_half_precision_embeddings_are_taken():
    data = ragged(3, 1.0)
    assert evaluate(torch.from_numpy(data[0]).bfloat16(), *data[1:], "casia-b") == evaluate(*data, "casia-b")


def test_progress_ends_at_all_probes():
    data, seen = ragged(1, 1.0), []
    evaluate(*data, "casia-b", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (54, 54)


def naive_hardest(embeddings, subjects, conditions, views):
    gallery = [j for j, c in enumerate(conditions) if c in CONDITIONS[:4]]
    worst = {}
    for i, condition in enumerate(conditions):
        if condition in CONDITIONS[:4]:
            continue
        far = [(naive_distance(embeddings[i], embeddings[j]), j) for j in gallery if views[j] != views[i]]
        right = min((x for x in far if subjects[x[1]] == subjects[i]), default=None)
        taken = min((x for x in far if subjects[x[1]] != subjects[i]), default=None)
        if right and taken and taken < right:
            pair = (subjects[i], subjects[taken[1]])
            case = (float(taken[0]) - float(right[0]), i, taken[1], right[1])
            worst[pair] = min(worst.get(pair, case), case)
    return [case[1:] for case in sorted(worst.values())]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 1.0]), st.sampled_from([2, 1000]))
def test_hardest_equals_the_naive_loop(seed, keep, levels):
    data = ragged(seed, keep, levels)
    found = hardest(*data, "casia-b", 4)
    assert [(c["probe"], c["taken_for"], c["right"]) for c in found] == naive_hardest(*data)[:4]
    for case in found:
        assert case["distance_taken"] == naive_distance(data[0][case["probe"]], data[0][case["taken_for"]])
        assert case["distance_right"] == naive_distance(data[0][case["probe"]], data[0][case["right"]])


def test_mistakes_name_the_value_and_the_remedy():
    data = ragged(0, 1.0)
    with pytest.raises(ValueError, match=r"shape \(90, 6\).*\[sequences, parts, channels\]"):
        evaluate(data[0].reshape(90, 6), *data[1:], "casia-b")
    with pytest.raises(ValueError, match="'subjects': 89"):
        evaluate(data[0], data[1][:-1], *data[2:], "casia-b")
    spoilt = data[0].copy()
    spoilt[7, 1, 2] = np.nan
    with pytest.raises(ValueError, match=f"sequence 7 .{data[1][7]}-{data[2][7]}-{data[3][7]}. holds a NaN"):
        evaluate(spoilt, *data[1:], "casia-b")


def methods(trained, untrained, gei):
    made = []
    for kind, rate in (("trained", trained), ("untrained", untrained), ("gei", gei)):
        made.append({"name": f"the {kind}", "kind": kind, "metrics": {"headline": {"NM": 1.0, "mean": rate}}})
    return made


def test_the_verdict_asks_for_both_baselines_to_be_beaten():
    assert metrics.verdict(methods(50.0, 20.0, 40.0)).passed is True
    partly = methods(50.0, 20.0, 40.0)
    partly[2]["metrics"]["headline"]["NM"] = 2.0
    assert metrics.verdict(partly).text.endswith("and the gei (40.0 %), but is behind one of them on NM.")
    lost = metrics.verdict(methods(50.0, 20.0, 50.0))
    assert lost.passed is False
    assert "does not beat the gei (50.0 %)" in lost.text
    assert metrics.verdict(methods(None, 20.0, 50.0)).passed is None
    assert metrics.verdict(methods(50.0, None, None)).passed is None
    assert metrics.score({"headline": {"rank-1": 3.0, "rank-5": 9.0}}) == 3.0


def test_a_protocol_object_of_ones_own():
    rules = Protocol.model_validate(
        {"name": "mine", "gallery": {"conditions": ["day1*"]}, "probes": {"boots": {"conditions": ["day2*"]}}}
    )
    result = evaluate(on_a_line(0, 9, 1), ["a", "b", "a"], ["day1", "day1x", "day2"], ["v"] * 3, rules)
    assert result["headline"] == {"rank-1": 100.0}
    assert result["protocol"] == "mine"
