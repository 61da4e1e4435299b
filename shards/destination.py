"""Where packing puts a data set: a local folder or a bucket, the same bytes in both.

While packing, `.packing/` holds a record of each finished shard, so that a pack that was killed and is run
again keeps it. A shard appears under its name only whole.
"""

import errno
import fcntl
import hashlib
import json
import os
import random
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from shards import index
from shards.allot import ShardPlan
from shards.object_store import connect, explain, is_object_store
from shards.tar import FinishedShard

WORKSHOP = ".packing"

PATIENCE_SECONDS = 120.0  # with a store that does not answer
_NUM_RETRIES = 2  # of the client, each time
_LONGEST_PAUSE = 10.0

# An upload holds this many parts of this size in memory, a worker.
_PART_BYTES = 8 << 20
_NUM_PARTS = 4

_NUM_THREADS = 16  # looking at what an earlier run finished
_HEARTBEAT_SECONDS = 15.0
_ABANDONED_SECONDS = 4 * _HEARTBEAT_SECONDS

Answer = TypeVar("Answer")
Write = Callable[[BinaryIO], FinishedShard]


class Destination(Protocol):
    """What packing asks of the place it writes to. Goes to other processes by pickle."""

    @property
    def url(self) -> str: ...

    def refuse_occupied(self) -> None:
        """Raises FileExistsError for a data set, or other things than an unfinished pack."""

    def held(self) -> Any:
        """Context in which nobody else packs to the same place; raises FileExistsError when somebody does."""

    def recall(self, plans: Iterable[ShardPlan]) -> dict[str, FinishedShard]:
        """By name, the shards that an earlier run finished by the same plan and that are still whole."""

    def make(self, name: str, write: Write) -> FinishedShard:
        """Have `write` fill a temporary file, publish it as shard `name`, and record it."""

    def commit(self, shard_names: set[str], files: Mapping[str, bytes]) -> None:
        """Take other shards away, write `files` in their order, and forget the records."""


def at(to: str | Path) -> Destination:
    """A local folder or an object store's URL. Raises ValueError for what is written to by no protocol."""
    if not is_object_store(to):
        return LocalFolder(Path(to))
    if str(to).startswith("http"):
        raise ValueError(f"{to}: shards are read by http, not written; name a local folder, s3://, gs:// or az://.")
    connect(str(to))  # what is wrong with the URL is said at once
    return Bucket(str(to).rstrip("/"), PATIENCE_SECONDS)


def _is_shard(name: str) -> bool:
    return name.startswith(("train-", "test-")) and name.endswith(".tar")


def _already_packed(where: str) -> FileExistsError:
    return FileExistsError(
        f"{where} is a data set already ({index.MANIFEST_NAME} is there): "
        f"pack into another folder, or delete this one first."
    )


def _other_things(where: str) -> FileExistsError:
    return FileExistsError(f"{where} holds other things than an unfinished pack: pack into a new or empty folder.")


