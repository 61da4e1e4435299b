"""GREW's submission: the right subjects in the right form, and a validator that names every fault."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline import submission
from pipeline.cli import app
from pipeline.metrics import evaluate, protocols


@pytest.fixture
def data():
    """Twelve people with two gallery walks each, and three probes of people only the server knows."""
    rng = np.random.default_rng(0)
    who = rng.standard_normal((12, 2, 4)).astype(np.float32)
    subjects = [f"{s:05}" for s in range(1, 13) for _ in range(2)] + ["probe"] * 3
    conditions = ["01", "02"] * 12 + ["03"] * 3
    views = [f"g{i:02}" for i in range(24)] + ["video-b", "video-a", "video-c"]
    embeddings = np.concatenate([np.repeat(who, 2, 0) + 0.01, who[[4, 0, 11]]])
    return embeddings, subjects, conditions, views


@pytest.fixture
def rules():
    found = protocols.load("grew").submission
    assert found is not None
    return found


def test_the_nearest_gallery_subjects_as_numbers(data, rules):
    ranked = submission.rank(*data, rules)
    assert {video: row[:2] for video, row in ranked.items()} == {
        "video-b": [5, 5],
        "video-a": [1, 1],
        "video-c": [12, 12],
    }
    assert all(len(row) == 20 for row in ranked.values())
    probes = data[0][24:].astype(np.float64)
    for row, video in zip(probes, ("video-b", "video-a", "video-c"), strict=True):
        far = np.sqrt(((row - data[0][:24]) ** 2).sum(2)).mean(1)
        assert ranked[video] == [int(data[1][i]) for i in np.argsort(far.astype(np.float32), kind="stable")[:20]]


def test_the_zip_is_as_the_server_takes_it_and_passes_the_validator(data, rules, tmp_path):
    ranked = submission.rank(*data, rules)
    path = submission.write(tmp_path / "submission.zip", ranked)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["submission.csv"]
        lines = list(csv.reader(io.StringIO(archive.read("submission.csv").decode())))
    assert lines[0] == ["videoId", *(f"rank{k}" for k in range(1, 21))]
    assert {line[0]: [int(field) for field in line[1:]] for line in lines[1:]} == ranked
    assert submission.faults(path, {"video-a", "video-b", "video-c"}, range(1, 13)) == []
    assert path.read_bytes() == submission.write(tmp_path / "again.zip", ranked).read_bytes()


GOOD = ["videoId," + ",".join(f"rank{k}" for k in range(1, 21)), "a," + ",".join("1" * 20)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["video," + GOOD[0][8:], GOOD[1]], "line 1 must be 'videoId,rank1"),
        ([], "line 1 must be"),
        ([GOOD[0], GOOD[1] + ",1"], "line 2: 22 fields instead of 21"),
        ([*GOOD, GOOD[1]], "line 3: video 'a' stands twice"),
        ([GOOD[0], GOOD[1][:-1] + "x"], "line 2: 'x' is no subject number"),
        ([GOOD[0], GOOD[1][:-1] + "1.0"], "line 2: '1.0' is no subject number"),
        ([GOOD[0], GOOD[1][:-1] + "7"], "line 2: subject 7 is not in the gallery"),
        (GOOD[:1], "1 videos are missing, the first is 'a'"),
        ([*GOOD, "b" + GOOD[1][1:]], "1 videos are no probe of the data, the first is 'b'"),
    ],
)
def test_the_validator_names_line_and_fault(tmp_path, lines, message):
    path = tmp_path / "submission.csv"
    path.write_text("\n".join(lines) + "\n" if lines else "")
    assert any(message in fault for fault in submission.faults(path, {"a"}, {1}))


def test_the_validator_takes_a_good_csv_and_refuses_other_files(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("\n".join(GOOD) + "\n")
    assert submission.faults(path, {"a"}, {1}) == []
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.write(path, "folder/submission.csv")
    assert submission.faults(tmp_path / "other.zip") == [
        "the zip must hold submission.csv alone, it holds folder/submission.csv"
    ]
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04")
    assert "cannot be read" in submission.faults(tmp_path / "torn.zip")[0]
    with pytest.raises(FileNotFoundError, match="no submission"):
        submission.faults(tmp_path / "none.zip")
    path.write_text("\n".join(["videoId", *["x"] * 500]))
    assert len(submission.faults(path)) == 21


def test_by_command_line(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("\n".join(GOOD) + "\n")
    result = CliRunner().invoke(app, ["check-submission", str(path)])
    assert (result.exit_code, "nothing wrong" in result.output) == (0, True)
    path.write_text("\n".join([*GOOD, GOOD[1]]) + "\n")
    result = CliRunner().invoke(app, ["check-submission", str(path)])
    assert (result.exit_code, "stands twice" in result.output) == (1, True)


def test_what_cannot_be_submitted_is_refused(data, rules):
    embeddings, subjects, conditions, views = data
    gallery_only = [part[:24] for part in data]
    assert submission.rank(*gallery_only, rules) == {}
    with pytest.raises(ValueError, match="20 gallery sequences, the data hold 1"):
        submission.rank(*[part[23:] for part in data], rules)
    with pytest.raises(ValueError, match="gallery subject 'x' is none"):
        submission.rank(embeddings, ["x", *subjects[1:]], conditions, views, rules)
    with pytest.raises(ValueError, match="'video-b' is there twice"):
        submission.rank(embeddings, subjects, conditions, [*views[:25], "video-b", "video-c"], rules)


def test_the_local_stand_in_leaves_the_servers_probes_out(data):
    figures = evaluate(*data, "grew")
    assert figures["counts"] == {"probe": {"probe": 12}, "gallery": 12, "unused": 3}
    assert figures["note"].startswith("Unofficial")
    assert "unused: 3 sequences are neither gallery nor probe: 03 (3)" in figures["missing"]


def test_names_of_a_packed_grew(tmp_path: Path):
    import cv2

    from shards.pack import pack
    from tests.shards.raw_tree import draw_frame

    for place in ("gallery/00001/s1", "gallery/00001/s2", "gallery/00002/s3", "probe/v1"):
        folder = tmp_path / "raw" / "test" / place
        folder.mkdir(parents=True)
        assert cv2.imwrite(str(folder / "00001.png"), draw_frame(1, 64, 64))
    pack("grew", tmp_path / "raw", tmp_path / "set", workers=1, progress=False)
    assert submission.known_names(str(tmp_path / "set")) == ({"v1"}, {1, 2})
