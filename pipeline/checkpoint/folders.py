"""The checkpoints of a run on disk: which are whole, which stay, which are put aside.

RUN/checkpoints/step-00000300/          complete: it holds the marker
RUN/checkpoints/.step-00000400.partial  being written, or left by a run that was killed
RUN/checkpoints/damaged-step-00000200   put aside: its files are not those that were written
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.checkpoint.weights import MARKER
from pipeline.recipe import Train


def latest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    complete = sorted(run.glob(f"checkpoints/step-*/{MARKER}"))
    return complete[-1].parent if complete else None


def step_of(folder: Path) -> int:
    """Of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def is_due(step: int, train: Train) -> bool:
    """Whether a checkpoint, lasting or interim, is written after `step` steps."""
    return step % train.save_every == 0 or (train.interim_every is not None and step % train.interim_every == 0)


def kept(steps: Sequence[int], train: Train) -> set[int]:
    """Which of the complete checkpoints stay: the newest, the lasting ones that the recipe asks for, nothing else.

    Lasting are those at multiples of `save_every`; all others (interim, or written when the run was asked to stop)
    only bridge the time to the next one.
    """
    lasting = sorted(step for step in steps if step % train.save_every == 0)
    for_good = {step for step in steps if train.keep_every is not None and step % train.keep_every == 0}
    return {max(steps), *lasting[-train.keep_last :], *for_good} if steps else set()


def prune(run: Path, train: Train) -> None:
    """Deletes what does not stay, and what was never completed; what cannot be deleted is named and left."""
    for abandoned in (*run.glob("checkpoints/.step-*.partial"), *run.glob("checkpoints/step-*")):
        if not (abandoned / MARKER).exists():  # of a run that was killed while saving or pruning
            _delete(abandoned)
    complete = [marker.parent for marker in run.glob(f"checkpoints/step-*/{MARKER}")]
    stay = kept([step_of(folder) for folder in complete], train)
    for folder in complete:
        if step_of(folder) not in stay:
            _delete(folder)


def _delete(folder: Path) -> None:
    try:
        (folder / MARKER).unlink(missing_ok=True)  # first, so that a half-deleted folder is not believed
        shutil.rmtree(folder)
    except OSError as error:  # somebody reads it, say; the next pruning tries again
        print(f"{folder} could not be deleted: {error}", file=sys.stderr, flush=True)


def put_aside(folder: Path) -> Path:
    """Renames a damaged checkpoint so that nothing takes it for one; returns its new place."""
    aside = folder.with_name(f"damaged-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)
