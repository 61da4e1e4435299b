"""Whole shards on the node's own disk, shared by its processes.

    CACHE/lock                        held while room is counted or made
    CACHE/<fingerprint>/in-use        held, shared, by every process that has this data set open
    CACHE/<fingerprint>/<shard>       whole, and of the right sha256: it has this name only then
    CACHE/<fingerprint>/<shard>.part  being fetched by the process that holds its lock; else a dead one's

All locks are flock's: the kernel frees them however a process ends.

When the disk or the limit is full, shards of data sets that no process has open make room, those of the
least recently used set first. Shards of the set itself never do: batches draw from all of a set at random, so
what one shard gains another loses, and each swap would fetch a whole shard. The rest is then read by ranges.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from io import BufferedRandom
from pathlib import Path
from typing import BinaryIO

from shards.index import Manifest, Shard

FOLDER_VARIABLE = "HSTL_CACHE"
LIMIT_VARIABLE = "HSTL_CACHE_GB"

NUM_OPEN_SHARDS = 256
_KEPT_FREE = 0.05  # of the disk: a full one breaks the node's other work
_IN_USE = "in-use"
_PART = ".part"


def cache_folder(given: str | Path | None) -> Path | None:
    """The folder named, or by HSTL_CACHE, or None."""
    named = given or os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else None


def cache_limit(given: float | None) -> int | None:
    """The limit in bytes, from `given` or HSTL_CACHE_GB, or None. Raises ValueError."""
    text = os.environ.get(LIMIT_VARIABLE) if given is None else given
    if text is None or text == "":
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise ValueError(f"{LIMIT_VARIABLE} (cache_gb) must be a number of GB from 0, it is {text!r}.")
    return int(limit * 1e9)


class NoRoomError(OSError):
    """The cache is full, and nothing in it is idle."""


class NodeCache:
    """The shards of one data set in the cache at `root`. limit: bytes, of all data sets together; the disk's
    own unless given.

    Raises OSError when `root` cannot be written.
    """

    def __init__(self, root: Path, manifest: Manifest, limit: int | None = None) -> None:
        self.root, self.limit = root, limit
        self.folder = root / manifest.index_sha256
        self._shards = {shard.name: shard for shard in manifest.shards}
        self._in_use = self._enter()
        # Of no method of this object: a cycle would hold the set in use until the next garbage collection.
        self._opened = lru_cache(NUM_OPEN_SHARDS)(partial(_open_shard, self.folder, self._shards))
        for part in self.folder.glob(f"*{_PART}"):
            with _locked(part, wait=False) as held:
                if held:
                    part.unlink()  # of a process that was killed

    def read(self, name: str, offset: int, size: int) -> bytes | None:
        """`size` bytes of a shard from `offset`, or None when it is not here."""
        try:
            file = self._opened(name)
        except FileNotFoundError:
            return None
        return os.pread(file.fileno(), size, offset)

    def has(self, name: str) -> bool:
        try:
            self._opened(name)
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        """Bytes of a shard when whole."""
        return self._shards[name].bytes

    def drop(self, name: str) -> None:
        """Forget a shard that turned out damaged."""
        self._opened.cache_clear()
        (self.folder / name).unlink(missing_ok=True)

    def fill(self, name: str, stream: Callable[[], Iterator[bytes]]) -> bool:
        """Bring a shard in, unless it is here or another process is at it; returns whether this call did.

        Raises NoRoomError, ValueError when what came is not the shard by sha256, and what `stream` raises.
        """
        shard, path = self._shards[name], self.folder / name
        part = path.with_name(name + _PART)
        if path.exists():
            return False
        with _locked(part, wait=False) as held:
            if held is None or path.exists():
                return False
            try:
                self._reserve(held, shard.bytes)
                for chunk in stream():
                    held.write(chunk)
                held.truncate()
                held.seek(0)
                if (found := hashlib.file_digest(held, "sha256").hexdigest()) != shard.sha256:
                    raise ValueError(f"{name} came with sha256 {found}, shards.json says {shard.sha256}.")
                os.fsync(held.fileno())
            except BaseException:
                part.unlink()
                raise
            part.replace(path)
        return True

    def _enter(self) -> BinaryIO:
        """Hold the set in use until this object goes; the time of the file says when it was last."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / _IN_USE
            try:
                file = path.open("ab")
            except FileNotFoundError:  # evicted between the two lines
                continue
            fcntl.flock(file, fcntl.LOCK_SH)
            if _is_at(file, path):
                os.utime(path)
                return file
            file.close()

    def _reserve(self, file: BufferedRandom, size: int) -> None:
        """Give `file` its full length, so that other processes count it. Raises NoRoomError."""
        file.truncate(0)
        with _locked(self.root / "lock", wait=True):
            if (missing := size - self._room()) > 0 and self._evict(missing) < missing:
                raise NoRoomError(f"{self.root} has no room for {size} bytes more.")
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:  # full after all, or a quota
                raise NoRoomError(f"{self.root}: {error}") from error

    def _room(self) -> int:
        disk = shutil.disk_usage(self.root)
        room = disk.free - int(disk.total * _KEPT_FREE)
        if self.limit is None:
            return room
        return min(room, self.limit - sum(_size(path) for path in self.root.glob("*/*")))

    def _evict(self, wanted: int) -> int:
        """Remove shards of sets that nobody has open until `wanted` bytes are free; returns how many are."""
        freed = 0
        idle = [path for path in self.root.glob(f"*/{_IN_USE}") if path.parent != self.folder]
        for in_use in sorted(idle, key=_time):
            with _locked(in_use, wait=False) as held:
                if held is None:
                    continue
                for path in sorted(in_use.parent.iterdir()):
                    if freed >= wanted:
                        return freed
                    if path != in_use:
                        freed += _size(path)
                        path.unlink()
                in_use.unlink()
                in_use.parent.rmdir()
        return freed


def _open_shard(folder: Path, shards: dict[str, Shard], name: str) -> BinaryIO:
    file = (folder / name).open("rb", buffering=0)
    if os.fstat(file.fileno()).st_size != shards[name].bytes:
        file.close()
        (folder / name).unlink(missing_ok=True)
        raise FileNotFoundError(name)
    return file


@contextmanager
def _locked(path: Path, wait: bool) -> Iterator[BufferedRandom | None]:
    """The file at `path`, made if need be, locked by this process alone; None when another holds it."""
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            if not _is_at(file, path):  # renamed or removed by its last holder
                if not wait:
                    yield None
                    return
                continue
            yield file
            return


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _time(path: Path) -> float:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0
