"""Sums over the files of a checkpoint: what was written is what is read, or it is not believed."""

import json
from collections.abc import Sequence
from pathlib import Path

from shards.sequence import crc32

FILE = "files.json"
CHUNK = 1 << 24


def names(folder: Path) -> list[str]:
    """Of the files below `folder` as this node sees them, the manifest itself left out."""
    found = (path for path in folder.rglob("*") if path.is_file() and path != folder / FILE)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def sums(folder: Path, names: Sequence[str]) -> dict[str, list[int]]:
    """`{name: [bytes, CRC-32]}` of files below `folder`."""
    return {name: _sum(folder / name) for name in names}


def write(folder: Path, files: dict[str, list[int]]) -> None:
    """Writes the manifest from the sums of all ranks."""
    (folder / FILE).write_text(json.dumps(dict(sorted(files.items())), indent=1))


def faults(folder: Path, rank: int = 0, world_size: int = 1) -> list[str]:
    """What is wrong with this rank's share of the files; empty for a whole checkpoint.

    Raises OSError for what may be no fault of the files: a disk that does not answer, a right that is missing.
    """
    try:
        files = json.loads((folder / FILE).read_text())
    except (FileNotFoundError, ValueError) as error:
        return [f"{folder / FILE}: {error}"]
    found = []
    for name, (size, crc) in sorted(files.items())[rank::world_size]:
        try:
            now = _sum(folder / name)
        except FileNotFoundError:
            found.append(f"{folder / name} is missing")
            continue
        if now != [size, crc]:
            found.append(f"{folder / name}: {now[0]} bytes of CRC-32 {now[1]:08x}, written were {size} of {crc:08x}")
    return found


def _sum(path: Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size, crc = size + len(chunk), crc32(chunk, crc)
    return [size, crc]
