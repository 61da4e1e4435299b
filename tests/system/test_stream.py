"""Training straight from an object store by the real commands: pack, verify, and two runs that share a cache."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.metrics_log import read
from tests.shards.chaos import Proxy, chaos
from tests.shards.s3_server import running
from tests.system.conftest import ROOT, Launch

SMALL = ["batch.subjects=4", "batch.sequences=2", "batch.frames=9", "train.steps=3", "train.save_every=3"]
SMALL += ["train.log_every=1", "train.workers=1", "train.trackers=[]"]

Bucket = tuple[str, Proxy, dict[str, str]]


@pytest.fixture(scope="module")
def bucket(raw: Path, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """URL of the walkers packed into a bucket, the proxy that notes every request, and a client's variables."""
    with running(tmp_path_factory.mktemp("store")) as server, chaos(server.port) as proxy:
        environment = server.environment(AWS_ENDPOINT_URL=proxy.endpoint)
        url = server.create_bucket("gait") + "/walkers"
        partition = packed.parent / "partition.yaml"
        hstl(
            environment,
            "pack",
            "--layout",
            "casia-b",
            "--source",
            raw,
            "--to",
            url,
            "--partition",
            partition,
            "--quiet",
        )
        yield url, proxy, environment


def hstl(environment: dict[str, str], *arguments: object) -> str:
    command = [sys.executable, "-c", "from pipeline.cli import app; app()", *map(str, arguments)]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def train(launch: Launch, data: object, run: Path, environment: dict[str, str]) -> list[dict]:
    arguments = ["recipes/demo.yaml", f"data={data}", f"run={run}", *SMALL]
    result = launch("cpu", "pipeline.train", *arguments, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return read(run)


def test_the_bucket_holds_what_the_folder_holds(bucket: Bucket, packed: Path) -> None:
    url, _, environment = bucket
    said = hstl(environment, "verify", url, "--quiet")
    assert "every byte is what the index" in said
    assert json.loads((packed / "shards.json").read_text())["index_sha256"] in said


def test_a_second_run_asks_the_store_for_no_shard(bucket: Bucket, packed: Path, launch: Launch, tmp_path: Path) -> None:
    url, proxy, environment = bucket
    with_cache = {**environment, "HSTL_CACHE": str(tmp_path / "cache")}
    local = train(launch, packed, tmp_path / "local", {})
    assert local[-1]["store"]["requests"] == 0 and local[-1]["store"]["sequences"] > 0

    proxy.requests.clear()
    first = train(launch, url, tmp_path / "first", with_cache)
    assert [line["loss"] for line in first] == [line["loss"] for line in local]
    counts = first[-1]["store"]
    assert counts["requests"] > 0 and counts["cache_misses"] > 0
    assert any(name.endswith(".tar") for name in names(proxy))
    cached = {path.name: path.read_bytes() for path in (tmp_path / "cache").glob("*/*.tar")}
    assert cached == {path.name: path.read_bytes() for path in packed.glob("train-*.tar")}

    proxy.requests.clear()
    second = train(launch, url, tmp_path / "second", with_cache)
    assert [line["loss"] for line in second] == [line["loss"] for line in local]
    counts = second[-1]["store"]
    assert counts["cache_misses"] == 0 and counts["cache_hits"] == counts["sequences"] > 0
    # The manifest twice (nothing else vouches for it) in each process, and one listing: is every shard whole?
    assert set(names(proxy)) == {"shards.json", ""}


def names(proxy: Proxy) -> list[str]:
    """Of the files asked for, in order; a listing has none."""
    return [request.split()[1].removeprefix("/gait").removeprefix("/walkers").strip("/") for request in proxy.requests]
