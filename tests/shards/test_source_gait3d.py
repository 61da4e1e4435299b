from pathlib import Path

import pytest

from shards.skips import Skips
from shards.sources import LAYOUTS, RawSequence
from tests.shards.raw_tree import write_sequence

GAIT3D = LAYOUTS["gait3d"]


def discover(root: Path) -> tuple[list[RawSequence], Skips]:
    skips = Skips()
    return list(GAIT3D.discover(root, skips)), skips


def test_root_is_the_folder_of_silhouettes_or_what_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "2D_Silhouettes"
    write_sequence(folder / "0000/camid0_videoid2/seq0", 3)
    write_sequence(folder / "0002/camid33_videoid2/seq1", 1)
    inside, _ = discover(folder)
    above, skips = discover(tmp_path)
    assert not skips
    assert [s[:3] for s in inside] == [s[:3] for s in above] == [
        ("0000", "camid0_videoid2", "seq0"),
        ("0002", "camid33_videoid2", "seq1"),
    ]  # fmt: skip
    for root, sequences in ((folder, inside), (tmp_path, above)):
        assert GAIT3D.read(root, sequences[0], Skips()).shape == (3, 64, 64)


def test_raggedness_is_counted(tmp_path: Path) -> None:
    write_sequence(tmp_path / "0000/camid0_videoid2/seq0", 1)
    (tmp_path / "0000/camid0_videoid2/seq1").mkdir()
    (tmp_path / "0000/camid0_videoid2/other").mkdir()
    (tmp_path / "0000/smpl").mkdir()
    _, skips = discover(tmp_path)
    assert skips.examples == {
        "sequence folder without a PNG": ["0000/camid0_videoid2/seq1"],
        "folder's name is no sequence such as seq0": ["0000/camid0_videoid2/other"],
        "folder's name is no camera and video such as camid0_videoid2": ["0000/smpl"],
    }


def test_another_layout_is_told(tmp_path: Path) -> None:
    write_sequence(tmp_path / "001/nm-01/090", 1)
    with pytest.raises(ValueError, match=r"expected SUBJECT/CAMERA_VIDEO/SEQUENCE.*the names are not"):
        discover(tmp_path)
    (tmp_path / "p/a/b/c").mkdir(parents=True)
    (tmp_path / "p/a/b/c/c.pkl").write_bytes(b"x")
    with pytest.raises(ValueError, match="These are pickles: name --layout opengait"):
        discover(tmp_path / "p")
