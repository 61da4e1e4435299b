"""Is every byte what the index says? Reads the whole data set once and lists every fault."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from shards import crew, index
from shards.object_store import is_object_store
from shards.sequence import decode
from shards.store import LocalStore, read_manifest
from shards.store.remote import RemoteStore, ReplacedError

_CHUNK = 1 << 20


@dataclass
class VerifyReport:
    """What `verify` looked at, and what was wrong, one line a fault. `print` it with rich."""

    url: str
    fingerprint: str
    num_shards: int = 0
    num_shards_before: int = 0  # of them, found whole by an earlier run
    num_sequences: int = 0
    num_bytes: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        before = f", {self.num_shards_before} of them by an earlier run" if self.num_shards_before else ""
        looked = f"{self.num_shards} shards{before}, {self.num_sequences:,} sequences, {self.num_bytes / 1e6:,.1f} MB"
        if self.ok:
            yield f"{self.url}: {looked}: every byte is what the index says.\nfingerprint {self.fingerprint}"
            return
        yield f"{self.url}: {looked}: {len(self.faults)} faults"
        yield from (f"  {fault}" for fault in self.faults)


@dataclass
class CheckedShard:
    """What looking at one shard gave. `sha256` is the one it should have."""

    name: str
    sha256: str
    num_bytes: int = 0
    num_sequences: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    """A shard to look at; rows: those of the index that name it, by offset, or None without an index."""

    shard: index.Shard
    rows: pa.Table | None


@dataclass(frozen=True)
class _Check:
    """Looks at a shard, here or in another process."""

    url: str
    height: int
    width: int

    def __call__(self, task: _Task, count: crew.Count) -> CheckedShard:
        shard, checked = task.shard, CheckedShard(task.shard.name, task.shard.sha256)
        rows = [] if task.rows is None else task.rows.to_pylist()
        digest = hashlib.sha256()

        def chunks() -> Iterator[bytes]:
            for chunk in _stream(open_store(self.url), shard.name):
                digest.update(chunk)
                checked.num_bytes += len(chunk)
                count(1, len(chunk))
                yield chunk

        if task.rows is not None and len(rows) != shard.samples:
            checked.faults.append(
                f"{shard.name}: the index has {len(rows)} sequences in it, {index.MANIFEST_NAME} {shard.samples}"
            )
        try:
            for row, payload in payloads(chunks(), rows):
                checked.num_sequences += 1
                if (fault := self._sequence_fault(row, payload)) is not None:
                    checked.faults.append(f"{shard.name}: sequence {row['key']}: {fault}")
        except FileNotFoundError:
            checked.faults = [f"{shard.name}: missing"]
            return checked
        except ReplacedError as error:
            checked.faults.append(f"{shard.name}: {error}")
            return checked
        if checked.num_bytes != shard.bytes:
            checked.faults.insert(
                0, f"{shard.name}: {checked.num_bytes} bytes, {index.MANIFEST_NAME} says {shard.bytes}"
            )
        elif digest.hexdigest() != shard.sha256:
            found = f"sha256 {digest.hexdigest()}, {index.MANIFEST_NAME} says {shard.sha256}"
            checked.faults.insert(0, f"{shard.name}: {found}")
        return checked

    def _sequence_fault(self, row: Mapping[str, Any], payload: bytes) -> str | None:
        if len(payload) < row["size"]:
            return f"cut short, {len(payload)} of {row['size']} bytes"
        if (found := zlib.crc32(payload)) != row["crc32"]:
            return f"CRC-32 {found:08x}, the index says {row['crc32']:08x}"
        try:
            shape = decode(payload).shape
        except ValueError as error:
            return str(error)
        if shape != (row["frames"], self.height, self.width):
            return f"holds {list(shape)}, expected {[row['frames'], self.height, self.width]}"
        return None


def verify(
    url: str | Path, progress: bool = True, workers: int | None = None, state: str | Path | None = None
) -> VerifyReport:
    """Check a data set, a local folder or an object store's URL: the index and every shard by sha256, every
    sequence by CRC-32 and shape. Every shard is read once.

    workers: processes; as many as there are cores unless given. state: a file that remembers which shards
    were found whole, so that a run that was broken off goes on; gone once all have been looked at.

    Faults go into the report. Raises FileNotFoundError for what is no data set at all, ValueError for another
    format version or another data set's state file, PermissionError and ConnectionError when an object store
    refuses or stays silent.
    """
    num_workers = crew.num_workers(workers)
    store = open_store(str(url))
    manifest = read_manifest(str(url), store)
    report = VerifyReport(str(url), manifest.index_sha256, num_shards=len(manifest.shards))
    by_shard = _check_index(store, manifest, report)
    memory = _Memory(Path(state), manifest) if state is not None else None
    checked = memory.recall() if memory is not None else {}
    report.num_shards_before = len(checked)
    tasks = [
        _Task(shard, None if by_shard is None else by_shard.get(shard.name, index.SCHEMA.empty_table()))
        for shard in manifest.shards
        if shard.name not in checked
    ]

    def take(shard: CheckedShard) -> None:
        checked[shard.name] = shard
        if memory is not None:
            memory.keep(shard)

    with _progress(sum(task.shard.bytes for task in tasks), progress) as bar:
        check = _Check(str(url), manifest.height, manifest.width)
        crew.run(tasks, check, num_workers, take, lambda _, done: bar.update(bar.task_ids[0], completed=done))
    for shard in (checked[shard.name] for shard in manifest.shards):
        report.num_sequences += shard.num_sequences
        report.num_bytes += shard.num_bytes
        report.faults += shard.faults
    if memory is not None:
        memory.path.unlink(missing_ok=True)
    return report


def open_store(url: str) -> LocalStore | RemoteStore:
    """The files at `url` as they are: no cache, no index."""
    return RemoteStore(url) if is_object_store(url) else LocalStore(Path(url))


def payloads(chunks: Iterable[bytes], rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each row with the bytes its range has, fewer where the file ends; rows go by offset. All chunks are
    taken; of them, only what a row needs is in memory.
    """
    held, start = bytearray(), 0  # bytes of the file, and where the first of them stands
    following = iter(rows)
    row = next(following, None)
    for chunk in chunks:
        held += chunk
        while row is not None and row["offset"] + row["size"] <= start + len(held):
            place = row["offset"] - start
            yield row, bytes(held[place : place + row["size"]]) if place >= 0 else b""
            row = next(following, None)
        behind = len(held) if row is None else min(max(row["offset"] - start, 0), len(held))
        del held[:behind]
        start += behind
    while row is not None:
        place = row["offset"] - start
        yield row, bytes(held[place : place + row["size"]]) if place >= 0 else b""
        row = next(following, None)


