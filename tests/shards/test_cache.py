import fcntl
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import shards
from shards.index import Manifest, Shard
from shards.store.cache import NodeCache, NoRoomError, cache_folder, cache_limit
from tests.shards.chaos import Fault, Proxy, chaos
from tests.shards.remote_sets import upload, wait_until
from tests.shards.s3_server import S3Server, s3, s3_server  # noqa: F401

SIZE = 1000


def content_of(name: str) -> bytes:
    return np.random.default_rng(list(name.encode())).bytes(SIZE)


def manifest_of(name: str, *names: str) -> Manifest:
    entries = (Shard(n, SIZE, hashlib.sha256(content_of(n)).hexdigest(), 1) for n in names)
    return Manifest(name, 64, 64, tuple(entries), hashlib.sha256(name.encode()).hexdigest())


def stream_of(name: str) -> Iterator[bytes]:
    content = content_of(name)
    yield content[:300]
    yield content[300:]


def fill(cache: NodeCache, name: str) -> bool:
    return cache.fill(name, lambda: stream_of(name))


def files(root: Path) -> set[str]:
    return {path.name for path in root.glob("*/*") if path.name != "in-use"}


def test_fill_then_read(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, manifest_of("one", "a", "b"))
    assert not cache.has("a") and cache.read("a", 0, 5) is None
    assert fill(cache, "a") and not fill(cache, "a")
    assert cache.has("a") and cache.read("a", 10, 20) == content_of("a")[10:30]
    assert NodeCache(tmp_path, manifest_of("one", "a", "b")).read("a", 0, SIZE) == content_of("a")
    assert files(tmp_path) == {"a"}
    cache.drop("a")
    assert not cache.has("a") and fill(cache, "a")


def test_wrong_bytes_never_get_a_name(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, manifest_of("one", "a"))
    for wrong in (b"", content_of("b"), content_of("a") + b"x", content_of("a")[:-1]):
        with pytest.raises(ValueError, match=r"a came with sha256 \w+, shards.json says"):
            cache.fill("a", lambda wrong=wrong: iter([wrong]))
        assert files(tmp_path) == set()

    def breaks() -> Iterator[bytes]:
        yield content_of("a")[:100]
        raise ConnectionError("cut")

    with pytest.raises(ConnectionError):
        cache.fill("a", breaks)
    assert files(tmp_path) == set() and fill(cache, "a")


def test_a_shard_of_another_length_is_not_believed(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, manifest_of("one", "a"))
    (cache.folder / "a").write_bytes(b"half")
    assert not cache.has("a") and fill(cache, "a")


def test_two_at_once_fetch_once(tmp_path: Path) -> None:
    mine, other = (NodeCache(tmp_path, manifest_of("one", "a")) for _ in range(2))
    tried = []

    def stream() -> Iterator[bytes]:
        tried.append(fill(other, "a"))
        yield from stream_of("a")

    assert mine.fill("a", stream) and tried == [False] and other.has("a")


def test_what_a_dead_process_left_is_cleared(tmp_path: Path) -> None:
    first = NodeCache(tmp_path, manifest_of("one", "a", "b"))
    (first.folder / "a.part").write_bytes(content_of("a"))
    (first.folder / "b.part").write_bytes(b"half")
    with (first.folder / "b.part").open() as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        cache = NodeCache(tmp_path, manifest_of("one", "a", "b"))
        assert files(tmp_path) == {"b.part"} and not fill(cache, "b")
    assert fill(cache, "a") and fill(cache, "b") and files(tmp_path) == {"a", "b"}


def test_stays_below_the_limit_and_does_not_evict_its_own(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, manifest_of("one", "a", "b", "c"), limit=2 * SIZE + 500)
    assert fill(cache, "a") and fill(cache, "b")
    with pytest.raises(NoRoomError):
        fill(cache, "c")
    assert files(tmp_path) == {"a", "b"}


def test_evicts_the_least_recently_used_set_that_is_not_open(tmp_path: Path) -> None:
    sets = {name: NodeCache(tmp_path, manifest_of(name, name + "1", name + "2")) for name in ("old", "mid", "use")}
    for age, (name, cache) in enumerate(sets.items()):
        fill(cache, name + "1"), fill(cache, name + "2")
        os.utime(cache.folder / "in-use", (1000 + age, 1000 + age))
    open_one = sets.pop("use")
    sets.clear()
    new = NodeCache(tmp_path, manifest_of("new", *"abcdef"), limit=6 * SIZE)
    assert fill(new, "a")
    assert files(tmp_path) == {"a", "old2", "mid1", "mid2", "use1", "use2"}
    assert fill(new, "b") and fill(new, "c") and fill(new, "d")
    assert files(tmp_path) == {"a", "b", "c", "d", "use1", "use2"}
    with pytest.raises(NoRoomError):
        fill(new, "e")
    assert open_one.read("use1", 0, SIZE) == content_of("use1")


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder(None) is None and cache_limit(None) is None
    monkeypatch.setenv("HSTL_CACHE", str(tmp_path))
    monkeypatch.setenv("HSTL_CACHE_GB", "1.5")
    assert cache_folder(None) == tmp_path and cache_limit(None) == 1_500_000_000
    assert cache_folder("mine") == Path("mine") and cache_limit(2) == 2_000_000_000
    monkeypatch.setenv("HSTL_CACHE_GB", "much")
    with pytest.raises(ValueError, match=r"HSTL_CACHE_GB.*must be a number of GB from 0, it is 'much'"):
        cache_limit(None)


