"""Write one shard: a WebDataset tar, the same bytes for the same sequences, and where each payload lies in
it.
"""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from shards import index
from shards.allot import ShardPlan
from shards.sequence import DESCRIPTION_SUFFIX, PAYLOAD_SUFFIX, encode, make_key
from shards.skips import Skips
from shards.sources import find_layout

NO_USABLE_FRAME = "sequence without a usable frame"


@dataclass
class FinishedShard:
    """A shard that is written, and what the index and the report must know of it."""

    digest: str  # of the plan it was made by
    name: str
    num_bytes: int
    sha256: str
    rows: pa.Table  # of the index, in the tar's order; as Python objects 300,000 would fill 300 MB
    skips: Skips = field(default_factory=Skips)

    def to_json(self) -> bytes:
        fields = {item.name: getattr(self, item.name) for item in dataclass_fields(self)}
        readable = {"rows": self.rows.to_pylist(), "skips": self.skips.to_json()}
        return json.dumps({**fields, **readable}).encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> "FinishedShard":
        """Raises ValueError, KeyError or TypeError when the bytes are no such record."""
        fields = json.loads(data)
        rows = pa.Table.from_pylist(fields["rows"], schema=index.SCHEMA)
        return cls(**{**fields, "rows": rows, "skips": Skips.from_json(fields["skips"])})


def write_shard(
    plan: ShardPlan, layout: str, source: Path, file: BinaryIO, on_sequence: Callable[[int], None]
) -> FinishedShard:
    """Read, normalise and write the sequences of `plan` as a tar into `file`, empty and open for both.

    `on_sequence` is told the raw frames of each sequence once it is done. One sequence is in memory at a
    time.
    """
    read = find_layout(layout).read
    rows: list[dict[str, Any]] = []
    skips = Skips()
    # USTAR is the plainest tar there is: no extension headers, no times finer than a second.
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sequence in plan.sequences:
            silhouettes = read(source, sequence, skips)
            if len(silhouettes):
                identity = {
                    "subject": sequence.subject,
                    "condition": sequence.condition,
                    "view": sequence.view,
                    "frames": len(silhouettes),
                }
                key = make_key(sequence.subject, sequence.condition, sequence.view)
                payload = encode(silhouettes, plan.level)
                offset = _add(tar, key + PAYLOAD_SUFFIX, payload)
                _add(tar, key + DESCRIPTION_SUFFIX, json.dumps({**identity, "source": sequence.path}).encode())
                place = {"split": plan.split, "shard": plan.name, "offset": offset, "size": len(payload)}
                rows.append({"key": key, **identity, **place, "crc32": zlib.crc32(payload)})
            else:
                skips.add(NO_USABLE_FRAME, sequence.path)
            on_sequence(sequence.num_raw_frames)
    num_bytes = file.tell()
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    table = pa.Table.from_pylist(rows, schema=index.SCHEMA)
    return FinishedShard(plan.digest, plan.name, num_bytes, sha256, table, skips)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a member whose header depends on name and size alone; returns where its content starts in the
    file.
    """
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    start = tar.offset + tarfile.BLOCKSIZE  # a USTAR header is one block
    tar.addfile(member, io.BytesIO(content))
    return start
