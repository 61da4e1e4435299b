"""Silhouettes as pictures for the page."""

import base64
from dataclasses import dataclass

import cv2
import numpy as np

MAX_FRAMES = 30  # a little over one gait cycle at the usual 25 frames a second


@dataclass(frozen=True)
class Sprite:
    """The frames of a sequence side by side in one PNG: a data URI, for CSS to step through."""

    uri: str
    num_frames: int


def sprite(silhouettes: np.ndarray) -> Sprite:
    """From uint8 [frames, height, width]: the middle frames, at most `MAX_FRAMES`, as black with alpha.

    The page fills it with its own ink, so that it fits light, dark and paper.
    """
    start = max(0, (len(silhouettes) - MAX_FRAMES) // 2)
    frames = silhouettes[start : start + MAX_FRAMES]
    strip = np.concatenate(list(frames), axis=1)
    picture = np.zeros((*strip.shape, 4), np.uint8)
    picture[..., 3] = strip
    coded = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    return Sprite("data:image/png;base64," + base64.b64encode(coded.tobytes()).decode("ascii"), len(frames))