@pytest.fixture
def proxy(s3: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:  # noqa: F811
    with chaos(s3_server.port) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between


def num_train(folder: Path) -> int:
    return len(list(folder.glob("train-*.tar")))


def test_second_pass_asks_nothing(packed: Path, s3: str, proxy: Proxy, tmp_path: Path) -> None:  # noqa: F811
    url, cache = upload(packed, f"{s3}/set"), tmp_path / "cache"
    local = shards.open(packed)
    rows = np.flatnonzero(local.index["split"].to_numpy() == "train")
    shard_set = shards.open(url, cache)
    for found, expected in zip(shard_set.read(rows), local.read(rows), strict=True):
        np.testing.assert_array_equal(found, expected)
    wait_until(lambda: shard_set.statistics["shards_cached"] == num_train(packed))
    before = len(proxy.requests)
    for found, expected in zip(shard_set.read(rows), local.read(rows), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert len(proxy.requests) == before
    assert shard_set.statistics["cache_hits"] == len(rows)
    again = shards.open(url, cache)  # asks for shards.json, to see whether it is still the same set
    again.read(rows)
    assert not [request for request in proxy.requests[before:] if ".tar" in request or "parquet" in request]


READER = """
import sys, time, shards, numpy as np
shard_set = shards.open(sys.argv[1], sys.argv[2])
rows = np.flatnonzero(shard_set.index["split"].to_numpy() == "train")
deadline = time.monotonic() + 60
print("ready", flush=True)
sys.stdin.readline()
while time.monotonic() < deadline:
    misses = shard_set.statistics["cache_misses"]
    shard_set.read(rows)
    if shard_set.statistics["cache_misses"] == misses:
        break
    time.sleep(0.05)
print(sum(int(s.sum()) for s in shard_set.read(rows)), flush=True)
"""


def start_reader(url: str, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", READER, url, str(cache)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_fetch_each_shard_once(packed: Path, s3: str, proxy: Proxy, tmp_path: Path) -> None:  # noqa: F811
    url, cache = upload(packed, f"{s3}/set"), tmp_path / "cache"
    readers = [start_reader(url, cache) for _ in range(2)]
    assert [reader.stdout.readline() for reader in readers] == ["ready\n"] * 2
    sums = [reader.communicate("\n", timeout=90)[0] for reader in readers]
    local = shards.open(packed)
    rows = np.flatnonzero(local.index["split"].to_numpy() == "train")
    assert sums == [f"{sum(int(s.sum()) for s in local.read(rows))}\n"] * 2
    for shard in local.manifest.shards:
        whole = [r for r in proxy.requests if r.endswith(f"{shard.name} bytes=0-{shard.bytes - 1}")]
        assert len(whole) == shard.name.startswith("train")


def test_killed_while_filling(packed: Path, s3: str, proxy: Proxy, tmp_path: Path) -> None:  # noqa: F811
    url, cache = upload(packed, f"{s3}/set"), tmp_path / "cache"
    reader = start_reader(url, cache)
    assert reader.stdout.readline() == "ready\n"
    proxy.faults["latency"] = Fault(seconds=0.4)
    reader.stdin.write("\n")
    reader.stdin.flush()
    wait_until(lambda: any(cache.glob("*/*.part")))
    reader.send_signal(signal.SIGKILL)
    reader.wait()
    proxy.faults.clear()
    left = list(cache.glob("*/*.part"))
    assert left
    for part in left:
        part.write_bytes(os.urandom(100))  # whatever a crash made of it
    shard_set = shards.open(url, cache)
    local = shards.open(packed)
    for _ in range(2):
        for found, expected in zip(shard_set.read(range(48)), local.read(range(48)), strict=True):
            np.testing.assert_array_equal(found, expected)
        wait_until(lambda: len(list(cache.glob("*/*.tar"))) == len(local.manifest.shards))
    assert not list(cache.glob("*/*.part"))
    for path in cache.glob("*/*.tar"):
        assert path.read_bytes() == (packed / path.name).read_bytes()


def test_a_damaged_cache_is_read_around(packed: Path, s3: str, proxy: Proxy, tmp_path: Path) -> None:  # noqa: F811
    url, cache = upload(packed, f"{s3}/set"), tmp_path / "cache"
    shard_set = shards.open(url, cache)
    expected = shard_set.read([3])[0]
    wait_until(lambda: any(cache.glob("*/*.tar")))
    (path,) = cache.glob("*/*.tar")
    path.write_bytes(bytes(path.stat().st_size))
    np.testing.assert_array_equal(shards.open(url, cache).read([3])[0], expected)
    assert not path.exists()


def test_without_room_ranges_alone(packed: Path, s3: str, proxy: Proxy, tmp_path: Path) -> None:  # noqa: F811
    cache = tmp_path / "cache"
    shard_set = shards.open(upload(packed, f"{s3}/set"), cache, cache_gb=0)
    local = shards.open(packed)
    for _ in range(3):
        for found, expected in zip(shard_set.read(range(48)), local.read(range(48)), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert not list(cache.glob("*/*.tar*")) and shard_set.statistics["cache_hits"] == 0
