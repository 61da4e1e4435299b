"""Is every byte what the index says? Reads the whole data set once and lists every fault."""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from shards import index
from shards.sequence import decode
from shards.store import LocalStore, local_folder, read_manifest

_CHUNK = 1 << 20


@dataclass
class VerifyReport:
    """What `verify` looked at, and what was wrong, one line a fault. `print` it with rich."""

    url: str
    fingerprint: str
    num_shards: int = 0
    num_sequences: int = 0
    num_bytes: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        looked = f"{self.num_shards} shards, {self.num_sequences:,} sequences, {self.num_bytes / 1e6:,.1f} MB"
        if self.ok:
            yield f"{self.url}: {looked}: every byte is what the index says.\nfingerprint {self.fingerprint}"
            return
        yield f"{self.url}: {looked}: {len(self.faults)} faults"
        yield from (f"  {fault}" for fault in self.faults)


def verify(url: str | Path, progress: bool = True) -> VerifyReport:
    """Check a data set: the index and every shard by sha256, every sequence by CRC-32 and shape.

    Faults go into the report; only a folder that is no data set at all raises, FileNotFoundError, and one of
    another format version, ValueError.
    """
    store = LocalStore(local_folder(url))
    manifest = read_manifest(str(url), store)
    report = VerifyReport(str(url), manifest.index_sha256, num_shards=len(manifest.shards))
    table = _check_index(store, manifest, report)
    sizes = store.sizes()
    with _progress(sum(shard.bytes for shard in manifest.shards), progress) as bar:
        for shard in manifest.shards:
            if shard.name not in sizes:
                report.faults.append(f"{shard.name}: missing")
                continue
            report.num_bytes += _check_shard(store, shard, sizes[shard.name], report.faults, bar)
            if table is not None:
                rows = table.filter(pc.equal(table["shard"], shard.name)).to_pylist()
                _check_rows(store, shard, rows, manifest, report)
    return report


def _check_index(store: LocalStore, manifest: index.Manifest, report: VerifyReport) -> pa.Table | None:
    """The index, or None with the fault noted. One whose sha256 is wrong is still good to check by."""
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
    for name in sorted(set(table["shard"].unique().to_pylist()) - {shard.name for shard in manifest.shards}):
        report.faults.append(f"{name}: the index names it, {index.MANIFEST_NAME} does not")
    return table


def _check_shard(store: LocalStore, shard: index.Shard, size: int, faults: list[str], bar: Progress) -> int:
    """Length and sha256 of the whole file; returns the bytes read."""
    if size != shard.bytes:
        faults.append(f"{shard.name}: {size} bytes, {index.MANIFEST_NAME} says {shard.bytes}")
    digest = hashlib.sha256()
    for offset in range(0, size, _CHUNK):
        chunk = store.read_range(shard.name, offset, _CHUNK)
        digest.update(chunk)
        bar.advance(bar.task_ids[0], len(chunk))
    if size == shard.bytes and digest.hexdigest() != shard.sha256:
        faults.append(f"{shard.name}: sha256 {digest.hexdigest()}, {index.MANIFEST_NAME} says {shard.sha256}")
    return size


def _check_rows(
    store: LocalStore,
    shard: index.Shard,
    rows: list[dict[str, Any]],
    manifest: index.Manifest,
    report: VerifyReport,
) -> None:
    if len(rows) != shard.samples:
        report.faults.append(
            f"{shard.name}: the index has {len(rows)} sequences in it, {index.MANIFEST_NAME} {shard.samples}"
        )
    for row in rows:
        report.num_sequences += 1
        fault = _sequence_fault(store, row, manifest)
        if fault is not None:
            report.faults.append(f"{shard.name}: sequence {row['key']}: {fault}")


def _sequence_fault(store: LocalStore, row: dict[str, Any], manifest: index.Manifest) -> str | None:
    payload = store.read_range(row["shard"], row["offset"], row["size"])
    if len(payload) < row["size"]:
        return f"cut short, {len(payload)} of {row['size']} bytes"
    if (found := zlib.crc32(payload)) != row["crc32"]:
        return f"CRC-32 {found:08x}, the index says {row['crc32']:08x}"
    try:
        shape = decode(payload).shape
    except ValueError as error:
        return str(error)
    if shape != (row["frames"], manifest.height, manifest.width):
        return f"holds {list(shape)}, expected {[row['frames'], manifest.height, manifest.width]}"
    return None


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
