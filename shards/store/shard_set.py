"""A data set, opened: row numbers -> silhouettes, every sequence checked against the index."""

import tempfile
from collections.abc import Iterator, Sequence
from os import getuid
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from shards import index as table
from shards.object_store import NoBucketError, is_object_store
from shards.sequence import crc32, decode
from shards.store.cache import NodeCache, cache_folder, cache_limit
from shards.store.cached import CachedStore
from shards.store.local import LocalStore, local_folder
from shards.store.ranges import Range
from shards.store.remote import RemoteStore, TooShortError
from shards.store.retry import PATIENCE_SECONDS
from shards.store.statistics import Statistics

# Above this the index is decoded once a machine and mapped by all processes: a million rows are 95 MB.
ROWS_TO_MAP = 100_000
REREADS = 3  # of a sequence whose sum is wrong


class DamagedShardError(ValueError):
    """The bytes of a sequence are not those that were packed."""


class Store(Protocol):
    """What a ShardSet reads from: a local folder, an object store, an object store behind a cache."""

    def read_file(self, name: str) -> bytes: ...
    def read_ranges(self, wanted: Sequence[Range]) -> Iterator[bytes | memoryview]: ...
    def read_again(self, wanted: Range) -> bytes: ...


class ShardSet:
    """A packed data set, opened. Pickles as its address: another process opens it anew, and refuses another
    one.

    index: the table of all sequences, columns as in `shards.index.SCHEMA`; row numbers are its.
    fingerprint: the index's sha256. name: the data set, such as `casia-b`. height, width: of a silhouette,
    pixels. num_frames: of each sequence, int32 [rows].
    """

    def __init__(
        self,
        url: str | Path,
        cache: str | Path | None = None,
        cache_gb: float | None = None,
        patience: float = PATIENCE_SECONDS,
        *,
        statistics: Statistics | None = None,
        expected: str | None = None,
    ) -> None:
        self.url = str(url)
        self._options = (cache, cache_gb, patience)
        self._statistics = statistics or Statistics()
        folder = None
        if is_object_store(self.url):
            remote = RemoteStore(self.url, self._statistics, patience)
            self.manifest = read_manifest(self.url, remote)
            _refuse_other(self.url, self.manifest, expected)
            self._store: Store = remote
            if (root := cache_folder(cache)) is not None:
                node = NodeCache(root, self.manifest, cache_limit(cache_gb))
                self._store, folder = CachedStore(remote, node), node.folder
            sizes = remote.sizes() if expected is None else None
        else:
            local = LocalStore(local_folder(url))
            self.manifest = read_manifest(self.url, local)
            _refuse_other(self.url, self.manifest, expected)
            self._store, sizes = local, local.sizes()
        if sizes is not None and (faults := table.check_sizes(self.manifest, sizes, self.url)):
            raise ValueError(f"the data set is not whole: {'; '.join(faults)}. Copy these again, or pack again.")
        if folder is None and self.manifest.num_samples > ROWS_TO_MAP:
            folder = _own_temporary_folder()
        self.index: pa.Table = table.open_index(self.manifest, self._read_index, self.url, folder)
        self.fingerprint = self.manifest.index_sha256
        self.name = self.manifest.name
        self.height, self.width = self.manifest.height, self.manifest.width
        self.num_frames, self._offsets, self._sizes, self._sums = (
            self.index[column].to_numpy() for column in ("frames", "offset", "size", "crc32")
        )

    @property
    def statistics(self) -> dict[str, int]:
        """Counters of reading, `shards.store.statistics.COUNTERS`, of this process and its loader workers."""
        return self._statistics.as_dict()

    def __len__(self) -> int:
        return self.index.num_rows

    def __repr__(self) -> str:
        return f"ShardSet({self.url!r}, {len(self)} sequences, fingerprint {self.fingerprint[:12]})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_same, (self.url, *self._options, self._statistics, self.fingerprint)

    def read(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Row numbers -> their silhouettes in the same order, read-only uint8 [frames, height, width] each.

        A row named twice is read once, and both entries are the same array. Raises IndexError for a row that
        does not exist, DamagedShardError, FileNotFoundError; over a network also PermissionError, and
        ConnectionError once nothing has come for the time of `patience`.
        """
        sequences: list[Any] = [None] * len(rows)
        for place, silhouettes in self.each(rows):
            sequences[place] = silhouettes
        return sequences

    def each(self, rows: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """As `read`, one at a time: (place in `rows`, silhouettes), in the order in which they lie in the shards.

        Whoever lets go of each before the next works in the processor's cache, and takes half the time.
        """
        wanted = np.asarray(rows, np.int64)
        if wanted.size == 0:
            return
        if wanted.min() < 0 or wanted.max() >= len(self):
            raise IndexError(f"rows go from 0 to {len(self) - 1}, asked for {wanted.min()} to {wanted.max()}.")
        order = np.argsort(wanted, kind="stable")
        first_of_row = np.flatnonzero(np.diff(wanted[order], prepend=-1))
        places = iter(order.tolist())
        repeats = np.diff(first_of_row, append=len(order)).tolist()
        for num_places, silhouettes in zip(repeats, self._read_distinct(wanted[order[first_of_row]]), strict=True):
            for _ in range(num_places):
                yield next(places), silhouettes
            del silhouettes  # its memory is the next one's
        self._statistics.add(sequences=len(repeats))

    def _read_distinct(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        names = self.index["shard"].take(pa.array(rows)).to_pylist()
        starts = self._offsets[rows]
        ranges = list(map(Range, names, starts.tolist(), (starts + self._sizes[rows]).tolist()))
        sums, frames = self._sums[rows].tolist(), self.num_frames[rows].tolist()
        try:
            arriving = self._store.read_ranges(ranges)
            for row, where, expected, num_frames, payload in zip(
                rows.tolist(), ranges, sums, frames, arriving, strict=True
            ):
                good = payload if crc32(payload) == expected else self._read_again(row, where, expected)
                yield self._decode(good, row, num_frames)
        except TooShortError as error:
            raise DamagedShardError(f"{error}: the shard is cut short. {_REMEDY}") from error
        except FileNotFoundError as error:
            raise FileNotFoundError(self._missing(error, names)) from None

    def _read_again(self, row: int, where: Range, expected: int) -> bytes:
        """A passing fault of memory or network is not repeated, one of the shard is."""
        for _ in range(REREADS):
            self._statistics.add(rereads=1)
            payload = self._store.read_again(where)
            if (found := crc32(payload)) == expected:
                return payload
        place = f"{self.url}/{where.name}: sequence {self.index['key'][row].as_py()}"
        if len(payload) < where.size:
            raise DamagedShardError(
                f"{place} ends after {len(payload)} of {where.size} bytes: the shard is cut short. {_REMEDY}"
            )
        raise DamagedShardError(
            f"{place} has CRC-32 {found:08x}, the index says {expected:08x}, also when read again: "
            f"the shard is damaged. {_REMEDY}"
        )

    def _decode(self, payload: bytes | memoryview, row: int, num_frames: int) -> np.ndarray:
        silhouettes = decode(payload)
        if silhouettes.shape != (num_frames, self.height, self.width):
            raise DamagedShardError(
                f"{self.url}: sequence {self.index['key'][row].as_py()} holds {list(silhouettes.shape)}, the "
                f"index says {[num_frames, self.height, self.width]}: pack again."
            )
        return silhouettes

    def _missing(self, error: FileNotFoundError, names: list[str]) -> str:
        name = next((name for name in names if name in str(error)), "a shard")
        return f"{self.url}/{name} is missing: copy it again, or pack again."

    def _read_index(self) -> bytes:
        try:
            return self._store.read_file(table.INDEX_NAME)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.url}/{table.INDEX_NAME} is missing: {_REMEDY}") from None


_REMEDY = "Copy it again, or pack again."


def open(
    url: str | Path,
    cache: str | Path | None = None,
    cache_gb: float | None = None,
    patience: float = PATIENCE_SECONDS,
) -> ShardSet:
    """Open the data set at `url`: a local folder, s3://, gs://, az://, http:// or https://.

    cache: a folder on the node's own disk for whole shards of an object store, shared by the node's
    processes; HSTL_CACHE unless given, none unless that is set; a local folder needs none. cache_gb: its
    limit in GB, all data sets together; HSTL_CACHE_GB unless given, and 95 % of the disk unless that is set.
    patience: seconds that an object store may stay silent; reading pauses meanwhile.

    Raises FileNotFoundError when it is not a data set (packing did not finish, or a wrong path), ValueError
    when it is of another format version, its index is another one's, or shards are missing or cut short;
    PermissionError when the store refuses the credentials or there are none, ConnectionError when it stays
    silent.
    """
    return ShardSet(url, cache, cache_gb, patience)


def read_manifest(url: str, store: LocalStore | RemoteStore) -> table.Manifest:
    """`shards.json` at `url`. Raises FileNotFoundError or ValueError as `open` does."""
    if isinstance(store, LocalStore) and not store.folder.is_dir():
        raise FileNotFoundError(
            f"{url} does not exist, or is no folder: pack a data set there (hstl pack --to {url}), or correct the name."
        )
    try:
        data = store.read_unchecked_file(table.MANIFEST_NAME)
    except NoBucketError:
        raise
    except FileNotFoundError:
        raise table.no_data_set(url) from None
    return table.parse_manifest(data, f"{url}/{table.MANIFEST_NAME}")


def _refuse_other(url: str, manifest: table.Manifest, expected: str | None) -> None:
    if expected is not None and manifest.index_sha256 != expected:
        raise ValueError(
            f"{url} was replaced while in use: it had fingerprint {expected}, it now has {manifest.index_sha256}."
        )


def _open_same(
    url: str,
    cache: str | Path | None,
    cache_gb: float | None,
    patience: float,
    statistics: Statistics,
    fingerprint: str,
) -> ShardSet:
    return ShardSet(url, cache, cache_gb, patience, statistics=statistics, expected=fingerprint)


def _own_temporary_folder() -> Path | None:
    """A folder that only this user writes, or None: what lies there is believed."""
    folder = Path(tempfile.gettempdir()) / f"hstl-{getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    return folder if status.st_uid == getuid() and not status.st_mode & 0o022 else None
