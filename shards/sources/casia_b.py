"""CASIA-B as its authors ship the silhouettes: `001/nm-01/090/001-nm-01-090-001.png`, 320 x 240, full frame.

Conditions are nm-01..06 (normal), bg-01..02 (bag), cl-01..02 (coat); views are 000 to 180 degrees by 18.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from shards.sequence import part_fault
from shards.skips import Skips
from shards.sources.layout import (
    Layout,
    RawSequence,
    check_root,
    explain_mismatch,
    list_frames,
    read_png_folder,
    subfolders,
)

# Wider than the official names, so that one's own recordings in this layout need no new one.
_CONDITION = re.compile(r"[a-z]{2}-\d{2}")
_VIEW = re.compile(r"\d{3}")


def discover(root: Path, skips: Skips) -> Iterator[RawSequence]:
    """Every `subject/condition/view` folder under root that holds a PNG."""
    check_root(root)
    num_found = 0
    found_skips = Skips()
    for subject, condition, view in _walk(str(root), found_skips):
        path = f"{subject}/{condition}/{view}"
        frames, others = list_frames(root / path)
        if others:
            found_skips.add("file is no PNG", f"{path}/{others[0]}", len(others))
        if not frames:
            found_skips.add("sequence folder without a PNG", path)
            continue
        num_found += 1
        yield RawSequence(subject, condition, view, path, len(frames))
    if num_found == 0:
        raise ValueError(
            explain_mismatch(root, "casia-b", "SUBJECT/CONDITION/VIEW/*.png such as 001/nm-01/090/*.png", 3)
        )
    skips.merge(found_skips)


def _walk(root: str, skips: Skips) -> Iterator[tuple[str, str, str]]:
    for subject in subfolders(root, skips, root):
        if (fault := part_fault(subject)) is not None:
            skips.add(f"subject folder's name {fault}", subject)
            continue
        for condition in subfolders(os.path.join(root, subject), skips, root):  # noqa: PTH118 - hot
            if not _CONDITION.fullmatch(condition):
                skips.add("folder's name is no condition such as nm-01", f"{subject}/{condition}")
                continue
            for view in subfolders(os.path.join(root, subject, condition), skips, root):  # noqa: PTH118 - hot
                if _VIEW.fullmatch(view):
                    yield subject, condition, view
                else:
                    skips.add("folder's name is no view such as 090", f"{subject}/{condition}/{view}")


CASIA_B = Layout(name="casia-b", partition="casia-b", discover=discover, read=read_png_folder)
