"""Raw frames -> the field's standard silhouettes, as GaitSet (AAAI 2019) defined them."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from shards import png

HEIGHT = 64
WIDTH = 64
NETWORK_WIDTH = 44
LEAST_PIXEL_SUM = 10_000  # about 39 white pixels: less is no person

ALMOST_EMPTY = "frame almost empty (pixel sum under 10,000)"
ZERO_ONE = "frame's pixels are 0 and 1, not 0 and 255"
UNREADABLE = "frame is no readable PNG"
TORN = "frame's PNG is cut short"
ZERO_BYTES = "frame's file has no bytes"

Sliceable = TypeVar("Sliceable")  # numpy array or torch tensor


def normalise(frames: Iterable[np.ndarray]) -> np.ndarray:
    """uint8 [height, width] each, of any sizes -> uint8 [kept frames, 64, 64].

    Per frame: drop it when its pixels sum to under 10,000; cut to the rows that hold foreground; resize to 64
    rows, cubic, keeping the aspect ratio; centre on the column that halves the mass; cut or pad to 64
    columns.
    """
    kept = [normalised for frame in frames if (normalised := normalise_frame(frame)) is not None]
    return np.stack(kept) if kept else np.zeros((0, HEIGHT, WIDTH), np.uint8)


def normalise_frame(frame: np.ndarray) -> np.ndarray | None:
    """One frame, uint8 [height, width] -> uint8 [64, 64], or None when it is almost empty."""
    if frame.dtype != np.uint8 or frame.ndim != 2:
        raise ValueError(f"a frame is uint8 [height, width], this is {frame.dtype} {list(frame.shape)}.")
    # cv2.reduce wants float or int32 sums; a row of uint8 fits int32 up to 8 million columns.
    rows = cv2.reduce(frame, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() if frame.size else np.zeros(0, np.int32)
    if rows.sum(dtype=np.int64) < LEAST_PIXEL_SUM:
        return None
    filled = np.flatnonzero(rows)
    person = frame[filled[0] : filled[-1] + 1]
    width = max(1, int(HEIGHT * person.shape[1] / person.shape[0]))
    person = cv2.resize(person, (width, HEIGHT), interpolation=cv2.INTER_CUBIC)
    mass = np.cumsum(cv2.reduce(person, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel(), dtype=np.int64)
    centre = int(np.searchsorted(2 * mass, mass[-1], side="right"))  # the first column where mass passes half
    out = np.zeros((HEIGHT, WIDTH), np.uint8)
    left = centre - WIDTH // 2
    first, last = max(left, 0), min(left + WIDTH, width)
    out[:, first - left : last - left] = person[:, first:last]
    return out


def empty_reason(frame: np.ndarray) -> str:
    """Why `normalise_frame` dropped this frame: a mask of 0 and 1 is a mistake worth its own words."""
    return ZERO_ONE if frame.size and frame.max() == 1 else ALMOST_EMPTY


def read_frame(path: str | Path, whole: bool = True) -> tuple[np.ndarray | None, str]:
    """A PNG file -> (uint8 [height, width], "") or (None, why not). One-bit images become 0 and 255.

    whole: False may leave out empty rows at top and bottom, as `normalise_frame` does first of all.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - called for every frame: a Path costs a tenth of the read
            data = file.read()
    except IsADirectoryError:  # any other failure may be the disk's: nothing is skipped for that
        return None, UNREADABLE
    if not data:
        return None, ZERO_BYTES
    if not data.startswith(png.SIGNATURE):
        return None, UNREADABLE
    # Some OpenCV releases decode what is there of a torn file and stay silent.
    if png.END not in data:
        return None, TORN
    if (frame := png.decode_one_bit(data, whole)) is not None:
        return frame, ""
    frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    return (None, UNREADABLE) if frame is None else (frame, "")


def cut(silhouettes: Sliceable) -> Sliceable:
    """[..., 64] -> [..., 44]: 10 columns off each side of the last axis; what is 44 wide already stays as it
    is.

    Takes numpy arrays and torch tensors; the result is a view. Raises ValueError for any other width.
    """
    width = silhouettes.shape[-1]  # type: ignore[attr-defined]
    if width == NETWORK_WIDTH:
        return silhouettes
    if width != WIDTH:
        raise ValueError(f"silhouettes are {WIDTH} or {NETWORK_WIDTH} columns wide, these are {width}.")
    margin = (WIDTH - NETWORK_WIDTH) // 2
    return silhouettes[..., margin : width - margin]  # type: ignore[index]
