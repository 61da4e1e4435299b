from pathlib import Path

import cv2
import numpy as np
import pytest

import shards
from shards.pack import pack
from shards.skips import Skips
from shards.sources import LAYOUTS, RawSequence
from shards.sources.grew import OTHER_FOLDER, OTHER_SIZE, SIDE_FILE

GREW = LAYOUTS["grew"]


def write_frames(folder: Path, num_frames: int, seed: int = 0) -> np.ndarray:
    """64 x 64 frames as GREW ships them, among its side files; returns them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    frames = (rng.random((num_frames, 64, 64)) > 0.9).astype(np.uint8) * 255
    for i, frame in enumerate(frames, 1):
        cv2.imwrite(str(folder / f"{i:05d}.png"), frame)
        (folder / f"{i:05d}_2d_pose.txt").write_text("1,2,3")
        (folder / f"{i:05d}_3d_pose.txt").write_text("1,2,3")
    cv2.imwrite(str(folder / f"{folder.name}_gei.png"), frames.mean(0).astype(np.uint8))
    return frames


@pytest.fixture(scope="module")
def raw_grew(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grew")
    write_frames(root / "train/00001/4XPn5Z28", 3, 1)
    write_frames(root / "train/00001/5TXe8svE", 2, 2)
    # Made in an order that is not the sorted one, which a directory need not list by.
    for number, name in enumerate(("t16VLaQf", "79XJefi8", "zzzzzzzz")):
        write_frames(root / "test/gallery/00001" / name, 2 + number, 3 + number)
    write_frames(root / "test/probe/01DdvEHX", 4, 9)
    write_frames(root / "test/probe/01aaaaaa", 1, 10)
    return root


def discover(root: Path) -> tuple[list[RawSequence], Skips]:
    skips = Skips()
    return list(GREW.discover(root, skips)), skips


def test_names_follow_opengait_and_gallery_goes_by_sorted_name(raw_grew: Path) -> None:
    sequences, skips = discover(raw_grew)
    assert sequences == [
        ("00001train", "00", "4XPn5Z28", "train/00001/4XPn5Z28", 3),
        ("00001train", "00", "5TXe8svE", "train/00001/5TXe8svE", 2),
        ("00001", "01", "79XJefi8", "test/gallery/00001/79XJefi8", 3),
        ("00001", "02", "t16VLaQf", "test/gallery/00001/t16VLaQf", 2),
        ("00001", "03", "zzzzzzzz", "test/gallery/00001/zzzzzzzz", 4),
        ("probe", "03", "01DdvEHX", "test/probe/01DdvEHX", 4),
        ("probe", "03", "01aaaaaa", "test/probe/01aaaaaa", 1),
    ]
    num_frames = sum(sequence.num_raw_frames for sequence in sequences)
    assert skips.counts == {SIDE_FILE: 2 * num_frames + len(sequences)}


def test_frames_stay_untouched(raw_grew: Path, tmp_path: Path) -> None:
    sequences, _ = discover(raw_grew)
    for sequence in sequences:
        names = sorted(p for p in (raw_grew / sequence.path).glob("*.png") if "gei" not in p.name)
        expected = np.stack([cv2.imread(str(name), cv2.IMREAD_GRAYSCALE) for name in names])
        np.testing.assert_array_equal(GREW.read(raw_grew, sequence, Skips()), expected)
    write_frames(tmp_path / "train/00002/abc", 2)
    cv2.imwrite(str(tmp_path / "train/00002/abc/00001.png"), np.full((128, 88), 255, np.uint8))
    (found,), _ = discover(tmp_path)
    skips = Skips()
    assert GREW.read(tmp_path, found, skips).shape == (1, 64, 64)
    assert list(skips) == [(OTHER_SIZE, 1, ["train/00002/abc/00001.png"])]


def test_raggedness_is_counted(tmp_path: Path) -> None:
    write_frames(tmp_path / "train/00001/abc", 1)
    (tmp_path / "train/00001/empty").mkdir()
    (tmp_path / "distractor/x").mkdir(parents=True)
    (tmp_path / "test/other").mkdir(parents=True)
    (tmp_path / "train/00001/abc/notes.doc").touch()
    sequences, skips = discover(tmp_path)
    assert len(sequences) == 1
    assert skips.examples == {
        OTHER_FOLDER: ["distractor", "test/other"],
        SIDE_FILE: ["train/00001/abc/abc_gei.png"],
        "file is no PNG": ["train/00001/abc/notes.doc"],
        "sequence folder without a PNG": ["train/00001/empty"],
    }


def test_a_level_off_is_told(raw_grew: Path) -> None:
    with pytest.raises(ValueError, match=r"expected train/SUBJECT/SEQUENCE.*less deep than expected"):
        discover(raw_grew / "train")


def test_packed_by_folder(raw_grew: Path, tmp_path: Path) -> None:
    summary = pack("grew", raw_grew, tmp_path / "set", workers=1, progress=False)
    assert summary.splits["train"] == {"subjects": 1, "sequences": 2, "frames": 5}
    assert summary.splits["test"] == {"subjects": 2, "sequences": 5, "frames": 14}
    rows = shards.open(tmp_path / "set").index.to_pylist()
    assert {row["key"]: row["split"] for row in rows}["probe-03-01DdvEHX"] == "test"
