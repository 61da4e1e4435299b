"""Packing straight into a bucket of a real S3 server, and a container of a real Azure Blob one."""

# ruff: noqa: F811

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shards import destination
from shards.object_store import connect
from shards.pack import PackStoppedError, PackSummary, pack
from tests.shards.buckets import azure, azure_server, bucket, s3, s3_server  # noqa: F401
from tests.shards.raw_tree import SMALL_SHARD_MB, data_set_bytes, write_sequence, write_tree
from tests.shards.s3_server import S3Server, running

REPOSITORY = Path(__file__).parents[2]


def pack_small(source: Path, to: object, partition: Path, workers: int = 1) -> PackSummary:
    return pack("casia-b", source, str(to), partition, workers, SMALL_SHARD_MB, progress=False)


def bucket_bytes(url: str) -> dict[str, bytes]:
    store = connect(url)
    return {entry["path"]: bytes(store.get(entry["path"]).bytes()) for chunk in store.list() for entry in chunk}


def listed(url: str) -> dict[str, Any]:
    return {entry["path"]: entry for chunk in connect(url).list() for entry in chunk}


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough to be still at it when a signal comes: 8 subjects, 600 sequences."""
    root = write_tree(tmp_path_factory.mktemp("larger") / "raw", 8)
    for seed, folder in enumerate(sorted(root.glob("*/*/000"))):
        for copy in range(3, 25):
            write_sequence(folder.parent / f"{copy * 6 + 1:03d}", 4, seed)
    return root


@pytest.mark.parametrize("workers", [1, 3])
def test_same_bytes_as_on_disk(raw: Path, packed: Path, partition: Path, bucket: str, workers: int) -> None:
    url = f"{bucket}/some/folder"
    summary = pack_small(raw, url, partition, workers)
    assert bucket_bytes(url) == data_set_bytes(packed)
    assert summary.to == url and summary.num_shards_kept == 0
    with pytest.raises(FileExistsError, match="folder is a data set already"):
        pack_small(raw, f"{url}/", partition)


def test_shards_larger_than_a_part_are_sent_in_parts(
    raw: Path,
    partition: Path,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(destination, "_PART_BYTES", 1 << 16)
    options = (partition, 1, 32.0, False)
    pack("casia-b", raw, bucket, *options)
    pack("casia-b", raw, tmp_path / "set", *options)
    assert bucket_bytes(bucket) == data_set_bytes(tmp_path / "set")
    assert listed(bucket)["train-000000.tar"]["size"] > 1 << 16


def test_other_things_are_left_alone(raw: Path, partition: Path, bucket: str) -> None:
    connect(bucket).put("train-000000.tar", b"mine")
    with pytest.raises(FileExistsError, match="holds other things"):
        pack_small(raw, bucket, partition)
    assert bucket_bytes(bucket) == {"train-000000.tar": b"mine"}


def test_a_bucket_that_is_not_there_is_told_at_once(raw: Path, partition: Path, bucket: str) -> None:
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"there is no (bucket|container) no-such-place"):
        pack_small(raw, f"{bucket.split('://')[0]}://no-such-place/set", partition)
    assert time.monotonic() - started < 10


def test_etags_in_two_spellings_or_none() -> None:
    same = destination._same_tag
    assert same('"a"', "a") and same("a", "a") and not same("a", "b")
    assert not same(None, None) and not same("a", None)


def killed_while_packing(source: Path, url: str, partition: Path, workers: int) -> None:
    """kill -9 once two shards are recorded."""
    arguments = f"'casia-b', {str(source)!r}, {url!r}, {str(partition)!r}, {workers}, 0.02, False"
    program = f"from shards.pack import pack\nif __name__ == '__main__': pack({arguments})"
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    deadline = time.monotonic() + 60
    while sum(name.startswith(".packing/train") for name in listed(url)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_packed_again(
    larger: Path,
    partition: Path,
    bucket: str,
    tmp_path: Path,
    workers: int,
) -> None:
    killed_while_packing(larger, bucket, partition, workers)
    before = listed(bucket)
    assert "shards.json" not in before
    again = pack_small(larger, bucket, partition, workers)
    assert again.num_shards > again.num_shards_kept >= 2
    after = listed(bucket)
    kept = [name for name in after if name in before and after[name] == before[name]]  # also last_modified
    assert len(kept) >= again.num_shards_kept
    assert not any(name.startswith(".packing") for name in after)
    pack_small(larger, tmp_path / "straight", partition)
    assert bucket_bytes(bucket) == data_set_bytes(tmp_path / "straight")


def test_a_pack_by_another_plan_is_not_mixed_in(
    raw: Path,
    packed: Path,
    larger: Path,
    partition: Path,
    bucket: str,
) -> None:
    killed_while_packing(larger, bucket, partition, 1)
    summary = pack_small(raw, bucket, partition)
    assert summary.num_shards_kept == 0
    assert bucket_bytes(bucket) == data_set_bytes(packed)


def test_two_at_once(raw: Path, partition: Path, bucket: str) -> None:
    goal = destination.at(bucket)
    with (
        goal.held(),
        pytest.raises(FileExistsError, match=rf"another process is packing.*process {os.getpid()} on"),
    ):
        pack_small(raw, bucket, partition)
    connect(bucket).put(".packing/lock", json.dumps({"host": "elsewhere", "pid": 1, "token": "x"}).encode())
    with pytest.raises(FileExistsError, match="on elsewhere, 0 s ago"):
        pack_small(raw, bucket, partition)


def test_an_abandoned_lock_is_taken_over(
    raw: Path,
    partition: Path,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect(bucket).put(".packing/lock", json.dumps({"host": "elsewhere", "pid": 1, "token": "x"}).encode())
    monkeypatch.setattr(destination, "_ABANDONED_SECONDS", 1.0)
    time.sleep(2.1)
    assert pack_small(raw, bucket, partition).num_shards > 1


def test_wrong_keys_are_told_before_anything_is_read(
    raw: Path,
    partition: Path,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    destination._store.cache_clear()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(PermissionError, match="does not accept the credentials"):
        pack_small(raw, s3, partition)
    destination._store.cache_clear()


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    destination._store.cache_clear()
    with running(tmp_path) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
    destination._store.cache_clear()


@pytest.mark.slow
def test_an_outage_is_waited_for_and_a_long_one_is_told(
    own_server: S3Server, larger: Path, partition: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = own_server.create_bucket("sets") + "/set"
    stopper = Stopper(own_server, url)
    stopper.start(back_after=3.0)
    pack_small(larger, url, partition)
    stopper.join()
    pack_small(larger, tmp_path / "straight", partition)
    assert bucket_bytes(url) == data_set_bytes(tmp_path / "straight")

    monkeypatch.setattr(destination, "PATIENCE_SECONDS", 0.0)
    other = f"{url}-2"
    stopper = Stopper(own_server, other)
    stopper.start(back_after=None)
    with pytest.raises(PackStoppedError, match=r"cannot be reached.* [1-9]\d* of \d+ shards are finished and kept"):
        pack_small(larger, other, partition)
    stopper.join()
    own_server.start()
    again = pack_small(larger, other, partition)
    assert again.num_shards_kept >= 1
    assert bucket_bytes(other) == data_set_bytes(tmp_path / "straight")


class Stopper:
    """Ends the server once a shard has come, and starts it again."""

    def __init__(self, server: S3Server, url: str) -> None:
        self.server, self.url = server, url

    def start(self, back_after: float | None) -> None:
        import threading

        self.thread = threading.Thread(target=self._run, args=(back_after,))
        self.thread.start()

    def _run(self, back_after: float | None) -> None:
        deadline = time.monotonic() + 30
        while not any(name.startswith(".packing/train") for name in listed(self.url)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.server.stop()
        if back_after is not None:
            time.sleep(back_after)
            self.server.start()

    def join(self) -> None:
        self.thread.join()
