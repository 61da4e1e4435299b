"""Protocols as data: the benchmarks' own, a user's own, and everything that can be wrong with one."""

import pytest

from pipeline.metrics import evaluate
from pipeline.metrics.protocols import Protocol, load, names, read_probes, split
from pipeline.metrics.published import published


def test_the_protocols_that_come_with_the_package():
    assert names() == ["casia-b", "gait3d", "grew", "oumvlp", "oumvlp-matched"]
    loaded = [load(name) for name in names()]
    assert [protocol.name for protocol in loaded] == names()
    assert [protocol.across_views for protocol in loaded] == [True, False, False, True, True]
    assert load(loaded[0]) is loaded[0]


def test_a_users_own_data_in_a_few_lines(tmp_path):
    path = tmp_path / "office.yaml"
    path.write_text(
        "name: office\ngallery: rest\nranks: [1, 5]\n"
        "probes:\n  boots: {conditions: ['boots-*']}\n  side: {views: [side]}\n"
    )
    subjects, conditions, views = (
        ["a", "a", "b", "b"],
        ["day-1", "boots-1", "day-1", "day-2"],
        ["f", "f", "f", "side"],
    )
    chosen = split(load(path), subjects, conditions, views)
    assert chosen.gallery.tolist() == [0, 2]
    assert {group: rows.tolist() for group, rows in chosen.probes.items()} == {"boots": [1], "side": [3]}
    assert load(str(path)) == load(path)


def test_casia_b_split_and_what_is_unused():
    conditions = ["nm-01", "nm-04", "nm-05", "bg-02", "xx-01", "xx-01"]
    chosen = split(load("casia-b"), ["a"] * 6, conditions, ["000", "018", "000", "000", "000", "018"])
    assert chosen.gallery.tolist() == [0, 1]
    assert {g: r.tolist() for g, r in chosen.probes.items()} == {"NM": [2], "BG": [3], "CL": []}
    assert chosen.num_unused == 2
    assert "unused: 2 sequences are neither gallery nor probe: xx-01 (2)" in chosen.missing
    assert "gallery: no sequence of nm-02, nm-03; the others (2) are used" in chosen.missing


def test_gait3d_needs_its_list_and_names_what_is_not_there():
    data = (["1", "1", "2"], ["camid0", "camid1", "camid0"], ["seq0"] * 3)
    with pytest.raises(ValueError, match=r"'gait3d' takes its probes from a list.*PROBE_SET"):
        split(load("gait3d"), *data)
    chosen = split(load("gait3d"), *data, ["1-camid0-seq0", "9-camid0-seq0"])
    assert (chosen.probes["probe"].tolist(), chosen.gallery.tolist()) == ([0], [1, 2])
    assert chosen.missing == ["1 of 2 listed probes are not in the data, the first is 9-camid0-seq0"]


def test_a_list_of_probes_is_read_as_published_or_plain(tmp_path):
    path = tmp_path / "Gait3D.json"
    for text in (
        '{"TRAIN_SET": ["0001"], "PROBE_SET": ["0010-camid1_videoid2-seq0"]}',
        "probes: [0010-camid1_videoid2-seq0]",
        "- 0010-camid1_videoid2-seq0",
    ):
        path.write_text(text)
        assert read_probes(path) == ["0010-camid1_videoid2-seq0"]
    for text in ("{}", "probes: []", "probes: [[1]]", "just words"):
        path.write_text(text)
        with pytest.raises(ValueError, match="holds no list of keys"):
            read_probes(path)
    path.write_text("[")
    with pytest.raises(ValueError, match="neither JSON nor YAML"):
        read_probes(path)
    with pytest.raises(FileNotFoundError, match="PROBE_SET"):
        read_probes(tmp_path / "none.json")


def test_subjects_can_be_named_and_left_out():
    rules = Protocol.model_validate(
        {
            "name": "x",
            "gallery": {"except_subjects": ["guest-*"]},
            "probes": {"guests": {"subjects": ["guest-*"], "except_subjects": ["guest-9"]}},
        }
    )
    chosen = split(rules, ["ann", "guest-1", "guest-9", "bob"], ["c"] * 4, ["v"] * 4)
    assert chosen.gallery.tolist() == [0, 3]
    assert chosen.probes["guests"].tolist() == [1]
    assert chosen.num_unused == 1


