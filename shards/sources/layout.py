"""What packing must know of a raw layout, and what every layout shares: folders of PNG frames."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards import silhouettes
from shards.skips import Skips


class RawSequence(NamedTuple):
    """A sequence found in a raw folder. `path` is relative to that folder, with slashes; it ends up in the
    shards.
    """

    subject: str
    condition: str
    view: str
    path: str
    num_raw_frames: int  # before empty ones are dropped: what planning the shards goes by


@dataclass(frozen=True)
class Layout:
    """A raw layout.

    discover: (root, skips) -> the sequences under root, in any order; what it passes over goes into skips.
        Raises FileNotFoundError, NotADirectoryError or ValueError when root holds nothing of this layout.
    read: (root, sequence, skips) -> uint8 [frames, 64, 64], dropped frames go into skips.
    """

    name: str
    partition: str | None  # the built-in partition it brings; None: the user must name one
    discover: Callable[[Path, Skips], Iterator[RawSequence]]
    read: Callable[[Path, RawSequence, Skips], np.ndarray]


def subfolders(folder: str, skips: Skips, root: str) -> list[str]:
    """Sorted names of the folders in `folder`; other files are counted, hidden ones ignored."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                names.append(entry.name)
            else:
                skips.add("file where only folders belong", os.path.relpath(entry.path, root))
    return sorted(names)


def list_frames(folder: str | Path) -> tuple[list[str], list[str]]:
    """Sorted names of the PNG files in `folder`, and of everything else in it that is not hidden."""
    frames: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            (frames if entry.name.lower().endswith(".png") else others).append(entry.name)
    return sorted(frames), sorted(others)


def read_png_folder(root: Path, sequence: RawSequence, skips: Skips) -> np.ndarray:
    """Every usable frame of a folder of PNGs, by name, normalised: uint8 [frames, 64, 64]."""
    folder = root / sequence.path
    names, _ = list_frames(folder)
    kept = []
    for name in names:
        frame, reason = silhouettes.read_frame(f"{folder}/{name}")
        if frame is None:
            skips.add(reason, f"{sequence.path}/{name}")
            continue
        normalised = silhouettes.normalise_frame(frame)
        if normalised is None:
            skips.add(silhouettes.empty_reason(frame), f"{sequence.path}/{name}")
            continue
        kept.append(normalised)
    return np.stack(kept) if kept else np.zeros((0, silhouettes.HEIGHT, silhouettes.WIDTH), np.uint8)


def check_root(root: Path) -> None:
    """Raises FileNotFoundError, NotADirectoryError or ValueError when there is nothing to look into."""
    if not root.exists():
        raise FileNotFoundError(f"source {root} does not exist.")
    if not root.is_dir():
        raise NotADirectoryError(f"source {root} is a file; it must be the folder that holds the raw frames.")
    if not any(root.iterdir()):
        raise ValueError(f"source {root} is empty.")


def explain_mismatch(root: Path, layout: str, expected: str, num_folders: int) -> str:
    """Why nothing of `layout` was found: what is there, what was expected, and whether root is a level off.

    `num_folders` is how many folders stand between root and a frame when root is right.
    """
    message = f"source {root} holds no sequence of layout {layout}: expected {expected}"
    found = _first_file(root)
    if found is None:
        return f"{message}, found folders without a file."
    message += f", found {found.as_posix()}."
    folders = found.parent.parts
    if found.suffix.lower() in {".gz", ".zip", ".tar", ".xz", ".rar", ".7z"}:
        return f"{message} These are archives: unpack them first."
    if found.suffix.lower() != ".png":
        return message
    if len(folders) > num_folders:
        deeper = root.joinpath(*folders[: len(folders) - num_folders])
        return f"{message} The frames lie deeper than expected; did you mean {deeper}?"
    if len(folders) < num_folders:
        resolved = root.resolve()
        higher = resolved.parents[num_folders - len(folders) - 1]
        return f"{message} The frames lie less deep than expected; did you mean {higher}, or another layout?"
    return f"{message} The depth is right, the names are not; is it another layout?"


def _first_file(root: Path) -> Path | None:
    """The first file by name, PNGs before others, looking into at most a few folders a level: raw sets are
    huge.
    """
    first: Path | None = None
    level = [root]
    for _ in range(8):
        below: list[Path] = []
        for folder in level:
            entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
            below.extend([entry for entry in entries if entry.is_dir()][:3])
            for file in (entry for entry in entries if entry.is_file()):
                if file.suffix.lower() == ".png":
                    return file.relative_to(root)
                first = first or file.relative_to(root)
        level = below[:16]
    return first
