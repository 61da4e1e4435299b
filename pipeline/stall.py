"""Ends a process that no longer gets on, so that its job ends with the reason in the log, instead of hanging."""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_CODE = 75
"""Of a process that ended itself: EX_TEMPFAIL."""


class StallGuard:
    """Watches one process from a thread of its own; `with` starts and ends it.

    A stage (`with guard.during("step 17"):`) that takes longer than `seconds` ends the process: a line that says who,
    where and how long, the stacks of all threads, and exit code 75. Nothing softer works, as a process that waits in a
    collective for one that hangs cannot be interrupted. `say` hears the line, too, and has five seconds.
    """

    def __init__(self, seconds: float, say: Callable[[str], None] | None = None) -> None:
        self._seconds, self._say = seconds, say
        self._stage: str | None = None
        self._waited = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall guard", daemon=True)

    def __enter__(self) -> "StallGuard":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """A stage that must not take longer than the guard's seconds."""
        self._waited, self._stage = 0.0, stage
        try:
            yield
        finally:
            self._stage = None

    def _watch(self) -> None:
        tick = min(self._seconds / 10, 5)
        while not self._done.wait(tick):
            stage = self._stage
            self._waited += tick  # not by the clock: a job that was suspended has not stalled
            if stage is not None and self._waited > self._seconds:
                self._end(stage)

    def _end(self, stage: str) -> None:
        rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        line = (
            f"rank {rank} of {world_size} stalled: {stage} took longer than {self._seconds:g} s "
            "(train.stall_seconds); this process ends, so that the job does not hang"
        )
        print(f"\n{line}. Where its threads are:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        if self._say is not None:
            # What hangs may be the disk it writes to.
            saying = threading.Thread(target=self._say, args=(line,), daemon=True)
            saying.start()
            saying.join(5)
        os._exit(EXIT_CODE)
