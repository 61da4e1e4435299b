"""What packing must know of a raw layout, and what every layout shares: folders of PNG frames."""

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from shards import silhouettes
from shards.sequence import part_fault
from shards.skips import Skips

NUM_LISTERS = 8
NUM_LOOKED_AHEAD = 4 * NUM_LISTERS
BATCH = 128

MISPLACED = "file where only folders belong"
NO_PNG = "file is no PNG"
WITHOUT_PNG = "sequence folder without a PNG"

Place = TypeVar("Place")


class RawSequence(NamedTuple):
    """A sequence found in a raw folder. `path` is relative to that folder, with slashes; it ends up in the
    shards.
    """

    subject: str
    condition: str
    view: str
    path: str
    num_raw_frames: int  # before empty ones are dropped, or about so many: what planning the shards goes by


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
                skips.add(MISPLACED, os.path.relpath(entry.path, root))
    return sorted(names)


def named_subfolders(folder: str, skips: Skips, root: str, what: str) -> list[str]:
    """Those subfolders whose names can be part of a key; `what` they are goes into the reason."""
    named = []
    for name in subfolders(folder, skips, root):
        if (fault := part_fault(name)) is None:
            named.append(name)
        else:
            skips.add(f"{what} folder's name {fault}", os.path.relpath(f"{folder}/{name}", root))
    return named


def list_files(folder: str | Path) -> list[str]:
    """Sorted names of everything in `folder` that is not hidden."""
    names = os.listdir(folder)  # noqa: PTH208 - 300,000 folders: a Path a file costs as much as the disk
    return sorted(name for name in names if not name.startswith("."))


def list_frames(folder: str | Path) -> tuple[list[str], list[str]]:
    """Sorted names of the PNG files in `folder`, and of everything else in it that is not hidden."""
    frames: list[str] = []
    others: list[str] = []
    for name in list_files(folder):
        (frames if name.endswith((".png", ".PNG")) else others).append(name)
    return frames, others


def find_png_folder(root: Path, subject: str, condition: str, view: str, path: str, skips: Skips) -> RawSequence | None:
    """The sequence in the folder of PNGs at `path`, or None, counted, when it holds none."""
    frames, others = list_frames(f"{root}/{path}")
    if others:
        skips.add(NO_PNG, f"{path}/{others[0]}", len(others))
    if not frames:
        skips.add(WITHOUT_PNG, path)
        return None
    return RawSequence(subject, condition, view, path, len(frames))


def look_in_parallel(
    places: Iterable[Place], look: Callable[[Place, Skips], list[RawSequence]], skips: Skips
) -> Iterator[RawSequence]:
    """What `look` finds in each place, in the order of `places`, on several threads.

    Threads: on a network disk listing waits far more than it computes. Only a few places are in hand at once.
    """

    def look_apart(place: Place) -> tuple[list[RawSequence], Skips]:
        own = Skips()
        return look(place, own), own

    waiting: deque[Future[tuple[list[RawSequence], Skips]]] = deque()
    with ThreadPoolExecutor(NUM_LISTERS) as pool:
        for place in chain(places, repeat(None, NUM_LOOKED_AHEAD)):  # the Nones drain what is in hand
            if place is not None:
                waiting.append(pool.submit(look_apart, place))
            if waiting and (place is None or len(waiting) > NUM_LOOKED_AHEAD):
                found, own = waiting.popleft().result()
                skips.merge(own)
                yield from found


def in_batches(names: list[str]) -> Iterator[list[str]]:
    """A place each of many small folders would cost more than looking into them."""
    return (names[start : start + BATCH] for start in range(0, len(names), BATCH))


def discover_tree(
    root: Path,
    skips: Skips,
    find: Callable[[Path, str, str, str, str, Skips], RawSequence | None],
    is_condition: Callable[[str], str | None],
    is_view: Callable[[str], str | None],
    below: str = "",
) -> Iterator[RawSequence]:
    """Every `below/subject/condition/view` folder under root that `find` makes a sequence of.

    is_condition, is_view: a folder's name -> None, or why it is none.
    """
    top = f"{root}/{below}".rstrip("/")

    def look(subject: str, own: Skips) -> list[RawSequence]:
        found = []
        for condition in _accepted(f"{top}/{subject}", is_condition, own, str(root)):
            for view in _accepted(f"{top}/{subject}/{condition}", is_view, own, str(root)):
                path = f"{below}/{subject}/{condition}/{view}".lstrip("/")
                if (sequence := find(root, subject, condition, view, path, own)) is not None:
                    found.append(sequence)
        return found

    return look_in_parallel(named_subfolders(top, skips, str(root), "subject"), look, skips)


