"""A small CASIA-B tree, and the data set packed from it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shards.pack import pack
from tests.shards.raw_tree import PARTITION, SMALL_SHARD_MB, write_tree


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("raw") / "casia")


@pytest.fixture(scope="session")
def partition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("partition") / "mine.yaml"
    path.write_text(PARTITION)
    return path


@pytest.fixture(scope="session")
def packed(raw: Path, partition: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: tests that damage a data set take `copy_of_packed`."""
    to = tmp_path_factory.mktemp("packed") / "set"
    pack("casia-b", raw, to, partition, workers=1, shard_size_mb=SMALL_SHARD_MB, progress=False)
    return to


@pytest.fixture
def copy_of_packed(packed: Path, tmp_path: Path) -> Path:
    to = tmp_path / "copy"
    to.mkdir()
    for file in packed.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.fixture
def flip_bit() -> Callable[[Path, int], None]:
    def flip(path: Path, position: int) -> None:
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(bytes(content))

    return flip
