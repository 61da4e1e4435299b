"""Counters of reading, summed over this process and the loader workers it started."""

import mmap
import os
import shutil
import tempfile
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

COUNTERS = (
    "sequences",  # read and checked
    "requests",  # sent to the object store
    "bytes",  # received from it
    "retries",  # requests sent again after an error
    "pause_ms",  # waited between them, all threads together
    "cache_hits",  # sequences read from the node's cache
    "cache_misses",  # sequences that were not there
    "shards_cached",  # shards brought into it
    "rereads",  # sequences whose CRC was wrong, read again from the source
)


class Statistics:
    """Counts in memory until pickled, then in a file a process: whoever holds a copy sees the sum.

    The files lie in a temporary folder of this machine and go when the process that made them ends; a copy on
    another machine counts alone.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._counts = np.zeros(len(COUNTERS), np.int64)
        self._pid = 0 if folder else os.getpid()  # 0: this process has no file yet

    def add(self, **counts: int) -> None:
        with self._lock:
            mine = self._mine()
            for name, count in counts.items():
                mine[COUNTERS.index(name)] += count

    def as_dict(self) -> dict[str, int]:
        """Counter -> sum over the processes, those that have ended included."""
        with self._lock:
            total = self._mine().copy()
            if self._folder is not None:
                others = (path for path in Path(self._folder).glob("*") if path.name != str(os.getpid()))
                for path in others:
                    found = np.frombuffer(path.read_bytes(), np.int64)
                    total[: len(found)] += found[: len(total)]
        return dict(zip(COUNTERS, total.tolist(), strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        with self._lock:
            if self._folder is None:
                before = self._counts.copy()
                self._folder = tempfile.mkdtemp(prefix="hstl-counters-")
                weakref.finalize(self, _remove, self._folder, os.getpid())
                self._pid = 0
                self._mine()[:] = before
        return Statistics, (self._folder,)

    def _mine(self) -> np.ndarray:
        if self._pid != os.getpid():  # fresh, or forked: another process's counters are not ours to write
            self._pid = os.getpid()
            self._counts = np.zeros(len(COUNTERS), np.int64)
            if self._folder is not None:
                with suppress(FileNotFoundError):  # the owner has ended, or is on another machine
                    self._counts = _map(Path(self._folder) / str(self._pid))
        return self._counts


def _map(path: Path) -> np.ndarray:
    size = len(COUNTERS) * 8
    with path.open("a+b") as file:
        file.truncate(size)
        return np.frombuffer(mmap.mmap(file.fileno(), size), np.int64)


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
