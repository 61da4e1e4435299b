from dataclasses import asdict
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

import shards
from shards.show import LENGTH_BINS, contact_sheet, describe, tile


def test_counts(packed: Path) -> None:
    summary = describe(packed)
    rows = shards.open(packed).index.to_pylist()
    for split, num_subjects in {"train": 5, "test": 3}.items():
        mine = [row for row in rows if row["split"] == split]
        frames = sum(row["frames"] for row in mine)
        assert summary.splits[split] == {"subjects": num_subjects, "sequences": len(mine), "frames": frames}
        assert summary.views[split] == {"000": num_subjects * 3, "090": num_subjects * 3}
        assert summary.conditions[split]["bg-01"] == num_subjects * 2
        lengths = [row["frames"] for row in mine]
        assert summary.lengths[split][:2] == [
            sum(n < 10 for n in lengths),
            sum(10 <= n < 20 for n in lengths),
        ]
        assert len(summary.lengths[split]) == len(LENGTH_BINS)
    assert list(asdict(summary)["splits"]) == ["train", "test"]
    console = Console(file=StringIO(), width=120)
    console.print(summary)
    assert summary.fingerprint in console.file.getvalue() and "bg-01" in console.file.getvalue()


def test_one_sequence(packed: Path, tmp_path: Path) -> None:
    shard_set = shards.open(packed)
    key = shard_set.index["key"][3].as_py()
    path = contact_sheet(packed, tmp_path / "new" / "one.png", [key], num_frames=4)
    expected = tile(shard_set.read([3])[0], 4)
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), expected)


def test_several_sequences(packed: Path, tmp_path: Path) -> None:
    path = contact_sheet(packed, tmp_path / "all.png", num_sequences=5, num_frames=3)
    assert cv2.imread(str(path)).shape[:2] == (5 * 68 + 4, 3 * 68 + 4)


def test_tile_puts_frames_in_reading_order() -> None:
    frames = np.arange(1, 6, dtype=np.uint8).reshape(5, 1, 1) * np.ones((1, 2, 2), np.uint8)
    sheet = tile(frames, 3)
    assert sheet.shape == (2 * 6 + 4, 3 * 6 + 4)
    assert [sheet[4, 4], sheet[4, 10], sheet[4, 16], sheet[10, 4], sheet[10, 10]] == [1, 2, 3, 4, 5]


def test_mistakes(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no sequence '003-nm-01-999'; its keys look like 003-"):
        contact_sheet(packed, tmp_path / "x.png", ["003-nm-01-999"])
    with pytest.raises(ValueError, match=r"x\.jpg is no \.png"):
        contact_sheet(packed, tmp_path / "x.jpg")
