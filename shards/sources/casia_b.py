"""CASIA-B as its authors ship the silhouettes: `001/nm-01/090/001-nm-01-090-001.png`, 320 x 240, full frame.

Conditions are nm-01..06 (normal), bg-01..02 (bag), cl-01..02 (coat); views are 000 to 180 degrees by 18.
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

# Wider than the official names, so that one's own recordings in this layout need no new one.
_IS_CONDITION = name_like(r"[a-z]{2}-\d{2}", "condition", "nm-01")
_IS_VIEW = name_like(r"\d{3}", "view", "090")


def discover(root: Path, skips: Skips) -> Iterator[RawSequence]:
    """Every `subject/condition/view` folder under root that holds a PNG."""
    check_root(root)
    found = discover_tree(root, own := Skips(), find_png_folder, _IS_CONDITION, _IS_VIEW)
    return found_or_explained(found, lambda: _explain(root), skips, own)


def _explain(root: Path) -> str:
    return explain_mismatch(root, "casia-b", "SUBJECT/CONDITION/VIEW/*.png such as 001/nm-01/090/*.png", 3)


CASIA_B = Layout(name="casia-b", partition="casia-b", discover=discover, read=read_png_folder)
