"""OUMVLP's shape from an object store: 20,160 sequences in its raw layout, packed to a real S3 server, and its recipe's
batches drawn from there as training draws them.

    python -m benchmarks.stream [--subjects 720] [--walks CASIA-B-TREE] [--json FILE]

start        seconds from the end of the imports to the first batch, cache empty
second pass  requests for shards once the node's cache is full
two          processes that share a cache: how often each shard was fetched whole
outage       server killed for 20 s between two batches
faults       every kind of tests/shards/chaos.py on 5 % of the answers

Each reader is a process of its own with the recipe's loader, two workers; the network is left out. Batches are
compared by their sha256. The walks are drawn unless a tree of them is given.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import shards
from pipeline.recipe import load
from pipeline.train import open_batches, stream
from shards import walkers
from shards.pack import pack
from tests.shards.chaos import KINDS, Fault, Proxy, chaos
from tests.shards.s3_server import S3Server, running

ROOT = Path(__file__).parents[1]
VIEWS = [f"{angle:03d}" for angle in (*range(0, 91, 15), *range(180, 271, 15))]
PASS = 79  # steps in which 20,160 sequences come once, on average
OUTAGE_SECONDS = 20.0
SHORT = 30  # steps of a run that only compares batches


def write_raw(walks: Path, raw: Path, num_subjects: int) -> int:
    """`Silhouette_VIEW-SEQUENCE/SUBJECT` for subjects of the train split, each a link to one of the folders under
    `walks`; returns the number of sequences.
    """
    folders = sorted(path for path in walks.glob("*/*/*") if path.is_dir())
    number = 0
    for view in VIEWS:
        for sequence in ("00", "01"):
            walk = raw / f"Silhouette_{view}-{sequence}"
            walk.mkdir(parents=True)
            for subject in range(num_subjects):
                (walk / f"{2 * subject + 1:05d}").symlink_to(folders[number % len(folders)].resolve())
                number += 1
    return number


def read(url: str, cache: str | None, first: int, steps: int) -> None:
    """A reader: prints a JSON object a batch, and one with the counters at the end. Waits for a line of input where
    the first pass ends.
    """
    started = time.perf_counter()
    shard_set = shards.open(url, cache)
    recipe = load(ROOT / "recipes/oumvlp.yaml", [f"data={url}", f"train.steps={first + steps}", "train.workers=2"])
    batches = open_batches(shard_set, recipe)
    for step, batch in enumerate(stream(batches, first, recipe, torch.device("cpu")), first):
        content = hashlib.sha256()
        for tensor in batch.values():
            content.update(tensor.numpy().tobytes())
        print(
            json.dumps({"step": step, "at": time.perf_counter() - started, "sha256": content.hexdigest()}), flush=True
        )
        if step == PASS:
            sys.stdin.readline()
    print(json.dumps({"store": shard_set.statistics}), flush=True)


class Reader:
    """A process that runs `read`."""

    def __init__(self, url: str, cache: Path | None, steps: int, **variables: str) -> None:
        self.spawned = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.stream", "--read", url, str(cache or ""), str(steps)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.batches: list[dict[str, Any]] = []
        self.store: dict[str, int] = {}

    def until(self, step: int) -> "Reader":
        """Batches up to `step`, not included."""
        assert self.process.stdout is not None
        while len(self.batches) < step:
            self.batches.append(json.loads(self.process.stdout.readline()))
        return self

    def go_on(self) -> None:
        """From the end of the first pass."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> "Reader":
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = json.loads(line)
            if "store" in found:
                self.store = found["store"]
            else:
                self.batches.append(found)
        if self.process.wait() != 0:
            raise RuntimeError("a reader failed; its message stands above.")
        return self

    @property
    def sums(self) -> list[str]:
        return [batch["sha256"] for batch in self.batches]

    @property
    def longest_wait(self) -> float:
        times = [batch["at"] for batch in self.batches]
        return max(after - before for before, after in pairwise(times))


def start(url: str, folder: Path) -> dict[str, Any]:
    """Three fresh processes, each with an empty cache."""
    seconds, whole = [], []
    for number in range(3):
        reader = Reader(url, folder / f"start-{number}", 3).until(1)
        whole.append(time.perf_counter() - reader.spawned)
        seconds.append(reader.end().batches[0]["at"])
    return {"first_batch_s": sorted(seconds), "with_python_and_imports_s": sorted(whole)}


def second_pass(url: str, folder: Path, proxy: Proxy, num_shards: int) -> tuple[dict[str, Any], list[str]]:
    """One process: a pass that fills the cache, and a pass after it; also the sums of all batches."""
    cache = folder / "second"
    variables = {"AWS_ENDPOINT_URL": proxy.endpoint}
    proxy.requests.clear()
    reader = Reader(url, cache, 2 * PASS, **variables).until(PASS + 1)
    deadline = time.monotonic() + 120
    while len(list(cache.glob("*/*.tar"))) < num_shards and time.monotonic() < deadline:
        time.sleep(0.1)
    first = shard_requests(proxy)
    reader.go_on()
    reader.end()
    after = shard_requests(proxy)
    again = Reader(url, cache, PASS, **variables)
    proxy.requests.clear()
    again.end()
    found = {
        "first_pass_shard_requests": first.total(),
        "second_pass_shard_requests": after.total() - first.total(),
        "new_process_shard_requests": shard_requests(proxy).total(),
        "new_process_other_requests": dict(Counter(map(_file_of, proxy.requests))),
        "new_process_same_batches": again.sums == reader.sums[:PASS],
        "sequences_per_s_second_pass": 256 * (PASS - 2) / (reader.batches[-1]["at"] - reader.batches[PASS + 1]["at"]),
        "counters": reader.store,
    }
    return found, reader.sums


