import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

import shards
from shards.pack import pack
from shards.silhouettes import ALMOST_EMPTY, normalise
from shards.tar import NO_USABLE_FRAME
from shards.verify import verify
from tests.shards.raw_tree import SMALL_SHARD_MB, data_set_bytes, write_sequence, write_tree

REPOSITORY = Path(__file__).parents[2]


def pack_small(source: Path, to: Path, partition: Path, **options: object) -> shards.pack.PackSummary:
    settings = {"workers": 1, "shard_size_mb": SMALL_SHARD_MB, "progress": False, **options}
    return pack("casia-b", source, to, partition, **settings)


def test_every_frame_arrives(raw: Path, packed: Path) -> None:
    shard_set = shards.open(packed)
    assert shard_set.name == "mine" and len(shard_set) == 48
    table = shard_set.index.to_pylist()
    for row, silhouettes in zip(table, shard_set.read(range(48)), strict=True):
        folder = raw / row["subject"] / row["condition"] / row["view"]
        frames = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(folder.iterdir())]
        np.testing.assert_array_equal(silhouettes, normalise(frames))
        assert row["frames"] == len(frames)
        assert row["key"] == f"{row['subject']}-{row['condition']}-{row['view']}"
        assert row["split"] == ("train" if row["subject"] <= "005" else "test")
        assert row["shard"].startswith(f"{row['split']}-")


def test_tar_is_what_the_index_says(packed: Path) -> None:
    rows = {row["key"]: row for row in shards.open(packed).index.to_pylist()}
    members = 0
    for path in sorted(packed.glob("*.tar")):
        with tarfile.open(path) as tar:
            for payload, description in zip(*[iter(tar)] * 2, strict=True):
                key = payload.name.removesuffix(".sils.npy.gz")
                row = rows[key]
                assert (payload.offset_data, payload.size) == (row["offset"], row["size"])
                assert description.name == f"{key}.json" and payload.mtime == 0
                assert json.load(tar.extractfile(description)) == {
                    **{name: row[name] for name in ("subject", "condition", "view", "frames")},
                    "source": f"{row['subject']}/{row['condition']}/{row['view']}",
                }
                members += 1
    assert members == len(rows) == 48
    assert len(list(packed.glob("train-*.tar"))) > 1 and list(packed.glob("test-*.tar"))
    assert not (packed / ".packing").exists()


def test_same_bytes_whatever_the_number_of_workers(raw: Path, packed: Path, partition: Path, tmp_path: Path) -> None:
    for workers in (2, 3):
        summary = pack_small(raw, tmp_path / str(workers), partition, workers=workers)
        assert data_set_bytes(tmp_path / str(workers)) == data_set_bytes(packed)
        assert summary.num_raw_frames == sum(len(list(path.iterdir())) for path in raw.glob("*/*/*"))


@pytest.mark.parametrize("level", [1, 12])
def test_a_level_has_its_own_bytes_and_the_same_silhouettes(
    level: int, raw: Path, packed: Path, partition: Path, tmp_path: Path
) -> None:
    for workers in (1, 2):
        pack_small(raw, tmp_path / str(workers), partition, workers=workers, level=level)
    assert data_set_bytes(tmp_path / "1") == data_set_bytes(tmp_path / "2") != data_set_bytes(packed)
    assert json.loads((tmp_path / "1/pack-report.json").read_text())["level"] == level
    usual, other = shards.open(packed), shards.open(tmp_path / "1")
    assert usual.index["key"].equals(other.index["key"]) and usual.index["shard"].equals(other.index["shard"])
    assert (sum(other.index["size"].to_pylist()) < sum(usual.index["size"].to_pylist())) == (level == 12)
    for a, b in zip(usual.read(range(48)), other.read(range(48)), strict=True):
        np.testing.assert_array_equal(a, b)
    pack_small(raw, tmp_path / "seven", partition, level=7)
    assert data_set_bytes(tmp_path / "seven") == data_set_bytes(packed)


def test_default_partition_and_shard_size(raw: Path, tmp_path: Path) -> None:
    summary = pack("casia-b", raw, tmp_path / "set", workers=1, progress=False)
    assert summary.splits["train"]["subjects"] == 8 and "test" not in summary.splits
    assert [path.name for path in (tmp_path / "set").glob("*.tar")] == ["train-000000.tar"]


def test_what_is_left_out_is_counted(partition: Path, tmp_path: Path) -> None:
    source = tmp_path / "raw"
    write_sequence(source / "001/nm-01/000", 4)
    write_sequence(source / "001/nm-01/090", 1)
    write_sequence(source / "001/nm-02/090", 2)
    for path in (source / "001/nm-02/090").iterdir():
        cv2.imwrite(str(path), np.zeros((60, 80), np.uint8))
    write_sequence(source / "999/nm-01/090", 1)
    summary = pack_small(source, tmp_path / "set", partition)
    assert summary.splits == {"train": {"subjects": 1, "sequences": 2, "frames": 5}}
    assert summary.skips.counts == {
        ALMOST_EMPTY: 2,
        NO_USABLE_FRAME: 1,
        f"sequence of a subject in neither train nor test of partition {partition}": 1,
    }
    assert json.loads((tmp_path / "set/pack-report.json").read_text())["skipped"] == summary.skips.to_json()
    console = Console(file=StringIO(), width=200)
    console.print(summary)
    assert NO_USABLE_FRAME in console.file.getvalue() and "001/nm-02/090" in console.file.getvalue()


