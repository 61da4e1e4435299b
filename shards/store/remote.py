"""Files of an object store: concurrent ranged reads that go on where a connection broke."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from shards.object_store import connect, explain
from shards.store.ranges import Range, merge
from shards.store.retry import PATIENCE_SECONDS, Retries
from shards.store.statistics import Statistics

NUM_CONNECTIONS = 32  # a process; a batch of 32 subjects is then one round trip
CHUNK = 1024 * 1024  # what has arrived of a chunk when a connection breaks is asked for again

Buffer = bytes | memoryview

_connected_here = False  # whether this process, or one it was forked from, has used obstore
_forked_after = False


def _after_fork() -> None:
    global _forked_after
    _forked_after = _connected_here


os.register_at_fork(after_in_child=_after_fork)


class ReplacedError(ValueError):
    """A file is no longer the one that was read before."""


class TooShortError(ValueError):
    """A file ends before the range that was asked for."""


class RemoteStore:
    """Files below the URL of an object store. Connects on first use, each process anew.

    patience: seconds without a byte after which reading gives up; until then it pauses and tries again. What
    no waiting mends is raised at once: FileNotFoundError, PermissionError, ReplacedError, TooShortError.
    """

    def __init__(self, url: str, statistics: Statistics | None = None, patience: float = PATIENCE_SECONDS) -> None:
        self.url = url.rstrip("/")
        self.statistics = statistics or Statistics()
        self.patience = patience
        self._lock = threading.Lock()
        self._client: Any = None
        self._threads: ThreadPoolExecutor | None = None
        self._e_tags: dict[str, str] = {}

    def read_file(self, name: str) -> bytes:
        """All bytes of a file."""
        return b"".join(self.stream(name, 0, None))

    def read_unchecked_file(self, name: str) -> bytes:
        """All bytes of a file that no checksum is known of: read until two readings agree."""
        before, found = self.read_file(name), self.read_file(name)
        while found != before:
            before, found = found, self.read_file(name)
        return found

    def read_ranges(self, wanted: Sequence[Range]) -> Iterator[Buffer]:
        """The bytes of each range in turn. Neighbours come by one request; all leave at once, now."""
        requests = merge(wanted)
        # Here, not in the pool: threads do not survive a fork, and the reason must be told where one reads.
        self._connect()
        assert self._threads is not None
        abandoned = threading.Event()
        arriving = [self._threads.submit(self._fetch, request.range, abandoned.wait) for request in requests]
        where = [(0, 0, 0)] * len(wanted)
        for number, request in enumerate(requests):
            for place in request.places:
                start = wanted[place].start - request.range.start
                where[place] = number, start, start + wanted[place].size
        return _in_turn(arriving, where, abandoned)

    def read_again(self, wanted: Range) -> bytes:
        return self._fetch(wanted, time.sleep)

    def sizes(self) -> dict[str, int] | None:
        """Name and length in bytes of every file, or None where the store does not let us list."""
        from obstore import list as list_objects
        from obstore.exceptions import BaseError

        retries = Retries(self.patience)
        while True:
            try:
                self.statistics.add(requests=1)
                return {entry["path"]: entry["size"] for page in list_objects(self._connect()) for entry in page}
            except (BaseError, OSError) as error:
                if self.url.startswith("http"):
                    return None
                explained = self._explain(error, "")
                if isinstance(explained, PermissionError):
                    return None  # a right to read need not be one to list
                self._pause(retries, explained)

    def stream(
        self,
        name: str,
        start: int,
        stop: int | None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> Iterator[bytes]:
        """Bytes `start` to `stop`, or to the end of the file, in chunks as they come."""
        retries = Retries(self.patience, sleep)
        at = start
        while stop is None or at < stop:
            try:
                result = self._get(name, at, stop)
                stop = self._checked_stop(result, name, stop)
                for chunk in result.stream(CHUNK) if stop - at > CHUNK else (result.bytes(),):
                    at += len(chunk)
                    self.statistics.add(bytes=len(chunk))
                    retries.went_forward()
                    yield bytes(chunk)
                if at < stop:
                    raise ConnectionError(f"the answer ended {stop - at} bytes early.")
            except _failures() as error:
                self._pause(retries, self._explain(error, name))

    def _fetch(self, wanted: Range, sleep: Callable[[float], object]) -> bytes:
        return b"".join(self.stream(*wanted, sleep))

    def _get(self, name: str, start: int, stop: int | None) -> Any:
        from obstore import get

        self.statistics.add(requests=1)
        if stop is None:
            return get(self._connect(), name)
        return get(self._connect(), name, options={"range": (start, stop)})

    def _checked_stop(self, result: Any, name: str, stop: int | None) -> int:
        """Where the range ends. Raises ReplacedError and TooShortError."""
        size, e_tag = int(result.meta["size"]), result.meta["e_tag"]
        if e_tag and self._e_tags.setdefault(name, e_tag) != e_tag:
            raise ReplacedError(
                f"{self.url}/{name} was replaced while in use: it had ETag {self._e_tags[name]}, it now has "
                f"{e_tag}. Open the data set again."
            )
        if stop is not None and size < stop:
            raise TooShortError(f"{self.url}/{name} has {size} bytes, at least {stop} were expected")
        return size if stop is None else stop

    def _pause(self, retries: Retries, error: Exception) -> None:
        if not isinstance(error, ConnectionError):
            raise error from None  # the client's own words may hold a signed address
        started = time.monotonic()
        try:
            retries.failed(error)
        finally:
            self.statistics.add(retries=1, pause_ms=round(1000 * (time.monotonic() - started)))

    def _explain(self, error: Exception, name: str) -> Exception:
        """The error in words: a ConnectionError when waiting may mend it, another one when it will not."""
        url = f"{self.url}/{name}".rstrip("/")
        text = str(error)
        code = re.search(r"status code: (\d{3})", text)
        if (code and code[1] == "416") or "StartTooLarge" in text:
            return TooShortError(f"{url} is shorter than expected")
        if type(error).__name__ == "NotSupportedError":
            return ValueError(f"{url}: the server does not send parts of files: use one that answers ranges.")
        explained = explain(error, url)
        if isinstance(explained, ConnectionError) and code and code[1] in {"400", "405", "410", "411", "501"}:
            return ValueError(str(explained))
        return explained

    def _connect(self) -> Any:
        global _connected_here
        if _forked_after:
            raise RuntimeError(
                f"{self.url}: this process was forked from one that had used an object store, and would "
                f"hang: give the DataLoader multiprocessing_context='forkserver' (or 'spawn')."
            )
        with self._lock:
            if self._client is None:
                _connected_here = True
                self._client = connect(self.url, max_retries=0)  # a stream's own retries do not outlive a cut
                self._threads = ThreadPoolExecutor(NUM_CONNECTIONS, "shards")
            return self._client


def _in_turn(
    arriving: list[Future[bytes]], where: list[tuple[int, int, int]], abandoned: threading.Event
) -> Iterator[Buffer]:
    """The slices [start:stop] of what arrives as number so-and-so."""
    try:
        for number, start, stop in where:
            yield memoryview(arriving[number].result())[start:stop]
    finally:  # also when the reader gave up half-way: nobody waits for the others any more
        abandoned.set()
        for future in arriving:
            future.cancel()


def _failures() -> tuple[type[Exception], ...]:
    from obstore.exceptions import BaseError

    return (BaseError, OSError)