def _stream(store: LocalStore | RemoteStore, name: str) -> Iterator[bytes]:
    if isinstance(store, RemoteStore):
        yield from store.stream(name, 0, None)
        return
    offset = 0
    while chunk := store.read_range(name, offset, _CHUNK):
        offset += len(chunk)
        yield chunk


def _check_index(
    store: LocalStore | RemoteStore, manifest: index.Manifest, report: VerifyReport
) -> dict[str, pa.Table] | None:
    """The index's rows by shard, or None with the fault noted. One whose sha256 is wrong is still good to
    check by.
    """
    try:
        encoded = store.read_file(index.INDEX_NAME)
    except FileNotFoundError:
        report.faults.append(f"{index.INDEX_NAME}: missing")
        return None
    try:
        index.check_fingerprint(encoded, manifest, report.url)
    except ValueError as error:
        report.faults.append(str(error))
    try:
        table = index.decode_index(encoded, index.INDEX_NAME)
    except ValueError as error:
        report.faults.append(str(error))
        return None
    by_shard = _group(table)
    for name in sorted(by_shard.keys() - {shard.name for shard in manifest.shards}):
        report.faults.append(f"{name}: the index names it, {index.MANIFEST_NAME} does not")
    return by_shard


def _group(table: pa.Table) -> dict[str, pa.Table]:
    """Rows by shard, those of a shard by offset. One sort: to filter a shard at a time takes hours of ten
    million rows.
    """
    if table.num_rows == 0:
        return {}
    names = table["shard"].combine_chunks().dictionary_encode()
    numbers = names.indices.to_numpy()
    order = np.lexsort((table["offset"].to_numpy(), numbers))
    ordered = table.take(order)
    starts = np.searchsorted(numbers[order], np.arange(len(names.dictionary) + 1))
    return {
        name: ordered.slice(starts[i], starts[i + 1] - starts[i]) for i, name in enumerate(names.dictionary.to_pylist())
    }


class _Memory:
    """A file of JSON lines: the data set's fingerprint, then a line for each shard that was found whole."""

    def __init__(self, path: Path, manifest: index.Manifest) -> None:
        self.path = path
        self._sha256 = {shard.name: shard.sha256 for shard in manifest.shards}
        self._fingerprint = manifest.index_sha256

    def recall(self) -> dict[str, CheckedShard]:
        """Raises ValueError when the file is another data set's or no such file."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"fingerprint": self._fingerprint})
            return {}
        lines = self.path.read_text(errors="replace").splitlines()
        first = _parse(lines[0]) if lines else None
        if first is None or "fingerprint" not in first:
            raise ValueError(f"{self.path} is no state file of hstl verify: name another one.")
        if first["fingerprint"] != self._fingerprint:
            raise ValueError(
                f"{self.path} remembers fingerprint {first['fingerprint']}, this data set has {self._fingerprint}: "
                f"delete the file or name another one."
            )
        # The last line may be torn: that shard is looked at again.
        known = [CheckedShard(**fields) for line in lines[1:] if (fields := _parse(line)) is not None]
        return {shard.name: shard for shard in known if self._sha256.get(shard.name) == shard.sha256}

    def keep(self, shard: CheckedShard) -> None:
        if not shard.faults:
            self._append(asdict(shard))

    def _append(self, fields: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(f"{json.dumps(fields)}\n")
            file.flush()
            os.fsync(file.fileno())


def _parse(line: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError:
        return None
    return fields if isinstance(fields, dict) else None


def _progress(total: int, enabled: bool) -> Progress:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        disable=not enabled,
        transient=True,
    )
    bar.add_task("verifying", total=total)
    return bar
