from pathlib import Path

import pytest

from shards import partition


def test_official_partitions() -> None:
    assert partition.names() == ["casia-b", "gait3d", "grew", "oumvlp"]
    casia = partition.load("casia-b")
    assert (len(casia.train), len(casia.test)) == (74, 50)
    assert casia.split_of("074") == "train" and casia.split_of("075") == "test" and casia.split_of("125") is None
    oumvlp = partition.load("oumvlp")
    assert (len(oumvlp.train), len(oumvlp.test)) == (5_153, 5_154)
    assert [oumvlp.split_of(s) for s in ("00001", "00002", "10305", "10306", "10307")] == [
        "train", "test", "train", "test", "test",
    ]  # fmt: skip


def test_file_keeps_ids_as_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: [010, '011', ann]\ntest:\n- 08..10\n")
    mine = partition.load(path)
    assert mine.train == {"010", "011", "ann"} and mine.test == {"08", "09", "10"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [001..003]\ntest: [003]", r"1 subjects stand in both train and test \(003\)"),
        ("train: [001]", "exactly the lists `train` and `test`"),
        ("- 001", "exactly the lists"),
        ("train: 001\ntest: []", "`train` must be a list"),
        ("train: [{a: 1}]\ntest: []", "an entry is a subject or a range"),
        ("train: [009..001]\ntest: []", "'009..001', which is no range"),
        ("train: [1..2 step 0]\ntest: []", "which is no range"),
        ("train: [", "is neither YAML nor JSON"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        partition.parse("mine", text)


def test_unknown_name() -> None:
    with pytest.raises(
        ValueError, match=r"'casia-c' is neither a known name \(casia-b, gait3d, grew, oumvlp\) nor a file"
    ):
        partition.load("casia-c")


def test_published_json(tmp_path: Path) -> None:
    path = tmp_path / "Gait3D.json"
    path.write_text('{"TRAIN_SET": ["0000"], "TEST_SET": [ "0002" ], "PROBE_SET": ["0002-camid33_videoid2-seq0"]}')
    found = partition.load(path)
    assert (found.train, found.test) == ({"0000"}, {"0002"})
    assert found.probes == {"0002-camid33_videoid2-seq0"}
    path.write_text('{"TRAIN_SET": ["0000"]}')
    with pytest.raises(ValueError, match="or TRAIN_SET and TEST_SET"):
        partition.load(path)


def test_grew_keeps_equal_numbers_apart() -> None:
    grew = partition.load("grew")
    assert len(grew.train) == 20_000 and len(grew.test - {"probe"}) == 6_000
    assert [grew.split_of(s) for s in ("00001train", "00001", "probe", "06001", "20001train")] == [
        "train", "test", "test", None, None,
    ]  # fmt: skip


def test_gait3d_is_every_subject_once() -> None:
    gait3d = partition.load("gait3d")
    assert (len(gait3d.train), len(gait3d.test)) == (3_000, 1_000)
    assert gait3d.train | gait3d.test == {f"{number:04d}" for number in range(4_000)}
    # The first and last of the published lists, TEST_SET and TRAIN_SET, which are not in order.
    assert {"0002", "0007", "1986", "0094", "1334", "3070", "3993", "1999", "3064"} <= gait3d.test
    assert {"1234", "1512", "0624", "3248", "3998", "3999", "3362", "1128"} <= gait3d.train
