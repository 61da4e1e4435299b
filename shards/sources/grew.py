"""GREW: `train/00001/4XPn5Z28/*.png`, `test/gallery/00001/79XJefi8/*.png`, `test/probe/01DdvEHX/*.png`.

Named as OpenGait names them, so that raw frames and its pickles give the same keys. View is the sequence's
own name; subject and condition say what it is:

    train      subject 00001train   condition 00       the same number is another person in the test set
    gallery    subject 00001        condition 01, 02   the subject's sequences, sorted by name
    probe      subject probe        condition 03       whose they are only GREW's server knows

The local stand-in for the official score takes 01 as gallery and 02 as probe. Frames are 64 x 64 as shipped
and go in untouched; beside them lie gait energy images and poses, which do not.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.silhouettes import HEIGHT, WIDTH
from shards.skips import Skips
from shards.sources.layout import (
    NO_PNG,
    WITHOUT_PNG,
    Layout,
    RawSequence,
    check_root,
    explain_mismatch,
    found_or_explained,
    in_batches,
    list_frames,
    look_in_parallel,
    named_subfolders,
    read_frames,
    stack,
    subfolders,
)

TRAIN, GALLERY, PROBE = "train", "test/gallery", "test/probe"
PROBE_SUBJECT = "probe"
PROBE_CONDITION = "03"

SIDE_FILE = "gait energy image or pose beside the frames"
OTHER_FOLDER = "folder is neither train, test/gallery nor test/probe"
OTHER_SIZE = f"frame is not {HEIGHT} x {WIDTH}"

_GEI = "_gei.png"
_SIDE_FILES = (_GEI, "_2d_pose.txt", "_3d_pose.txt")

Place = tuple[str, list[str]]  # which of the three parts, names of some folders in it


def discover(root: Path, skips: Skips) -> Iterator[RawSequence]:
    """Every sequence folder of train, gallery and probe that holds a PNG; a part may be absent."""
    check_root(root)
    own = Skips()

    def look(place: Place, skips: Skips) -> list[RawSequence]:
        part, names = place
        if part == PROBE:
            return _number(root, part, PROBE_SUBJECT, names, skips)
        found = []
        for subject in names:
            sequences = named_subfolders(f"{root}/{part}/{subject}", skips, str(root), "sequence")
            found.extend(_number(root, f"{part}/{subject}", subject, sequences, skips))
        return found

    found = look_in_parallel(_places(root, own), look, own)
    return found_or_explained(found, lambda: _explain(root), skips, own)


def _places(root: Path, skips: Skips) -> Iterator[Place]:
    _count_other_folders(root, skips)
    for part in (TRAIN, GALLERY, PROBE):
        if (root / part).is_dir():
            what = "sequence" if part == PROBE else "subject"
            for names in in_batches(named_subfolders(f"{root}/{part}", skips, str(root), what)):
                yield part, names


def _count_other_folders(root: Path, skips: Skips) -> None:
    for name in subfolders(str(root), skips, str(root)):
        if name == "test":
            for below in subfolders(f"{root}/test", skips, str(root)):
                if f"test/{below}" not in {GALLERY, PROBE}:
                    skips.add(OTHER_FOLDER, f"test/{below}")
        elif name != TRAIN:
            skips.add(OTHER_FOLDER, name)


def _number(root: Path, folder: str, subject: str, names: list[str], skips: Skips) -> list[RawSequence]:
    """Sequences of one subject, by name, with their conditions."""
    found: list[RawSequence] = []
    for name in names:
        path = f"{folder}/{name}"
        frames, others = list_frames(f"{root}/{path}")
        side_files = [other for other in (*frames, *others) if other.endswith(_SIDE_FILES)]
        strangers = [other for other in others if not other.endswith(_SIDE_FILES)]
        if side_files:
            skips.add(SIDE_FILE, f"{path}/{side_files[0]}", len(side_files))
        if strangers:
            skips.add(NO_PNG, f"{path}/{strangers[0]}", len(strangers))
        num_frames = sum(not frame.endswith(_GEI) for frame in frames)
        if num_frames == 0:
            skips.add(WITHOUT_PNG, path)
        elif folder == PROBE:
            found.append(RawSequence(subject, PROBE_CONDITION, name, path, num_frames))
        elif folder.startswith(TRAIN):
            found.append(RawSequence(f"{subject}{TRAIN}", "00", name, path, num_frames))
        else:
            found.append(RawSequence(subject, f"{len(found) + 1:02d}", name, path, num_frames))
    return found


def read(root: Path, sequence: RawSequence, skips: Skips) -> np.ndarray:
    """Every readable frame as it is, by name: uint8 [frames, 64, 64]."""
    kept = []
    for place, frame in read_frames(root, sequence, skips, lambda name: not name.endswith(_GEI)):
        if frame.shape == (HEIGHT, WIDTH):
            kept.append(frame)
        else:
            skips.add(OTHER_SIZE, place)
    return stack(kept)


def _explain(root: Path) -> str:
    expected = "train/SUBJECT/SEQUENCE/*.png, test/gallery/SUBJECT/SEQUENCE/*.png, test/probe/SEQUENCE/*.png"
    return explain_mismatch(root, "grew", expected, 3)


GREW = Layout(name="grew", partition="grew", discover=discover, read=read)