def test_no_gallery_names_what_is_there():
    with pytest.raises(
        ValueError, match=r"'oumvlp' finds no gallery sequence \(conditions 01\) among 2, .*nm-01, nm-05"
    ):
        split(load("oumvlp"), ["a", "a"], ["nm-01", "nm-05"], ["000", "000"])


def test_a_sequence_cannot_be_gallery_and_probe():
    rules = Protocol.model_validate({"name": "x", "gallery": {}, "probes": {"p": {"conditions": ["c"]}}})
    with pytest.raises(ValueError, match=r"1 sequences are gallery and probe at once, the first is b-c-v"):
        split(rules, ["a", "b"], ["d", "c"], ["v", "v"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: x\nprobes: {p: {condition: [a]}}\n",
            r"gallery: Field required; probes\.p\.condition: Extra inputs",
        ),
        ("name: x\ngallery: rest\nprobes: {mean: {}}\n", "cannot be called mean"),
        ("name: x\ngallery: rest\nprobes: {p: {}}\nranks: [0]\n", "ranks.0"),
        (
            "name: x\ngallery: rest\nprobes: {p: {}}\nprecision: true\nacross_views: true\n",
            "set across_views or precision",
        ),
        ("name: [\n", "is not YAML"),
        ("", "file: Input should be"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_every_error(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.yaml.*{message}"):
        load(path)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="unknown protocol 'casia': use one of casia-b, gait3d"):
        load("casia")
    with pytest.raises(FileNotFoundError, match=r"no\.yaml does not exist"):
        load(tmp_path / "no.yaml")


REAL = {"protocol": "casia-b", "data": {"name": "casia-b", "test_subjects": 50, "test_sequences": 5485}}


def test_the_real_benchmark_stands_beside_the_published_figures():
    figures = published(REAL | {"recipe": {"name": "casia-b"}})
    assert figures.comparable
    assert figures.methods["HSTL (ICCV 2023)"] == {"NM": 98.1, "BG": 95.9, "CL": 88.9, "mean": 94.3}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "mocap-walk"}, "the data set is mocap-walk"),
        ({"test_subjects": 11}, "11 test subjects, the benchmark has 50"),
        ({"test_sequences": 5500}, "5,500 test sequences, the benchmark has 5,485"),
        ({"recipe": {"name": "demo"}}, "the recipe is the demo's"),
        ({"recipe": {"name": "casia-b", "evaluate": {"distance": "cosine"}}}, "distances are cosine"),
        ({"other_than_trained_on": True}, "the network was trained on other data"),
        ({"frames_limit": {"frames": 9, "sequences_cut": 3}}, "sequences were cut by a frames limit"),
    ],
)
def test_anything_else_does_not(change, reason):
    recipe = change.pop("recipe", {"name": "casia-b"})
    figures = published({"protocol": "casia-b", "data": REAL["data"] | change, "recipe": recipe})
    assert not figures.comparable
    assert figures.reason.startswith("Not comparable with published figures")
    assert reason in figures.reason


def test_grew_is_never_comparable_and_an_own_protocol_has_nothing_published():
    grew = published({"protocol": "grew", "data": {"name": "grew", "test_subjects": 6000}})
    assert not grew.comparable
    assert "server" in grew.reason
    assert not published({"protocol": "office", "data": {}}).methods


def test_published_names_are_those_of_the_headline():
    import numpy as np

    one = np.zeros((2, 1, 1), np.float32)
    for protocol, conditions in (
        ("casia-b", ["nm-01", "nm-05"]),
        ("oumvlp", ["01", "00"]),
        ("gait3d", ["a", "b"]),
    ):
        headline = evaluate(one, ["1", "1"], conditions, ["0", "0"], protocol, probes=["1-b-0"])["headline"]
        for row in published({"protocol": protocol}).methods.values():
            assert row.keys() <= headline.keys()