@dataclass(frozen=True)
class LocalFolder:
    folder: Path

    @property
    def url(self) -> str:
        return str(self.folder)

    @property
    def _workshop(self) -> Path:
        return self.folder / WORKSHOP

    def refuse_occupied(self) -> None:
        if (self.folder / index.MANIFEST_NAME).exists():
            raise _already_packed(self.url)
        if self.folder.exists() and not self._workshop.exists() and any(self.folder.iterdir()):
            raise _other_things(self.url)

    @contextmanager
    def held(self) -> Iterator[None]:
        self._workshop.mkdir(parents=True, exist_ok=True)
        with (self._workshop / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FileExistsError(f"another process is packing into {self.url} right now: wait for it.") from None
            self.refuse_occupied()  # again: another pack may have committed since
            for torn in self._workshop.glob("*.part"):
                torn.unlink()
            yield

    def recall(self, plans: Iterable[ShardPlan]) -> dict[str, FinishedShard]:
        with ThreadPoolExecutor(_NUM_THREADS) as pool:  # sha256 lets go of the interpreter
            return {done.name: done for done in pool.map(self._recall, plans) if done is not None}

    def _recall(self, plan: ShardPlan) -> FinishedShard | None:
        try:
            done = FinishedShard.from_json((self._workshop / f"{plan.name}.json").read_bytes())
            if done.digest != plan.digest:
                return None
            # Another plan's shard may lie there under the same name.
            with (self.folder / plan.name).open("rb") as tar:
                return done if hashlib.file_digest(tar, "sha256").hexdigest() == done.sha256 else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def make(self, name: str, write: Write) -> FinishedShard:
        temporary = self._workshop / f"{name}.{os.getpid()}.part"
        try:
            with temporary.open("w+b") as file:
                finished = write(file)
                file.flush()
                os.fsync(file.fileno())
            index.write_durably(self._workshop / f"{name}.json", finished.to_json())
            temporary.replace(self.folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)  # on a full disk its room is needed
            raise
        return finished

    def commit(self, shard_names: set[str], files: Mapping[str, bytes]) -> None:
        for path in self.folder.iterdir():
            if _is_shard(path.name) and path.name not in shard_names:  # an earlier, killed run had others
                path.unlink()
        for name, content in files.items():
            index.write_durably(self.folder / name, content)
        shutil.rmtree(self._workshop)


@lru_cache
def _store(url: str) -> Any:
    """One connection pool a process: obstore does not survive a fork, so it never travels to a worker."""
    return connect(url, _NUM_RETRIES)


_held: set[Any] = set()  # tokens of the locks that this process holds; without network one may be left behind


@dataclass(frozen=True)
class Bucket:
    """A folder of an object store. Shards are written to a nameless temporary file (in TMPDIR), one a worker,
    and uploaded in parts; a store shows an object only once it is whole.
    """

    url: str
    patience: float = PATIENCE_SECONDS  # seconds

    def refuse_occupied(self) -> None:
        listed = self._list()
        if index.MANIFEST_NAME in listed:
            raise _already_packed(self.url)
        if listed and not any(name.startswith(f"{WORKSHOP}/") for name in listed):
            raise _other_things(self.url)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A lock object that is written anew while the pack lives; an old one is a killed pack's."""
        me = {"host": socket.gethostname(), "pid": os.getpid(), "token": os.urandom(8).hex()}
        lock = f"{WORKSHOP}/lock"
        self._put(f"{WORKSHOP}/clock", b"")  # also says at once if writing is not allowed
        listed = self._list()
        if lock in listed:
            self._refuse_living(json.loads(self._get(lock)), listed)
        self._put(lock, json.dumps(me).encode())
        _held.add(me["token"])
        over = threading.Event()

        def beat() -> None:
            while not over.wait(_HEARTBEAT_SECONDS):
                with suppress(OSError):  # the workers will say what is wrong with the store
                    self._put(lock, json.dumps(me).encode())

        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            self.refuse_occupied()  # again: another pack may have committed since
            yield
        finally:
            over.set()
            heart.join()
            _held.remove(me["token"])
            with suppress(OSError):
                self._delete([lock])

    def _refuse_living(self, holder: dict[str, Any], listed: Mapping[str, Any]) -> None:
        now, then = (listed[f"{WORKSHOP}/{name}"]["last_modified"] for name in ("clock", "lock"))
        age = (now - then).total_seconds()  # by the store's own clock
        if age > _ABANDONED_SECONDS:
            return
        mine = holder["pid"] == os.getpid() and holder["token"] not in _held
        if holder["host"] == socket.gethostname() and (mine or not _is_alive(holder["pid"])):
            return
        raise FileExistsError(
            f"another process is packing into {self.url} right now (process {holder['pid']} on "
            f"{holder['host']}, {age:.0f} s ago): wait for it; if it was killed, try again in a minute."
        )

    def recall(self, plans: Iterable[ShardPlan]) -> dict[str, FinishedShard]:
        listed = self._list()
        recorded = [plan for plan in plans if _record(plan.name) in listed]
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            found = list(pool.map(lambda plan: self._recall(plan, listed), recorded))
        # A record says that the shard under its name is the one it describes: it goes before another comes.
        self._delete([_record(p.name) for p, done in zip(recorded, found, strict=True) if done is None])
        return {done.name: done for done in found if done is not None}

    def _recall(self, plan: ShardPlan, listed: Mapping[str, Any]) -> FinishedShard | None:
        try:
            record = json.loads(self._get(_record(plan.name)))
            done = FinishedShard.from_json(record["shard"])
        except (ValueError, KeyError, TypeError):
            return None
        there = listed.get(plan.name)
        if done.digest != plan.digest or there is None or there["size"] != done.num_bytes:
            return None
        return done if _same_tag(there["e_tag"], record["e_tag"]) else None

    def make(self, name: str, write: Write) -> FinishedShard:
        with tempfile.TemporaryFile(prefix="hstl-pack-") as file:
            finished = write(file)
            file.flush()
            sent = self._put(name, file)
        record = {"e_tag": sent["e_tag"], "shard": finished.to_json().decode()}
        self._put(_record(name), json.dumps(record).encode())
        return finished

    def commit(self, shard_names: set[str], files: Mapping[str, bytes]) -> None:
        listed = self._list()
        self._delete([name for name in listed if _is_shard(name) and name not in shard_names])
        for name, content in files.items():
            self._put(name, content)
        self._delete([name for name in listed if name.startswith(f"{WORKSHOP}/")])

    def _list(self) -> dict[str, Any]:
        """Everything under the URL by its name: size, e_tag, last_modified."""

        def act() -> dict[str, Any]:
            chunks = _store(self.url).list()
            return {entry["path"]: entry for chunk in chunks for entry in chunk}

        return self._patiently(self.url, act)

    def _get(self, name: str) -> bytes:
        return self._patiently(f"{self.url}/{name}", lambda: bytes(_store(self.url).get(name).bytes()))

    def _put(self, name: str, content: bytes | BinaryIO) -> Any:
        def act() -> Any:
            if not isinstance(content, bytes):
                content.seek(0)
            return _store(self.url).put(name, content, chunk_size=_PART_BYTES, max_concurrency=_NUM_PARTS)

        return self._patiently(f"{self.url}/{name}", act)

    def _delete(self, names: list[str]) -> None:
        if names:
            self._patiently(self.url, lambda: _store(self.url).delete(names))

    def _patiently(self, where: str, act: Callable[[], Answer]) -> Answer:
        """`act`, again and again with longer pauses while the store does not answer. Raises what it means."""
        from obstore.exceptions import BaseError

        deadline = time.monotonic() + self.patience
        pause = 0.5
        while True:
            try:
                return act()
            except (BaseError, FileNotFoundError) as error:
                meant = explain(error, where)
                if not isinstance(meant, ConnectionError) or time.monotonic() + pause > deadline:
                    raise meant from None
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, _LONGEST_PAUSE)


def _same_tag(a: str | None, b: str | None) -> bool:
    """Azure quotes an ETag where it answers an upload, and does not where it lists; a store may give none."""
    return a is not None and b is not None and a.strip('"') == b.strip('"')


def _record(name: str) -> str:
    return f"{WORKSHOP}/{name}.json"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True