def two_processes(url: str, folder: Path, proxy: Proxy, sizes: dict[str, int]) -> dict[str, Any]:
    """Two ranks of one node, at once, one empty cache."""
    proxy.requests.clear()
    ranks = [
        Reader(url, folder / "two", PASS, AWS_ENDPOINT_URL=proxy.endpoint, RANK=str(rank), WORLD_SIZE="2")
        for rank in range(2)
    ]
    for rank in ranks:
        rank.end()
    whole = Counter(
        _file_of(line) for line in proxy.requests if line.endswith(f"bytes=0-{sizes.get(_file_of(line), 0) - 1}")
    )
    return {
        "whole_shards_fetched": dict(sorted(whole.items())),
        "shards_cached_by_rank": [rank.store["shards_cached"] for rank in ranks],
        "ranged_requests_meanwhile": shard_requests(proxy).total() - whole.total(),
    }


def outage(url: str, server: S3Server, clean: list[str]) -> dict[str, Any]:
    """No cache: the server ends at once after the tenth batch, and comes back."""
    reader = Reader(url, None, PASS).until(10)
    server.stop()
    time.sleep(OUTAGE_SECONDS)
    server.start()
    reader.end()
    return {
        "longest_wait_s": reader.longest_wait,
        "same_batches": reader.sums == clean[:PASS],
        "retries": reader.store["retries"],
    }


def faults(url: str, proxy: Proxy, clean: list[str], cache: Path | None) -> dict[str, Any]:
    proxy.happened.clear()
    proxy.faults.update({kind: Fault(0.05, seconds=1.0 if kind == "stall" else 0.2) for kind in KINDS})
    reader = Reader(url, cache, SHORT, AWS_ENDPOINT_URL=proxy.endpoint).end()
    proxy.faults.clear()
    return {
        "same_batches": reader.sums == clean[:SHORT],
        "happened": dict(proxy.happened),
        **{name: reader.store[name] for name in ("requests", "retries", "rereads", "pause_ms")},
    }


def shard_requests(proxy: Proxy) -> Counter[str]:
    """Shard -> requests for its data."""
    return Counter(name for name in map(_file_of, proxy.requests) if name.endswith(".tar"))


def _file_of(request: str) -> str:
    path = request.split()[1]
    return path.rpartition("/")[2] if path.count("/") > 1 else "listing"


def run(walks: Path | None, num_subjects: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(part, what was found) as they come."""
    with tempfile.TemporaryDirectory(prefix="hstl-stream-") as name, running(Path(name)) as server:
        folder = Path(name)
        os.environ.update(server.environment())
        os.environ.pop("HSTL_CACHE", None)
        if walks is None:
            walks = folder / "walks"
            walkers.write(walks, 3, frames=(20, 30), progress=False)
        began = time.perf_counter()
        num_sequences = write_raw(walks, folder / "raw", num_subjects)
        made = time.perf_counter() - began
        url = server.create_bucket("gait") + "/oumvlp"
        summary = pack("oumvlp", folder / "raw", url, progress=False)
        yield (
            "set",
            {
                "sequences": num_sequences,
                "mean_frames": summary.splits["train"]["frames"] / num_sequences,
                "shards": summary.num_shards,
                "mb": summary.num_bytes / 1e6,
                "raw_written_s": made,
                "packed_s": summary.seconds,
            },
        )
        sizes = {shard.name: shard.bytes for shard in shards.open(url).manifest.shards}
        yield "start", start(url, folder)
        with chaos(server.port) as proxy:
            found, clean = second_pass(url, folder, proxy, len(sizes))
            yield "second pass", found
            yield "two processes", two_processes(url, folder, proxy, sizes)
            yield "faults", faults(url, proxy, clean, None)
            yield "faults, with cache", faults(url, proxy, clean, folder / "faulty")
        yield "outage", outage(url, server, clean)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=720, help="28 sequences each")
    parser.add_argument("--walks", type=Path, help="raw frames in CASIA-B's layout; walkers are drawn unless given")
    parser.add_argument("--json", type=Path, help="write what was found here, too")
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        url, cache, steps = given.read
        read(url, cache or None, 0, int(steps))
        return
    found: dict[str, Any] = {"machine": {"cores": len(os.sched_getaffinity(0)), "processor": platform.machine()}}
    for part, values in run(given.walks, given.subjects):
        found[part] = {**values, "load": os.getloadavg()[0]}
        print(f"{part}: {json.dumps(found[part])}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
