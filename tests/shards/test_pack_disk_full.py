"""A disk that fills up, and a limit on a file's size."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shards
from shards.pack import PackStoppedError, pack
from tests.shards.raw_tree import SMALL_SHARD_MB, data_set_bytes, write_tree

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system to be had here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk_is_told_and_packed_on_when_there_is_room(
    small_disk: Path, partition: Path, tmp_path: Path, workers: int
) -> None:
    raw = write_tree(tmp_path / "raw", 12)
    partition = tmp_path / "all.yaml"
    partition.write_text("train: [001..012]\ntest: [999]\n")
    options = (partition, workers, SMALL_SHARD_MB, False)
    to = small_disk / "set"
    with pytest.raises(PackStoppedError, match=r"the disk is full.* [1-9]\d* of 12 shards are finished and kept: free"):
        pack("casia-b", raw, to, *options)
    assert not (to / "shards.json").exists() and not list((to / ".packing").glob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    again = pack("casia-b", raw, to, *options)
    assert again.num_shards_kept >= 1
    pack("casia-b", raw, tmp_path / "straight", *options)
    assert data_set_bytes(to) == data_set_bytes(tmp_path / "straight")
    assert len(shards.open(to)) == 72


def test_limit_on_a_files_size(raw: Path, partition: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    program = (
        "from shards.pack import pack, PackStoppedError\n"
        f"try: pack('casia-b', {str(raw)!r}, {str(tmp_path / 'set')!r}, {str(partition)!r}, 1, 0.02, False)\n"
        "except PackStoppedError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, preexec_fn=limit, capture_output=True, text=True
    )
    assert "a file may not grow any larger here. 0 of " in done.stdout, done.stderr
