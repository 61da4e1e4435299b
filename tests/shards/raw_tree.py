"""Writes small CASIA-B trees."""

from pathlib import Path

import cv2
import numpy as np

CONDITIONS = ("nm-01", "nm-02", "bg-01")
VIEWS = ("000", "090")
PARTITION = "train: [001..005]\ntest: [006..008]\n"
SMALL_SHARD_MB = 0.02  # two subjects or so


def draw_frame(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    """A white ellipse somewhere on black, uint8 [height, width]."""
    rng = np.random.default_rng(seed)
    centre = (int(rng.integers(20, width - 20)), height // 2)
    axes = (int(rng.integers(6, 12)), int(rng.integers(15, 25)))
    frame = np.zeros((height, width), np.uint8)
    cv2.ellipse(frame, centre, axes, 0, 0, 360, 255, -1)
    return frame


def write_sequence(folder: Path, num_frames: int, seed: int = 0) -> None:
    """One-bit PNGs as CASIA-B's."""
    folder.mkdir(parents=True)
    subject, condition, view = folder.parts[-3:]
    for i in range(1, num_frames + 1):
        path = folder / f"{subject}-{condition}-{view}-{i:03d}.png"
        assert cv2.imwrite(str(path), draw_frame(1000 * seed + i), [cv2.IMWRITE_PNG_BILEVEL, 1])


def write_tree(root: Path, num_subjects: int = 8) -> Path:
    """Subjects 001.., each with 2 views of 3 conditions, 1 to 12 frames long."""
    seed = 0
    for subject in range(1, num_subjects + 1):
        for condition in CONDITIONS:
            for view in VIEWS:
                seed += 1
                write_sequence(root / f"{subject:03d}" / condition / view, 1 + seed % 12, seed)
    return root


def data_set_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its relative path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
