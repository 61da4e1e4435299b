"""Files of one local folder."""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from shards.store.ranges import Range

NUM_OPEN_SHARDS = 128


def local_folder(url: str | Path) -> Path:
    """A local folder as it was named. Raises ValueError for an object store's URL."""
    if "://" in str(url):
        raise ValueError(f"{url} is no local folder: name one.")
    return Path(url)


class LocalStore:
    """Handles open on first use, so a store may be passed to another process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # An evicted file closes once the last read on it has returned, also with several threads reading.
        self._opened = lru_cache(NUM_OPEN_SHARDS)(self._open)

    def read_file(self, name: str) -> bytes:
        """All bytes of a file. Raises FileNotFoundError."""
        return (self.folder / name).read_bytes()

    read_unchecked_file = read_file

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer where the file ends. Raises FileNotFoundError."""
        file = self._opened(name)  # named, so that it cannot close before the read returns
        return os.pread(file.fileno(), size, offset)

    def read_ranges(self, wanted: Sequence[Range]) -> Iterator[bytes]:
        """The bytes of each range in turn, fewer where a file ends. Raises FileNotFoundError."""
        return (self.read_range(name, start, stop - start) for name, start, stop in wanted)

    def read_again(self, wanted: Range) -> bytes:
        return self.read_range(wanted.name, wanted.start, wanted.size)

    def sizes(self) -> dict[str, int]:
        """Name and length in bytes of every file."""
        with os.scandir(self.folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def _open(self, name: str) -> BinaryIO:
        return (self.folder / name).open("rb", buffering=0)
