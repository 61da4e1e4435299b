"""RUN/state.json: who trains in a run's folder, how far it is, how it ended; and what can be known from it."""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

FILE = "state.json"
BEAT_SECONDS = 10.0
BEATS_WATCHED = 3
"""A holder of whom nothing is known is dead when it writes nothing for as many beats."""


class Process(BaseModel):
    """A process, told from all others on all machines."""

    model_config = ConfigDict(frozen=True)

    host: str
    machine: str | None = None
    """The running kernel and its space of process ids: where two agree, a pid means the same process. From /proc."""
    pid: int
    born: int | None = None
    """Start in the kernel's clock ticks, as pids are used again."""
    slurm_job: str | None = None
    slurm_restarts: int | None = None

    @classmethod
    def current(cls) -> "Process":
        """This process."""
        job = os.environ.get("SLURM_JOB_ID")
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            born=born(os.getpid()),
            slurm_job=job,
            slurm_restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0) if job else None,
        )


class RunState(Process):
    """What state.json says. Times are UTC by the holder's clock: to be shown, never to be compared."""

    state: Literal["running", "finished", "interrupted", "failed"]
    step: int
    steps: int
    reason: str | None = None
    """One line: why it was interrupted or failed."""
    started: datetime
    updated: datetime
    beat: int = 0
    """Rises every `beat_seconds` while the process lives, whatever the training does."""
    beat_seconds: float = BEAT_SECONDS
    holder: str
    """Drawn anew each time a process takes the run."""


class Found(NamedTuple):
    """A state.json as it was read: any write changes its sign."""

    record: RunState | None
    """None for a file that is no record."""
    sign: tuple[bytes, int]


def read(run: Path) -> RunState | None:
    """The record of a run, None where there is none. Raises ValueError for a damaged one."""
    found = look(run / FILE)
    if found is not None and found.record is None:
        raise ValueError(f"{run / FILE} is damaged; train with this `run` again and it is written anew")
    return None if found is None else found.record


def judge(
    found: RunState, me: Process, born: Callable[[int], int | None]
) -> Literal["ended", "dead", "alive", "unsure"]:
    """What process `me` can know of the holder from the record alone; `born` gives a live pid's start, or None."""
    if found.state != "running":
        return "ended"
    if found.machine is not None and found.machine == me.machine:
        try:
            now = born(found.pid)
        except PermissionError:
            return "unsure"
        return "alive" if now is not None and now == found.born else "dead"
    # SLURM starts a job again when its processes are gone; those of a node it has lost, and that lives on cut off, see
    # at their next beat that the run is another's. Two steps of one start of a job may both be alive.
    if found.slurm_job is not None and found.slurm_job == me.slurm_job and found.slurm_restarts != me.slurm_restarts:
        return "dead"
    return "unsure"


def in_words(found: RunState, me: Process, now: datetime) -> str:
    """The state as a reader sees it: a record that says "running" outlives a killed process."""
    if found.state != "running":
        return found.state
    if judge(found, me, born) == "dead":
        return "dead"
    silent = (now - found.updated).total_seconds()
    if silent <= BEATS_WATCHED * found.beat_seconds:
        return "running"
    return f"running, last sign of life {duration(silent)} ago"


def duration(seconds: float) -> str:
    """Rounded down to its largest unit: 45 s, 3 min, 5 h, 2 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0) // 1:.0f} s"


def look(path: Path) -> Found | None:
    """A state.json as it is now, None where there is none."""
    try:
        with path.open("rb") as file:
            content, time_ns = file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    try:
        record = RunState.model_validate_json(content)
    except ValidationError:
        record = None
    return Found(record, (content, time_ns))


def born(pid: int) -> int | None:
    """When a process started, in clock ticks of its kernel; None where it is gone or only not yet buried.

    Raises PermissionError for a process that /proc hides (its option hidepid).
    """
    try:
        # The name, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        with suppress(ProcessLookupError):
            os.kill(pid, 0)  # of another user's process it raises PermissionError
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _machine() -> str | None:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None
