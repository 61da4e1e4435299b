"""Reading through a bad network, from a bad server, and from bad data: the right batches or a clear error."""

import multiprocessing
import re
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

import shards
from shards.store import DamagedShardError
from shards.store.remote import RemoteStore, ReplacedError
from tests.shards.chaos import KINDS, Fault, Proxy, chaos
from tests.shards.remote_sets import upload, wait_until
from tests.shards.s3_server import S3Server, running, s3, s3_server  # noqa: F401

pytestmark = pytest.mark.usefixtures("s3_server")


@pytest.fixture
def proxy(s3: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:  # noqa: F811
    monkeypatch.setattr("shards.object_store.READ_TIMEOUT", timedelta(seconds=0.7))
    monkeypatch.setattr("shards.store.retry.LONGEST_PAUSE", 0.5)
    with chaos(s3_server.port) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between


@pytest.fixture
def url(packed: Path, s3: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    return upload(packed, f"{s3}/some/set")


def batches_of(shard_set: shards.ShardSet, num_steps: int) -> list[torch.Tensor]:
    batches = shards.Batches(shard_set, "train", 4, 4, 5, 2, seed=3)
    return [batches[step]["silhouettes"] for step in range(num_steps)]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_often(kind: str, url: str, proxy: Proxy, packed: Path) -> None:
    proxy.faults[kind] = Fault(0.2, seconds=0.9 if kind == "stall" else 0.1, times=5)
    shard_set = shards.open(url)
    assert_same(batches_of(shard_set, 25), batches_of(shards.open(packed), 25))
    assert proxy.happened[kind] > 3
    counts = shard_set.statistics
    if kind == "flip":
        assert counts["rereads"] > 0
    elif kind != "latency":
        assert counts["retries"] >= proxy.happened[kind] - 3 and counts["pause_ms"] > 0


@pytest.mark.parametrize("cached", [False, True])
def test_every_fault_on_one_request_in_twenty(
    cached: bool, url: str, proxy: Proxy, packed: Path, tmp_path: Path
) -> None:
    proxy.faults.update({kind: Fault(0.05, seconds=0.8 if kind == "stall" else 0.1) for kind in KINDS})
    shard_set = shards.open(url, cache=tmp_path / "cache" if cached else None)
    assert_same(batches_of(shard_set, 30), batches_of(shards.open(packed), 30))
    if cached:
        wait_until(lambda: shard_set.statistics["shards_cached"] >= 2)
        for path in (tmp_path / "cache").glob("*/*.tar"):
            assert path.read_bytes() == (packed / path.name).read_bytes()
    else:
        assert sum(proxy.happened.values()) > 5


def outage(server: S3Server, seconds: float) -> threading.Thread:
    server.stop()

    def come_back() -> None:
        time.sleep(seconds)
        server.start()

    thread = threading.Thread(target=come_back)
    thread.start()
    return thread


@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_an_outage_pauses(seconds: float, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        shard_set = shards.open(upload(packed, server.create_bucket("sets") + "/one"))
        batches_of(shard_set, 2)
        thread, started = outage(server, seconds), time.monotonic()
        assert_same(batches_of(shard_set, 4), batches_of(shards.open(packed), 4))
        assert time.monotonic() - started > seconds and shard_set.statistics["retries"] > 1
        thread.join()


def test_patience_ends(url: str, proxy: Proxy) -> None:
    shard_set = shards.open(url, patience=1.0)
    proxy.faults["slow_down"] = Fault()
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"{url}/train-.*503.*Gave up after \d s without progress"):
        shard_set.read([0])
    assert time.monotonic() - started < 5


def test_goes_on_where_it_broke_off(s3: str, proxy: Proxy) -> None:  # noqa: F811
    from obstore import put

    from shards.object_store import connect

    content = np.random.default_rng(0).bytes(6_000_000)
    put(connect(s3), "large", content)
    store = RemoteStore(s3)
    proxy.faults["truncate"] = Fault(times=5)
    assert store.read_file("large") == content
    assert proxy.happened["truncate"] == 5
    starts = [
        int(found[1]) for found in re.findall(r"GET \S+/large (all|bytes=(\d+)-)", " ".join(proxy.requests)) if found[1]
    ]
    assert starts == sorted(starts) and starts[-1] > 1_000_000
    put(connect(s3), "large", content[::-1])
    with pytest.raises(ReplacedError, match=r"large was replaced while in use: it had ETag"):
        store.read_file("large")


def test_damage_in_the_store(copy_of_packed: Path, s3: str, flip_bit) -> None:  # noqa: F811
    row = shards.open(copy_of_packed).index.slice(5, 1).to_pylist()[0]
    flip_bit(copy_of_packed / row["shard"], row["offset"] + row["size"] // 2)
    place = rf"{s3}/set/{row['shard']}: sequence {row['key']}"
    message = rf"{place} has CRC-32 \w{{8}}, the index says {row['crc32']:08x}"
    with pytest.raises(DamagedShardError, match=message):
        shards.open(upload(copy_of_packed, f"{s3}/set")).read([5])


def test_cut_short_missing_or_of_another_set(copy_of_packed: Path, s3: str, flip_bit) -> None:  # noqa: F811
    url = upload(copy_of_packed, f"{s3}/set")
    shard_set = shards.open(url)
    last = len(shard_set) - 1
    name = shard_set.index["shard"][last].as_py()
    content = (copy_of_packed / name).read_bytes()
    (copy_of_packed / name).write_bytes(content[: shard_set.index["offset"][last].as_py() + 10])
    upload(copy_of_packed, url)
    with pytest.raises(DamagedShardError, match=rf"{name} has \d+ bytes, at least \d+ were expected: the shard is cut"):
        shard_set.read([last])
    with pytest.raises(ValueError, match=rf"not whole: {url}/{name} has \d+ bytes, shards.json says {len(content)}"):
        shards.open(url)
    (copy_of_packed / name).write_bytes(b"")
    upload(copy_of_packed, url)
    with pytest.raises(DamagedShardError, match=f"{name}.* cut short"):
        shard_set.read([last])
    from obstore import delete

    from shards.object_store import connect

    delete(connect(url), name)
    with pytest.raises(FileNotFoundError, match=rf"{url}/{name} is missing: copy it again"):
        shard_set.read([last])
    with pytest.raises(ValueError, match=f"{url}/{name} is missing"):
        shards.open(url)
    flip_bit(copy_of_packed / "index.parquet", 100)
    (copy_of_packed / name).write_bytes(content)
    upload(copy_of_packed, url)
    with pytest.raises(ValueError, match=r"index\.parquet has sha256 \w+, shards\.json says \w+"):
        shards.open(url)


def test_no_data_set(s3: str) -> None:  # noqa: F811
    with pytest.raises(FileNotFoundError, match=rf"{s3}/nothing is not a data set: it has no shards\.json"):
        shards.open(f"{s3}/nothing")
    with pytest.raises(FileNotFoundError, match="there is no bucket no-such-bucket"):
        shards.open("s3://no-such-bucket/set")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "does not accept the credentials"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "does not accept the credentials"),
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
            "no credentials found: set AWS_ACCESS_KEY_ID",
        ),
    ],
)
def test_credentials(changes: dict[str, str | None], message: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "testsecret123"
    for name, value in changes.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    started = time.monotonic()
    with pytest.raises(PermissionError, match=message) as caught:
        shards.open(url)
    assert url in str(caught.value) and secret not in str(caught.value)
    assert time.monotonic() - started < 5


def read_first(shard_set: shards.ShardSet, queue) -> None:
    try:
        queue.put(int(shard_set.read([0])[0].sum()))
    except Exception as error:
        queue.put(repr(error))


@pytest.mark.parametrize("start", ["fork", "spawn"])  # a fork server may be of an earlier test, with its environment
def test_a_forked_process_is_told(start: str, url: str) -> None:
    shard_set = shards.open(url)
    expected = int(shard_set.read([0])[0].sum())
    context = multiprocessing.get_context(start)
    queue = context.SimpleQueue()
    process = context.Process(target=read_first, args=(shard_set, queue))
    process.start()
    process.join(60)
    assert not process.is_alive() and not queue.empty()
    found = queue.get()
    if start == "fork":
        assert "RuntimeError" in found and "multiprocessing_context='forkserver'" in found
    else:
        assert found == expected
        assert shard_set.statistics["sequences"] == 2  # the other process's counts too
