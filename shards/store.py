"""Read a data set: shards behind one reader, every range checked against the index.

This version reads local folders. What differs between kinds of storage is `LocalStore`'s three methods.
"""

import os
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from shards import index as table
from shards.sequence import decode

NUM_OPEN_SHARDS = 128


class DamagedShardError(ValueError):
    """The bytes of a sequence are not those that were packed."""


def local_folder(url: str | Path) -> Path:
    """A local folder as it was named. Raises ValueError for an object store's URL."""
    if "://" in str(url):
        raise ValueError(
            f"{url}: this version reads and writes local folders only. "
            f"Copy the data set to a local disk and name that."
        )
    return Path(url)


class LocalStore:
    """Files of one local folder. Handles open on first use, so a store may be passed to another process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # An evicted file closes once the last read on it has returned, also with several threads reading.
        self._opened = lru_cache(NUM_OPEN_SHARDS)(self._open)

    def read_file(self, name: str) -> bytes:
        """All bytes of a file. Raises FileNotFoundError."""
        return (self.folder / name).read_bytes()

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer where the file ends. Raises FileNotFoundError."""
        file = self._opened(name)  # named, so that it cannot close before the read returns
        return os.pread(file.fileno(), size, offset)

    def sizes(self) -> dict[str, int]:
        """Name and length in bytes of every file."""
        with os.scandir(self.folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def _open(self, name: str) -> BinaryIO:
        return (self.folder / name).open("rb", buffering=0)


class ShardSet:
    """A packed data set, opened. Pickles as its address: another process opens it anew, and refuses another
    one.

    index: the table of all sequences, columns as in `shards.index.SCHEMA`; row numbers are its.
    fingerprint: the index's sha256. name: the data set, such as `casia-b`. height, width: of a silhouette,
    pixels.
    """

    def __init__(self, url: str | Path, cache: str | Path | None = None) -> None:
        self.url = str(url)
        self.cache = cache
        store = LocalStore(local_folder(url))
        self._store = store
        manifest = read_manifest(self.url, store)
        encoded = store.read_file(table.INDEX_NAME)
        table.check_fingerprint(encoded, manifest, self.url)
        if faults := table.check_sizes(manifest, store.sizes(), self.url):
            raise ValueError(
                f"the data set is not whole: {'; '.join(faults)}. Copy these again, or pack again."
            )
        self.index: pa.Table = table.decode_index(encoded, f"{self.url}/{table.INDEX_NAME}")
        self.fingerprint = manifest.index_sha256
        self.name = manifest.name
        self.height, self.width = manifest.height, manifest.width
        self.manifest = manifest
        self._offsets, self._sizes, self._sums = (
            self.index[column].to_numpy() for column in ("offset", "size", "crc32")
        )
        encoded_names = self.index["shard"].combine_chunks().dictionary_encode()
        self._shard_names: list[str] = encoded_names.dictionary.to_pylist()
        self._shard_of_row = encoded_names.indices.to_numpy()

    def __len__(self) -> int:
        return self.index.num_rows

    def __repr__(self) -> str:
        return f"ShardSet({self.url!r}, {len(self)} sequences, fingerprint {self.fingerprint[:12]})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_same, (self.url, self.cache, self.fingerprint)

    def read(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Row numbers -> their silhouettes in the same order, read-only uint8 [frames, height, width] each.

        A row named twice is read once, and both entries are the same array. Raises IndexError for a row that
        does not exist, DamagedShardError, FileNotFoundError.
        """
        wanted = np.asarray(rows, np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(
                f"rows go from 0 to {len(self) - 1}, asked for {wanted.min()} to {wanted.max()}."
            )
        distinct, places = np.unique(wanted, return_inverse=True)
        # Rows of a shard stand in its order, so this reads each shard forwards.
        sequences = [self._read_row(int(row)) for row in distinct]
        return [sequences[place] for place in places]

    def _read_row(self, row: int) -> np.ndarray:
        shard = self._shard_names[self._shard_of_row[row]]
        offset, size, expected = int(self._offsets[row]), int(self._sizes[row]), int(self._sums[row])
        payload = self._read_range(shard, offset, size)
        if zlib.crc32(payload) != expected:  # a passing fault of memory or network is not repeated
            payload = self._read_range(shard, offset, size)
        if (found := zlib.crc32(payload)) != expected:
            place = f"{self.url}/{shard}: sequence {self.index['key'][row].as_py()}"
            if len(payload) < size:
                raise DamagedShardError(
                    f"{place} ends after {len(payload)} of {size} bytes: the shard is cut short. "
                    f"Copy it again, or pack again."
                )
            raise DamagedShardError(
                f"{place} has CRC-32 {found:08x}, the index says {expected:08x}, also when read again: "
                f"the shard is damaged. Copy it again, or pack again."
            )
        return decode(payload)

    def _read_range(self, shard: str, offset: int, size: int) -> bytes:
        try:
            return self._store.read_range(shard, offset, size)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.url}/{shard} is missing: copy it again, or pack again.") from None


def open(url: str | Path, cache: str | Path | None = None) -> ShardSet:
    """Open the data set at `url`, a local folder. `cache` is for object stores, a local folder needs none.

    Raises FileNotFoundError when it is not a data set (packing did not finish, or a wrong path), ValueError
    when it is of another format version, its index is another one's, or shards are missing or cut short.
    """
    return ShardSet(url, cache)


def read_manifest(url: str, store: LocalStore) -> table.Manifest:
    """`shards.json` at `url`. Raises FileNotFoundError or ValueError as `open` does."""
    if not store.folder.is_dir():
        raise FileNotFoundError(f"{url} does not exist, or is no folder.")
    try:
        data = store.read_file(table.MANIFEST_NAME)
    except FileNotFoundError:
        raise table.no_data_set(url) from None
    return table.parse_manifest(data, f"{url}/{table.MANIFEST_NAME}")


def _open_same(url: str, cache: str | Path | None, fingerprint: str) -> ShardSet:
    shard_set = ShardSet(url, cache)
    if shard_set.fingerprint != fingerprint:
        raise ValueError(
            f"{url} was replaced while in use: "
            f"it had fingerprint {fingerprint}, it now has {shard_set.fingerprint}."
        )
    return shard_set
