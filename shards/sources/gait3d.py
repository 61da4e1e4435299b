"""Gait3D's silhouettes: `2D_Silhouettes/0000/camid0_videoid2/seq0/*.png`, cut to the person, of any size.

Condition is `camid0_videoid2`, view is `seq0`: keys are written as Gait3D's own list of probes writes them,
`0002-camid33_videoid2-seq0`.
"""

from collections.abc import Iterator
from pathlib import Path

from shards.skips import Skips
from shards.sources.layout import (
    Layout,
    RawSequence,
    check_root,
    discover_tree,
    explain_mismatch,
    find_png_folder,
    found_or_explained,
    name_like,
    read_png_folder,
)

FOLDER = "2D_Silhouettes"

_IS_CONDITION = name_like(r"camid\d+_videoid\d+", "camera and video", "camid0_videoid2")
_IS_VIEW = name_like(r"seq\d+", "sequence", "seq0")


def discover(root: Path, skips: Skips) -> Iterator[RawSequence]:
    """Every `subject/camera_video/seq` folder that holds a PNG; root is `2D_Silhouettes` or what holds it."""
    check_root(root)
    below = FOLDER if (root / FOLDER).is_dir() else ""
    found = discover_tree(root, own := Skips(), find_png_folder, _IS_CONDITION, _IS_VIEW, below)
    return found_or_explained(found, lambda: _explain(root), skips, own)


def _explain(root: Path) -> str:
    expected = "SUBJECT/CAMERA_VIDEO/SEQUENCE/*.png such as 0000/camid0_videoid2/seq0/*.png"
    return explain_mismatch(root, "gait3d", expected, 3)


GAIT3D = Layout(name="gait3d", partition="gait3d", discover=discover, read=read_png_folder)
