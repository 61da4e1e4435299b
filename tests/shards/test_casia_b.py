from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.silhouettes import ALMOST_EMPTY, TORN, ZERO_BYTES
from shards.skips import Skips
from shards.sources import LAYOUTS, RawSequence, find_layout
from tests.shards.raw_tree import write_sequence

CASIA_B = LAYOUTS["casia-b"]


def discover(root: Path) -> tuple[list[RawSequence], Skips]:
    skips = Skips()
    return list(CASIA_B.discover(root, skips)), skips


def test_finds_every_sequence(raw: Path) -> None:
    sequences, skips = discover(raw)
    assert len(sequences) == 8 * 3 * 2 and not skips
    expected = {path.relative_to(raw).as_posix() for path in raw.glob("*/*/*")}
    assert {sequence.path for sequence in sequences} == expected
    for sequence in sequences:
        assert sequence.num_raw_frames == len(list((raw / sequence.path).iterdir()))


def test_passes_over_what_is_none_and_counts_it(tmp_path: Path) -> None:
    write_sequence(tmp_path / "001/nm-01/090", 2)
    (tmp_path / "001/nm-02/090").mkdir(parents=True)
    (tmp_path / "001/background/090").mkdir(parents=True)
    (tmp_path / "001/nm-01/side").mkdir()
    (tmp_path / "00.1").mkdir()
    (tmp_path / "README.txt").touch()
    (tmp_path / "001/nm-01/090/Thumbs.db").touch()
    (tmp_path / "001/nm-01/090/._001.png").touch()
    sequences, skips = discover(tmp_path)
    assert [sequence.path for sequence in sequences] == ["001/nm-01/090"]
    assert {reason: (count, examples) for reason, count, examples in skips} == {
        "sequence folder without a PNG": (1, ["001/nm-02/090"]),
        "folder's name is no condition such as nm-01": (1, ["001/background"]),
        "folder's name is no view such as 090": (1, ["001/nm-01/side"]),
        "subject folder's name holds a dot": (1, ["00.1"]),
        "file where only folders belong": (1, ["README.txt"]),
        "file is no PNG": (1, ["001/nm-01/090/Thumbs.db"]),
    }


def test_reads_frames_by_name_and_says_which_it_dropped(tmp_path: Path) -> None:
    write_sequence(tmp_path / "001/nm-01/090", 5, seed=7)
    names = sorted(path.name for path in (tmp_path / "001/nm-01/090").iterdir())
    folder = tmp_path / "001/nm-01/090"
    whole, _ = discover(tmp_path)
    before = CASIA_B.read(tmp_path, whole[0], Skips())
    assert before.shape == (5, 64, 64)
    (folder / names[0]).write_bytes((folder / names[0]).read_bytes()[:-20])
    (folder / names[2]).write_bytes(b"")
    cv2.imwrite(str(folder / names[3]), np.zeros((60, 80), np.uint8))
    skips = Skips()
    np.testing.assert_array_equal(CASIA_B.read(tmp_path, whole[0], skips), before[[1, 4]])
    assert {reason: (count, examples) for reason, count, examples in skips} == {
        TORN: (1, [f"001/nm-01/090/{names[0]}"]),
        ZERO_BYTES: (1, [f"001/nm-01/090/{names[2]}"]),
        ALMOST_EMPTY: (1, [f"001/nm-01/090/{names[3]}"]),
    }


def test_missing_empty_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        discover(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is empty"):
        discover(tmp_path)
    (tmp_path / "x.tar").touch()
    with pytest.raises(NotADirectoryError, match="must be the folder"):
        discover(tmp_path / "x.tar")
    with pytest.raises(ValueError, match=r"found x\.tar.*archives: unpack them first"):
        discover(tmp_path)


def test_a_level_off_is_told(tmp_path: Path) -> None:
    write_sequence(tmp_path / "set/001/nm-01/090", 1)
    with pytest.raises(ValueError, match=r"expected SUBJECT/CONDITION/VIEW.*deeper than expected.*mean .*/set\?"):
        discover(tmp_path)
    with pytest.raises(ValueError, match=r"less deep than expected; did you mean .*/set, or another layout"):
        discover(tmp_path / "set/001")


def test_another_layout_is_told(tmp_path: Path) -> None:
    write_sequence(tmp_path / "0000/camid0_videoid2/seq0", 1)
    with pytest.raises(ValueError, match=r"found 0000/camid0_videoid2/seq0/.*depth is right, the names are not"):
        discover(tmp_path)


def test_unknown_layout() -> None:
    with pytest.raises(ValueError, match="layout 'casia' is not known; known are: casia-b"):
        find_layout("casia")