def test_a_shard_without_a_sequence_is_left_out(partition: Path, tmp_path: Path) -> None:
    source = tmp_path / "raw"
    write_sequence(source / "001/nm-01/000", 2)
    write_sequence(source / "006/nm-01/000", 1)
    cv2.imwrite(str(next((source / "006/nm-01/000").iterdir())), np.zeros((60, 80), np.uint8))
    pack_small(source, tmp_path / "set", partition)
    assert [shard.name for shard in shards.open(tmp_path / "set").manifest.shards] == ["train-000000.tar"]
    assert not list((tmp_path / "set").glob("test-*"))
    assert verify(tmp_path / "set", progress=False).ok


def test_no_usable_frame_at_all(partition: Path, tmp_path: Path) -> None:
    write_sequence(tmp_path / "raw/001/nm-01/000", 1)
    next((tmp_path / "raw/001/nm-01/000").iterdir()).write_bytes(b"")
    with pytest.raises(ValueError, match=r"no sequence has a usable frame: .*1 × frame's file has no bytes"):
        pack_small(tmp_path / "raw", tmp_path / "set", partition)
    with pytest.raises(FileNotFoundError, match="is not a data set"):
        shards.open(tmp_path / "set")


def test_a_packed_folder_is_never_packed_into(raw: Path, copy_of_packed: Path, partition: Path) -> None:
    before = data_set_bytes(copy_of_packed)
    with pytest.raises(FileExistsError, match=r"copy is a data set already.*pack into another folder"):
        pack_small(raw, copy_of_packed, partition)
    assert data_set_bytes(copy_of_packed) == before


def test_a_folder_of_other_things_is_left_alone(raw: Path, partition: Path, tmp_path: Path) -> None:
    (tmp_path / "train-000000.tar").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other things"):
        pack_small(raw, tmp_path, partition)
    assert (tmp_path / "train-000000.tar").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layout": "casia"}, ValueError, "layout 'casia' is not known"),
        ({"source": "nowhere"}, FileNotFoundError, "source nowhere does not exist"),
        (
            {"to": "https://host/set"},
            ValueError,
            "https://host/set: shards are read by http, not written",
        ),
        ({"to": "ftp://host/set"}, ValueError, "ftp:// is no known kind of storage"),
        ({"to": "s3:///set"}, ValueError, "s3:///set names no bucket"),
        ({"layout": "opengait"}, ValueError, "opengait brings no partition of its own"),
        ({"partition": "nobody"}, ValueError, "'nobody' is neither a known name"),
        ({"workers": 0}, ValueError, "workers must be at least 1, it is 0"),
        ({"shard_size_mb": 0}, ValueError, "shard size must be above 0 MB"),
        ({"level": 0}, ValueError, "level must be 1 to 12, it is 0"),
        ({"level": 13}, ValueError, "level must be 1 to 12, it is 13"),
    ],
)
def test_mistakes_leave_nothing_behind(raw: Path, tmp_path: Path, change: dict, error: type, message: str) -> None:
    options = {"layout": "casia-b", "source": raw, "to": tmp_path / "set", "progress": False, **change}
    with pytest.raises(error, match=message):
        pack(**options)
    assert not list(tmp_path.iterdir())


def test_two_at_once(raw: Path, partition: Path, tmp_path: Path) -> None:
    (tmp_path / "set/.packing").mkdir(parents=True)
    with (tmp_path / "set/.packing/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FileExistsError, match="another process is packing"):
            pack_small(raw, tmp_path / "set", partition)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_packed_again(workers: int, partition: Path, tmp_path: Path) -> None:
    raw = write_tree(tmp_path / "raw", 8)
    for seed, folder in enumerate(sorted(raw.glob("*/*/000"))):  # enough to still be at it when the signal comes
        for copy in range(3, 15):
            write_sequence(folder.parent / f"{copy * 6 + 1:03d}", 4, seed)
    to = tmp_path / "set"
    arguments = f"'casia-b', {str(raw)!r}, {str(to)!r}, {str(partition)!r}, {workers}, 0.02, False"
    program = f"from shards.pack import pack\nif __name__ == '__main__': pack({arguments})"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    deadline = time.monotonic() + 60
    while not list(to.glob("*.tar")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (to / "shards.json").exists()
    with pytest.raises(FileNotFoundError, match=r"is not a data set.*run `hstl pack"):
        shards.open(to)
    finished = {path.name: path.stat().st_ino for path in to.glob("*.tar")}
    shutil.copytree(to, tmp_path / "harder", symlinks=True)
    harder = pack_small(raw, tmp_path / "harder", partition, workers=workers, level=12)
    assert harder.num_shards_kept == 0  # finished shards of another level are not mixed in
    pack_small(raw, tmp_path / "straight at 12", partition, level=12)
    assert data_set_bytes(tmp_path / "harder") == data_set_bytes(tmp_path / "straight at 12")
    again = pack_small(raw, to, partition, workers=workers)
    assert again.num_shards > again.num_shards_kept > 0
    kept = [name for name, inode in finished.items() if (to / name).stat().st_ino == inode]
    assert len(kept) >= again.num_shards_kept
    pack_small(raw, tmp_path / "straight", partition)
    assert data_set_bytes(to) == data_set_bytes(tmp_path / "straight")


def test_a_pack_by_another_plan_is_not_mixed_in(raw: Path, packed: Path, partition: Path, tmp_path: Path) -> None:
    to = tmp_path / "set"
    pack_small(raw, to, partition, shard_size_mb=0.008)
    assert len(list(to.glob("*.tar"))) == 8
    (to / "shards.json").unlink()
    (to / ".packing").mkdir()
    pack_small(raw, to, partition)
    assert data_set_bytes(to) == data_set_bytes(packed)