def _accepted(folder: str, fault: Callable[[str], str | None], skips: Skips, root: str) -> list[str]:
    accepted = []
    for name in subfolders(folder, skips, root):
        if (reason := fault(name)) is None:
            accepted.append(name)
        else:
            skips.add(reason, os.path.relpath(f"{folder}/{name}", root))
    return accepted


def name_like(pattern: str, what: str, example: str) -> Callable[[str], str | None]:
    """For `discover_tree`: names that match the whole pattern."""
    compiled = re.compile(pattern)

    def fault(name: str) -> str | None:
        return None if compiled.fullmatch(name) else f"folder's name is no {what} such as {example}"

    return fault


def found_or_explained(
    sequences: Iterable[RawSequence], explain: Callable[[], str], skips: Skips, found_skips: Skips
) -> Iterator[RawSequence]:
    """The sequences; when there is none, ValueError with what `explain` says. Skips count only if there is
    one: of another layout everything would be skipped.
    """
    num_found = 0
    for sequence in sequences:
        num_found += 1
        yield sequence
    if num_found == 0:
        raise ValueError(explain())
    skips.merge(found_skips)


def read_png_folder(root: Path, sequence: RawSequence, skips: Skips) -> np.ndarray:
    """Every usable frame of a folder of PNGs, by name, normalised: uint8 [frames, 64, 64]."""
    kept = []
    for place, frame in read_frames(root, sequence, skips, whole=False):
        normalised = silhouettes.normalise_frame(frame)
        if normalised is None:
            skips.add(silhouettes.empty_reason(frame), place)
        else:
            kept.append(normalised)
    return stack(kept)


def read_frames(
    root: Path, sequence: RawSequence, skips: Skips, is_frame: Callable[[str], bool] = bool, whole: bool = True
) -> Iterator[tuple[str, np.ndarray]]:
    """(path, uint8 [height, width]) of every readable PNG of a sequence whose name `is_frame`, by name; with
    all their rows only if `whole`.
    """
    folder = root / sequence.path
    for name in filter(is_frame, list_frames(folder)[0]):
        frame, reason = silhouettes.read_frame(f"{folder}/{name}", whole)
        if frame is None:
            skips.add(reason, f"{sequence.path}/{name}")
        else:
            yield f"{sequence.path}/{name}", frame


def stack(frames: list[np.ndarray]) -> np.ndarray:
    """uint8 [64, 64] each -> uint8 [frames, 64, 64], also of none."""
    return np.stack(frames) if frames else np.zeros((0, silhouettes.HEIGHT, silhouettes.WIDTH), np.uint8)


def check_root(root: Path) -> None:
    """Raises FileNotFoundError, NotADirectoryError or ValueError when there is nothing to look into."""
    if not root.exists():
        raise FileNotFoundError(f"source {root} does not exist.")
    if not root.is_dir():
        raise NotADirectoryError(f"source {root} is a file; it must be the folder that holds the raw frames.")
    if not any(root.iterdir()):
        raise ValueError(f"source {root} is empty.")


def explain_mismatch(root: Path, layout: str, expected: str, num_folders: int, suffix: str = ".png") -> str:
    """Why nothing of `layout` was found: what is there, what was expected, and whether root is a level off.

    `num_folders` is how many folders stand between root and a frame when root is right, `suffix` the ending
    of the files that hold frames.
    """
    message = f"source {root} holds no sequence of layout {layout}: expected {expected}"
    found = _first_file(root, suffix)
    if found is None:
        return f"{message}, found folders without a file."
    message += f", found {found.as_posix()}."
    folders = found.parent.parts
    if found.suffix.lower() in {".gz", ".zip", ".tar", ".xz", ".rar", ".7z"}:
        return f"{message} These are archives: unpack them first."
    if found.suffix.lower() == ".pkl" and suffix == ".png":
        return f"{message} These are pickles: name --layout opengait."
    if found.suffix.lower() != suffix:
        return message
    if len(folders) > num_folders:
        deeper = root.joinpath(*folders[: len(folders) - num_folders])
        return f"{message} The frames lie deeper than expected; did you mean {deeper}?"
    if len(folders) < num_folders:
        resolved = root.resolve()
        higher = resolved.parents[num_folders - len(folders) - 1]
        return f"{message} The frames lie less deep than expected; did you mean {higher}, or another layout?"
    return f"{message} The depth is right, the names are not; is it another layout?"


def _first_file(root: Path, suffix: str) -> Path | None:
    """The first file by name, those with `suffix` before others, looking into at most a few folders a level:
    raw sets are huge.
    """
    first: Path | None = None
    level = [root]
    for _ in range(8):
        below: list[Path] = []
        for folder in level:
            entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
            below.extend([entry for entry in entries if entry.is_dir()][:3])
            for file in (entry for entry in entries if entry.is_file()):
                if file.suffix.lower() == suffix:
                    return file.relative_to(root)
                first = first or file.relative_to(root)
        level = below[:16]
    return first
