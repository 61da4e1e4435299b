"""OU-MVLP as its authors ship the silhouettes: `Silhouette_090-00/00001/0001.png`, 1280 x 980, full frame.

The first folder names view and sequence: views are 000..090 and 180..270 by 15 degrees, the sequence, 00
(probe) or 01 (gallery), is the condition.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from shards.skips import Skips
from shards.sources.layout import (
    Layout,
    RawSequence,
    check_root,
    explain_mismatch,
    find_png_folder,
    found_or_explained,
    in_batches,
    look_in_parallel,
    named_subfolders,
    read_png_folder,
    subfolders,
)

_WALK = re.compile(r"Silhouette_(\d{3})-(\d{2})")
NO_WALK = "folder's name is no view and sequence such as Silhouette_090-00"


def discover(root: Path, skips: Skips) -> Iterator[RawSequence]:
    """Every `Silhouette_VIEW-SEQUENCE/subject` folder under root that holds a PNG."""
    check_root(root)
    own = Skips()

    def look(place: tuple[str, list[str]], skips: Skips) -> list[RawSequence]:
        walk, subjects = place
        view, condition = _WALK.fullmatch(walk).groups()  # type: ignore[union-attr]
        found = (find_png_folder(root, subject, condition, view, f"{walk}/{subject}", skips) for subject in subjects)
        return [sequence for sequence in found if sequence is not None]

    found = look_in_parallel(_places(root, own), look, own)
    return found_or_explained(found, lambda: _explain(root), skips, own)


def _places(root: Path, skips: Skips) -> Iterator[tuple[str, list[str]]]:
    for walk in subfolders(str(root), skips, str(root)):
        if _WALK.fullmatch(walk):
            for subjects in in_batches(named_subfolders(f"{root}/{walk}", skips, str(root), "subject")):
                yield walk, subjects
        else:
            skips.add(NO_WALK, walk)


def _explain(root: Path) -> str:
    expected = "Silhouette_VIEW-SEQUENCE/SUBJECT/*.png such as Silhouette_090-00/00001/*.png"
    return explain_mismatch(root, "oumvlp", expected, 2)


OUMVLP = Layout(name="oumvlp", partition="oumvlp", discover=discover, read=read_png_folder)
