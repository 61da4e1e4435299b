"""The table of all sequences, the list of all shards, and the fingerprint that names both.

`index.parquet` has a row a sequence; `shards.json` has an entry a shard and the index's sha256, the
fingerprint. It is written last: a folder without it is not a data set.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

FORMAT = 1
INDEX_NAME = "index.parquet"
MANIFEST_NAME = "shards.json"

SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in {
            "key": pa.string(),
            "subject": pa.string(),
            "condition": pa.string(),
            "view": pa.string(),
            "frames": pa.int32(),
            "split": pa.string(),
            "shard": pa.string(),
            "offset": pa.int64(),  # of the .sils.npy.gz payload in the shard, bytes
            "size": pa.int64(),  # of that payload, bytes
            "crc32": pa.uint32(),  # of that payload
        }.items()
    ]
)


_READS = 3  # of an index whose sha256 comes out wrong: a network's fault passes, another index stays

# Columns of few different values: read as codes, a million rows take a third of the time.
_REPEATING = ["subject", "condition", "view", "split", "shard"]


@dataclass(frozen=True)
class Shard:
    """A tar beside the index. `bytes` and `sha256` are of the whole file, `samples` counts its sequences."""

    name: str
    bytes: int
    sha256: str
    samples: int


@dataclass(frozen=True)
class Manifest:
    """What `shards.json` says."""

    name: str
    height: int
    width: int
    shards: tuple[Shard, ...]
    index_sha256: str

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def to_json(self) -> bytes:
        fields = asdict(self)
        return (json.dumps({"format": FORMAT, **fields}, indent=1) + "\n").encode()


def encode_index(rows: list[dict[str, Any]] | pa.Table) -> bytes:
    """Rows with the columns of SCHEMA -> the bytes of `index.parquet`. Raises ValueError when a key comes
    twice.
    """
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=SCHEMA)
    if pc.count_distinct(table["key"]).as_py() != len(table):
        counts = table["key"].value_counts()
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0].as_py()
        raise ValueError(f"key {twice!r} stands for two sequences; rename one of them in the source.")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def decode_index(data: bytes, where: str) -> pa.Table:
    """The bytes of `index.parquet` -> table with the columns of SCHEMA, one chunk each. Raises ValueError
    when it is another table.
    """
    try:
        schema = pq.read_schema(pa.BufferReader(data))
        if not schema.equals(SCHEMA):
            difference = sorted(set(map(str, SCHEMA)) ^ set(map(str, schema)))
            raise ValueError(f"{where} has other columns than format {FORMAT}: {'; '.join(difference)}.")
        table = pq.read_table(pa.BufferReader(data), read_dictionary=_REPEATING)
        return table.cast(SCHEMA).combine_chunks()
    except pa.ArrowException as error:
        raise ValueError(f"{where} is no readable parquet: {error}") from error


def open_index(manifest: Manifest, read: Callable[[], bytes], where: str, folder: Path | None) -> pa.Table:
    """The index that `manifest` names: from `folder` where it lies decoded, else from what `read` gives.

    In `folder` it is an Arrow file named by its fingerprint, left there for whoever opens it next: mapped,
    not read, and in memory once for all processes. Raises ValueError when what `read` gives is damaged or
    another data set's.
    """
    path = folder / f"{manifest.index_sha256}.arrow" if folder is not None else None
    if path is not None and (mapped := _map(path, manifest)) is not None:
        return mapped
    for _ in range(_READS):
        encoded = read()
        if fingerprint(encoded) == manifest.index_sha256:
            break
    check_fingerprint(encoded, manifest, where)
    table = decode_index(encoded, f"{where}/{INDEX_NAME}")
    if len(table) != manifest.num_samples:
        raise ValueError(
            f"{where}/{INDEX_NAME} has {len(table)} rows, the shards of {MANIFEST_NAME} hold "
            f"{manifest.num_samples} sequences: pack the data again."
        )
    if path is None:
        return table
    try:
        _write_arrow(table, path)
    except OSError:  # a full disk: reading goes on from memory
        return table
    return _map(path, manifest) or table


def _map(path: Path, manifest: Manifest) -> pa.Table | None:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowException):
        return None
    return table if table.schema.equals(SCHEMA) and len(table) == manifest.num_samples else None


def _write_arrow(table: pa.Table, path: Path) -> None:
    # Several processes may write at once; each renames the same content.
    with NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
        try:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def fingerprint(index: bytes) -> str:
    return hashlib.sha256(index).hexdigest()


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The bytes of `shards.json`. Raises ValueError when it is torn or of another format version."""
    try:
        fields = json.loads(data)
        version = fields.pop("format")
        if version != FORMAT:
            raise ValueError(
                f"{where} is of format {version}, this version of hstl reads format {FORMAT}: "
                f"pack the data again, or use the version that packed it."
            )
        fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
        return Manifest(**fields)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is damaged ({error!r}): pack the data again.") from error


def no_data_set(where: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{where} is not a data set: it has no {MANIFEST_NAME}, which packing writes last. "
        f"Packing did not finish; run `hstl pack ... --to {where}` again, finished shards are kept."
    )


def check_fingerprint(index: bytes, manifest: Manifest, where: str) -> None:
    if (found := fingerprint(index)) != manifest.index_sha256:
        raise ValueError(
            f"{where}/{INDEX_NAME} has sha256 {found}, {MANIFEST_NAME} says {manifest.index_sha256}: "
            f"one of the two was changed or copied only in part. Copy both again, or pack again."
        )


def check_sizes(manifest: Manifest, sizes: dict[str, int], where: str) -> list[str]:
    """What is wrong with the shards at `where`, judged by names and lengths alone: one line a fault."""
    faults = []
    for shard in manifest.shards:
        if shard.name not in sizes:
            faults.append(f"{where}/{shard.name} is missing")
        elif sizes[shard.name] != shard.bytes:
            faults.append(f"{where}/{shard.name} has {sizes[shard.name]} bytes, {MANIFEST_NAME} says {shard.bytes}")
    return faults


def write_durably(path: Path, data: bytes) -> None:
    """Write under another name, flush to the disk, rename: readers see all of it or nothing."""
    temporary = path.with_name(f"{path.name}.writing")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
