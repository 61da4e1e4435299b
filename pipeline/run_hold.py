"""One launch at a time trains in a run: it holds the run, and keeps RUN/state.json while it does.

A run is taken under a lock of the kernel's, which no killed process leaves behind: look again, replace the record.
Where a disk has no locks, the moment between the two stays open, and the next beat shows who lost.
"""

import errno
import fcntl
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pipeline import world
from pipeline.run_state import BEAT_SECONDS, BEATS_WATCHED, FILE, Found, Process, RunState, born, judge, look

if TYPE_CHECKING:
    from accelerate import Accelerator

LOCK = ".state.lock"
LOCK_SECONDS = 10.0
"""Taking a run needs milliseconds: a lock held for longer is a stopped process's, or of a disk that hangs."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def hold(accelerator: "Accelerator", run: Path, steps: int, beat_seconds: float = BEAT_SECONDS) -> Iterator["Hold"]:
    """Makes the launch the only one that trains in `run`, and keeps its state.json; set `step` as training goes.

    All processes must call it; the main process holds the run. Raises ValueError on every process where another one
    trains there, and from setting `step` where another one took the run over. Leaving records "finished" when `step`
    has reached `steps`, else "interrupted"; an exception that passes is recorded as "failed". A mistake of the user's
    before the first `step` leaves the record of what ended before.
    """
    held = Hold(run / FILE, steps, beat_seconds)
    world.agree(accelerator, held.take)
    try:
        yield held
    except BaseException as error:
        held.leave(error)
        raise
    held.leave(None)


class Hold:
    """A run in the hands of this launch; on all but the main process it only counts steps."""

    def __init__(self, path: Path, steps: int, beat_seconds: float) -> None:
        self.reason: str | None = None
        """Why the run is left before its last step, where the caller knows it."""
        self._path, self._steps, self._beat_seconds = path, steps, beat_seconds
        self._step: int | None = None
        self._mine: RunState | None = None
        self._before: RunState | None = None
        self._taken_by: RunState | None = None
        self._over = threading.Event()
        self._beats = threading.Thread(target=self._go_on_beating, name="beats of the run", daemon=True)

    @property
    def step(self) -> int | None:
        """Steps done, None until it is set."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = step
        if self._taken_by is not None:
            raise ValueError(
                f"{self._path}: {_name(self._taken_by)} took this run over while nothing was heard of this one; "
                "this one ends. Wait for the other, or give another `run`"
            )

    def take(self) -> None:
        """Becomes the holder and begins to beat. Raises ValueError if another process is."""
        now = datetime.now(UTC)
        mine = RunState(
            **Process.current().model_dump(),
            state="running",
            step=0,
            steps=self._steps,
            started=now,
            updated=now,
            beat_seconds=self._beat_seconds,
            holder=uuid.uuid4().hex,
        )
        try:
            self._mine, self._before = _take_over(self._path, mine)
        except OSError as error:
            raise OSError(f"{self._path} cannot be written ({error.strerror}); give another `run`") from None
        self._beats.start()

    def leave(self, error: BaseException | None) -> None:
        """Ends the beats and records how training ended."""
        self._over.set()
        if self._mine is None:
            return
        self._beats.join()
        if error is None:
            ended, reason = ("finished", None) if (self._step or 0) >= self._steps else ("interrupted", self.reason)
        else:
            ended = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            reason = self.reason or _one_line(error)
        refused = self._step is None and isinstance(error, Exception) and world.is_users_mistake(error)
        try:
            if not refused or self._before is None or self._before.state == "running":
                self._write(state=ended, reason=reason)
            elif self._is_mine():
                _write(self._path, self._before, self._mine.holder)
        except OSError as fault:
            print(f"{self._path} could not be written: {fault}", file=sys.stderr, flush=True)

    def _go_on_beating(self) -> None:
        while not self._over.wait(self._beat_seconds):
            try:
                self._write()
            except Exception:  # a full disk, say: training goes on, and a new time of the file needs no room
                with suppress(OSError):
                    os.utime(self._path)

    def _is_mine(self) -> bool:
        assert self._mine is not None
        found = look(self._path)
        if found is not None and found.record is not None and found.record.holder != self._mine.holder:
            self._taken_by = found.record
        return self._taken_by is None

    def _write(self, **changes: str | None) -> None:
        assert self._mine is not None
        if not self._is_mine():
            return
        step = self._mine.step if self._step is None else self._step
        later = {"step": step, "beat": self._mine.beat + 1, "updated": datetime.now(UTC)}
        self._mine = self._mine.model_copy(update={**later, **changes})
        _write(self._path, self._mine, self._mine.holder)


def _take_over(path: Path, mine: RunState) -> tuple[RunState, RunState | None]:
    """Makes `mine`, at the step last known, the record once no other process holds the run; with the record before."""
    while True:
        found = look(path)
        if found is not None:
            known = "unsure" if found.record is None else judge(found.record, mine, born)
            if known == "alive" or (known == "unsure" and _shows_life(path, found)):
                raise ValueError(
                    f"{path}: {_name(found.record)} trains in this run; wait until it ends, end it, or give another "
                    "`run`"
                )
        before = None if found is None else found.record
        begun = mine if before is None else mine.model_copy(update={"step": before.step})
        with _one_at_a_time(path.parent):
            if _holder(look(path)) == _holder(found):
                _write(path, begun, begun.holder)
                return begun, before


def _shows_life(path: Path, found: Found) -> bool:
    """Whether the holder writes within some beats; tells the user of the wait. No clocks are compared."""
    seconds = BEATS_WATCHED * (found.record.beat_seconds if found.record else BEAT_SECONDS)
    said = f"{path}: {_name(found.record)} may be training in this run"
    print(f"{said}; watching for {seconds:.0f} s whether it lives", file=sys.stderr, flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(1.0, seconds / 20))
        any(path.parent.iterdir())  # makes a network disk ask its server anew
        now = look(path)
        if now is None:
            return False
        if now.sign != found.sign:
            return now.record is None or now.record.state == "running"
    print(f"{path}: no sign of life in {seconds:.0f} s; taking the run over", file=sys.stderr, flush=True)
    return False


@contextmanager
def _one_at_a_time(run: Path) -> Iterator[None]:
    """Raises ValueError where another process keeps the lock. Does nothing where the disk has no locks."""
    # A file of our own, open for writing: folders are what others lock, and what network disks lock on one node alone.
    with (run / LOCK).open("a") as file:
        end = time.monotonic() + LOCK_SECONDS
        while not _locked(file):
            if time.monotonic() > end:
                raise ValueError(
                    f"{run / LOCK}: another process has been taking this run for {LOCK_SECONDS:.0f} s; end it if it is "
                    "stopped, or give another `run`"
                )
            time.sleep(0.02)
        yield


def _locked(file: IO[str]) -> bool:
    """Takes the lock unless another has it; a disk without locks counts as taken."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _write(path: Path, record: RunState, holder: str) -> None:
    partial = path.with_name(f".{path.name}.{holder}.partial")
    try:
        partial.write_text(record.model_dump_json(indent=1))
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _holder(found: Found | None) -> str | bytes | None:
    if found is None:
        return None
    return found.sign[0] if found.record is None else found.record.holder


def _name(record: RunState | None) -> str:
    if record is None:
        return "a process that left a damaged record"
    job = f" (SLURM job {record.slurm_job})" if record.slurm_job else ""
    return f"process {record.pid} on {record.host}{job}, at step {record.step} of {record.steps},"


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
