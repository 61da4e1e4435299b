"""An object store behind the node's cache: what is there is read there, the rest by ranges, then fetched."""

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from shards.store.cache import NodeCache, NoRoomError
from shards.store.ranges import Range
from shards.store.remote import Buffer, RemoteStore

ATTEMPTS = 3  # to fetch a shard whose sha256 comes out wrong
NO_ROOM_SECONDS = 60.0  # until room is looked for again
_EXIT_SECONDS = 10.0

_logger = logging.getLogger("shards")


class CachedStore:
    """Reads as RemoteStore does, from the cache where it can."""

    def __init__(self, remote: RemoteStore, cache: NodeCache) -> None:
        self.remote, self.cache = remote, cache
        self._filler = _Filler(remote, cache)
        # A thread inside obstore when the interpreter goes down would abort the process.
        weakref.finalize(self, self._filler.stop)

    def read_file(self, name: str) -> bytes:
        return self.remote.read_file(name)

    def read_ranges(self, wanted: Sequence[Range]) -> Iterator[Buffer]:
        """The bytes of each range in turn; shards that are not here are fetched whole afterwards."""
        here = {name: self.cache.has(name) for name in {item.name for item in wanted}}
        missing = [item for item in wanted if not here[item.name]]
        self.remote.statistics.add(cache_hits=len(wanted) - len(missing), cache_misses=len(missing))
        arriving = self.remote.read_ranges(missing) if missing else iter(())
        return self._in_turn(wanted, here, arriving)

    def _in_turn(self, wanted: Sequence[Range], here: dict[str, bool], arriving: Iterator[Buffer]) -> Iterator[Buffer]:
        for item in wanted:
            if not here[item.name]:
                yield next(arriving)
                continue
            found = self.cache.read(item.name, item.start, item.size)
            yield self.remote.read_again(item) if found is None else found
        # After the batch: its own ranges must not share the line with whole shards.
        self._filler.want(name for name, is_here in here.items() if not is_here)

    def read_again(self, wanted: Range) -> bytes:
        """From the source; what the cache has of that shard is not trusted any more."""
        self.cache.drop(wanted.name)
        return self.remote.read_again(wanted)


class _Filler:
    """One thread a process that brings wanted shards into the cache, in the order they were wanted."""

    def __init__(self, remote: RemoteStore, cache: NodeCache) -> None:
        self._remote, self._cache = remote, cache
        self._queue: deque[str] = deque()
        self._failures: dict[str, int] = {}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._room_again = 0.0
        self._thread: threading.Thread | None = None

    def want(self, names: Iterable[str]) -> None:
        with self._changed:
            if time.monotonic() < self._room_again:
                return
            for name in names:
                if name not in self._queue and self._failures.get(name, 0) < ATTEMPTS:
                    self._queue.append(name)
            if self._queue and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shards-cache", daemon=True)
                self._thread.start()
            self._changed.notify()

    def stop(self) -> None:
        """End the thread; a shard half fetched is given up."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_EXIT_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._stop.is_set():
                    self._changed.wait()
                if self._stop.is_set():
                    return
                name = self._queue[0]
            self._fill(name)
            with self._changed:
                if self._queue:
                    self._queue.popleft()

    def _fill(self, name: str) -> None:
        try:
            if self._cache.fill(name, lambda: self._stream(name)):
                self._remote.statistics.add(shards_cached=1)
        except NoRoomError:
            with self._changed:
                self._queue.clear()
                self._room_again = time.monotonic() + NO_ROOM_SECONDS
        except _StoppedError:
            pass
        except Exception as error:  # reading goes on by ranges, and raises what there is to raise
            self._failures[name] = self._failures.get(name, 0) + 1
            _logger.warning("%s/%s could not be cached: %s", self._remote.url, name, error)

    def _stream(self, name: str) -> Iterator[bytes]:
        for chunk in self._remote.stream(name, 0, self._cache.size(name), self._stop.wait):
            if self._stop.is_set():
                raise _StoppedError
            yield chunk


class _StoppedError(Exception):
    pass
