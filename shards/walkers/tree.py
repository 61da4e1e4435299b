"""Writes walkers as a raw CASIA-B tree: OUT/001/nm-01/090/001-nm-01-090-001.png, one full frame a file."""

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from shards.walkers import body
from shards.walkers.figure import figure
from shards.walkers.gait import Array, pose
from shards.walkers.render import VIEWS, camera, filled, flawed, outlines, placed

MOST_SUBJECTS = 999  # a CASIA-B subject has three digits
FRAMES = (30, 50)
LONGEST_WALK = 200  # frames, about as in CASIA-B; beyond, people are too far off to be seen
_PNG = (cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 1)

Frames = int | tuple[int, int]


@dataclass(frozen=True)
class WalkersSummary:
    """What was written, and how long it took in seconds of wall time."""

    subjects: int
    sequences: int
    frames: int
    seconds: float


def _num_frames(frames: Frames, number: int, condition: str, seed: int) -> int:
    """The length of one walk: the same from all its views."""
    low, high = (frames, frames) if isinstance(frames, int) else frames
    if not 1 <= low <= high <= LONGEST_WALK:
        raise ValueError(f"frames={frames!r}: give 1 to {LONGEST_WALK}, or a (shortest, longest) pair of them")
    key = (number, body.CONDITIONS.index(condition), 0)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    return int(rng.integers(low, high + 1))


def _views(views: Sequence[str]) -> tuple[str, ...]:
    unknown = [view for view in views if view not in VIEWS]
    if unknown or not views:
        raise ValueError(f"views={list(views)!r}: give at least one, all among {', '.join(VIEWS)}")
    return tuple(views)


def walks(
    number: int,
    condition: str,
    views: Sequence[str] = VIEWS,
    seed: int = 0,
    frames: Frames = FRAMES,
    flaws: bool = True,
) -> Iterator[Array]:
    """One walk from each of `views` in turn: uint8 [frames, 240, 320], white (255) on black. See `walk`."""
    trial = body.trial(number, condition, seed)
    num_frames = _num_frames(frames, number, condition, seed)
    centres, shapes, parts = figure(trial, pose(trial, num_frames))
    centres, shapes = placed(centres, shapes, trial.heading, trial.offset)
    reach = float(np.abs(centres[..., :2]).max())
    for view in _views(views):
        silhouettes = filled(outlines(centres, shapes, parts, *camera(view, reach)))
        if flaws:
            key = (number, body.CONDITIONS.index(condition), 1 + VIEWS.index(view))
            flawed(silhouettes, np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)))
        yield silhouettes


def walk(subject: int, condition: str, view: str, seed: int = 0, frames: Frames = FRAMES, flaws: bool = True) -> Array:
    """One sequence, uint8 [frames, 240, 320], white (255) on black: a pure function of its arguments.

    `condition` is one of body.CONDITIONS, `view` one of render.VIEWS (090: from the side, 000: towards the
    camera). `frames` is a length or a (shortest, longest) pair; all views of a walk are equally long.
    `flaws=False` leaves out the segmentation's errors. Raises ValueError for a condition, view or length
    there is not.
    """
    return next(walks(subject, condition, (view,), seed, frames, flaws))


def _write_subject(folder: Path, number: int, seed: int, frames: Frames, views: tuple[str, ...]) -> tuple[int, int]:
    """Writes one subject's folder and returns its number of sequences and frames."""
    cv2.setNumThreads(1)
    num_sequences = num_frames = 0
    for condition in body.CONDITIONS:
        for view, silhouettes in zip(views, walks(number, condition, views, seed, frames), strict=True):
            place = folder / f"{number:03d}" / condition / view
            place.mkdir(parents=True)
            stem = f"{place}{os.sep}{number:03d}-{condition}-{view}-"
            for i, silhouette in enumerate(silhouettes, 1):
                path = f"{stem}{i:03d}.png"
                if not cv2.imwrite(path, silhouette, _PNG):
                    raise OSError(f"could not write {path}: is the disk full?")
            num_sequences += 1
            num_frames += len(silhouettes)
    return num_sequences, num_frames


@contextmanager
def _committed(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name only if all went well."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder: name another, or delete it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _progress(shown: bool) -> Progress:
    return Progress(
        TextColumn("walkers"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("subjects, {task.fields[frames]:,} frames"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not shown,
    )


def write(
    out: Path | str,
    subjects: int,
    seed: int = 0,
    frames: Frames = FRAMES,
    workers: int | None = None,
    progress: bool = True,
    views: Sequence[str] = VIEWS,
) -> WalkersSummary:
    """Writes `subjects` walkers, each in all ten conditions and in `views`, as a raw CASIA-B tree at `out`.

    Same seed, same bytes, whatever the number of workers (one a core unless given); subject i is the same
    person whatever the number of subjects. The tree appears at `out` only when it is complete.

    Raises ValueError for a number there is not, and FileExistsError when `out` holds anything. A script that
    writes with several workers calls this under `if __name__ == "__main__":`, as their processes import it
    again.
    """
    if not 1 <= subjects <= MOST_SUBJECTS:
        raise ValueError(f"subjects={subjects}: give a number from 1 to {MOST_SUBJECTS}")
    if seed < 0:
        raise ValueError(f"seed={seed}: give a number from 0 upwards")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: give at least 1, or leave it out for one a core")
    views = _views(views)
    _num_frames(frames, 1, body.CONDITIONS[0], seed)
    started = time.perf_counter()
    num_sequences = num_frames = 0
    num_workers = min(workers or len(os.sched_getaffinity(0)), subjects)
    with _committed(Path(out).absolute()) as folder, _progress(progress) as bar:
        task = bar.add_task("", total=subjects, frames=0)
        for counts in _subjects_written(folder, subjects, seed, frames, views, num_workers):
            num_sequences += counts[0]
            num_frames += counts[1]
            bar.update(task, advance=1, frames=num_frames)
    return WalkersSummary(subjects, num_sequences, num_frames, time.perf_counter() - started)


def _subjects_written(
    folder: Path, subjects: int, seed: int, frames: Frames, views: tuple[str, ...], num_workers: int
) -> Iterator[tuple[int, int]]:
    numbers = range(1, subjects + 1)
    if num_workers == 1:
        for number in numbers:
            yield _write_subject(folder, number, seed, frames, views)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        jobs = [pool.submit(_write_subject, folder, number, seed, frames, views) for number in numbers]
        try:
            for job in as_completed(jobs):
                yield job.result()
        finally:
            pool.shutdown(cancel_futures=True)  # a failure or Ctrl-C waits for nobody not yet begun
