"""OpenGait's pickles of any data set: `subject/condition/view/view.pkl`, one uint8 array a sequence.

Arrays are `[frames, 64, 64]`, or `[frames, 64, 44]` where somebody cut them already; those get their ten
empty columns on each side back, and are counted. Frames were normalised when they were pickled and go in as
they are. Which subjects train is not in the files: a partition must be named.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.sequence import part_fault
from shards.silhouettes import HEIGHT, NETWORK_WIDTH, WIDTH, ZERO_BYTES, ZERO_ONE
from shards.skips import Skips
from shards.sources.arrays import NotAnArrayError, load_pixels
from shards.sources.layout import (
    Layout,
    RawSequence,
    check_root,
    discover_tree,
    explain_mismatch,
    found_or_explained,
    list_files,
    stack,
)

NO_PICKLE = "file is no pickle"
WITHOUT_PICKLE = "sequence folder without a pickle"
SEVERAL = "folder with several pickles, none called VIEW.pkl"
_MARGIN = (WIDTH - NETWORK_WIDTH) // 2
PADDED = f"packed, but {NETWORK_WIDTH} columns wide: {_MARGIN} empty ones put back on each side"

_FRAME_BYTES = HEIGHT * WIDTH


def discover(root: Path, skips: Skips) -> Iterator[RawSequence]:
    """Every `subject/condition/view` folder under root with a pickle; frames are judged by its size."""
    check_root(root)
    found = discover_tree(root, own := Skips(), _find_pickle, _name_fault, _name_fault)
    return found_or_explained(found, lambda: _explain(root), skips, own)


def _name_fault(name: str) -> str | None:
    return None if (fault := part_fault(name)) is None else f"folder's name {fault}"


def _find_pickle(root: Path, subject: str, condition: str, view: str, path: str, skips: Skips) -> RawSequence | None:
    names = list_files(root / path)
    pickles = [name for name in names if name.endswith(".pkl")]
    if others := [name for name in names if not name.endswith(".pkl")]:
        skips.add(NO_PICKLE, f"{path}/{others[0]}", len(others))
    if not pickles:
        skips.add(WITHOUT_PICKLE, path)
        return None
    if len(pickles) > 1 and f"{view}.pkl" not in pickles:
        skips.add(SEVERAL, path)
        return None
    name = pickles[0] if len(pickles) == 1 else f"{view}.pkl"
    size = os.stat(root / path / name).st_size  # noqa: PTH116 - hot
    return RawSequence(subject, condition, view, f"{path}/{name}", max(1, size // _FRAME_BYTES))


def read(root: Path, sequence: RawSequence, skips: Skips) -> np.ndarray:
    """The pickle's frames: uint8 [frames, 64, 64], none of them when it holds anything else."""
    data = (root / sequence.path).read_bytes()
    try:
        if not data:
            raise NotAnArrayError(ZERO_BYTES)
        pixels = load_pixels(data)
        if pixels.ndim != 3 or pixels.shape[1:] not in {(HEIGHT, WIDTH), (HEIGHT, NETWORK_WIDTH)}:
            sizes = ", ".join(map(str, ("frames", *pixels.shape[1:]) if pixels.ndim == 3 else pixels.shape))
            raise NotAnArrayError(
                f"array is [{sizes}], not [frames, {HEIGHT}, {WIDTH}] or [frames, {HEIGHT}, {NETWORK_WIDTH}]"
            )
        if pixels.size and pixels.max() == 1:
            raise NotAnArrayError(ZERO_ONE)
    except NotAnArrayError as error:
        skips.add(str(error), sequence.path)
        return stack([])
    if pixels.shape[2] == NETWORK_WIDTH:
        skips.add(PADDED, sequence.path)
        return np.pad(pixels, ((0, 0), (0, 0), (_MARGIN, _MARGIN)))
    return pixels


def _explain(root: Path) -> str:
    expected = "SUBJECT/CONDITION/VIEW/VIEW.pkl such as 001/nm-01/090/090.pkl"
    return explain_mismatch(root, "opengait", expected, 3, ".pkl")


OPENGAIT = Layout(name="opengait", partition=None, discover=discover, read=read)
