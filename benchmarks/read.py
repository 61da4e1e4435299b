"""How fast shards are read, beside the field's way and beside decoding alone; how soon training can start.

    python -m benchmarks.read rate  [URL]     sequences a second of one core, and bytes, against pickles
    python -m benchmarks.read start           first batch from an S3 server, empty cache, 20,000 sequences
    python -m benchmarks.read index [ROWS]    opening an index, and drawing a batch from it

Without a URL, walkers are drawn and packed first. Ratios are of runs that took turns. `--json` also writes
benchmarks/results/.
"""

import argparse
import json
import os
import pickle
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.console import Console
from rich.table import Table

import shards
from benchmarks.whole import drawn
from shards import index
from shards.batches import SubjectTable, draw
from shards.sequence import PAYLOAD_SUFFIX, crc32, decode, encode
from shards.store.ranges import Range

P, K, FRAMES = 8, 16, 30
NUM_BATCHES = 6
ROUNDS = 5


class PickledSequences(torch.utils.data.Dataset[tuple[np.ndarray, int]]):
    """The field's way, after OpenGait's DataSet: one pickle a sequence, uint8 [frames, 64, 64]."""

    def __init__(self, paths: list[Path], labels: list[int]) -> None:
        self.paths, self.labels = paths, labels

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        with self.paths[number].open("rb") as file:
            return pickle.load(file), self.labels[number]

    def __len__(self) -> int:
        return len(self.paths)


class Collate:
    """After OpenGait's CollateFn and BaseSilCuttingTransform: frames chosen in Python, each sequence cut, and
    divided by 255 when `as_float` (as OpenGait does; ours leaves that to the GPU).
    """

    def __init__(self, as_float: bool) -> None:
        self.as_float = as_float

    def __call__(self, batch: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        sequences = np.asarray([self.transform(self.sample(sequence)) for sequence, _ in batch])
        return torch.from_numpy(sequences), torch.tensor([label for _, label in batch])

    def sample(self, sequence: np.ndarray) -> np.ndarray:
        indices = list(range(len(sequence)))
        while len(indices) < FRAMES:
            indices = indices * 2
        start = random.choice(range(len(indices) - FRAMES + 1))
        window = list(range(start, start + FRAMES))
        chosen = sorted(np.random.choice(window, FRAMES, replace=False))  # noqa: NPY002 - as OpenGait does
        return np.asarray([sequence[indices[i]] for i in chosen])

    def transform(self, sequence: np.ndarray) -> np.ndarray:
        narrow = sequence[..., 10:-10]
        return (narrow / 255.0).astype(np.float32) if self.as_float else narrow


def rate(url: str | None) -> dict[str, Any]:
    """CPU of one process: DataLoaders without workers, so that no other core helps; then one worker, by the wall."""
    with tempfile.TemporaryDirectory() as folder:
        shard_set = shards.open(url or drawn(Path(folder)))
        batches = shards.Batches(shard_set, "train", P, K, FRAMES)
        rows = [draw(batches.table, P, K, 0, step) for step in range(NUM_BATCHES)]
        paths, num_pickle_bytes = _pickles(shard_set, Path(folder) / "pickles")
        payloads = _payloads(shard_set, np.concatenate([chosen for chosen, _ in rows]))
        steps = [[int(row) for row in chosen] for chosen, _ in rows]
        field = PickledSequences(paths, [0] * len(paths))

        def ours(workers: int) -> Iterator[Any]:
            return iter(_loader(batches, range(NUM_BATCHES), workers))

        def pickles(as_float: bool, workers: int) -> Iterator[Any]:
            return iter(_loader(field, None, workers, batch_sampler=steps, collate_fn=Collate(as_float)))

        ways: dict[str, Callable[[], object]] = {
            "ours": lambda: [None for _ in ours(0)],
            "field": lambda: [None for _ in pickles(True, 0)],
            "field, left uint8": lambda: [None for _ in pickles(False, 0)],
            "decoding alone": lambda: [None for payload in payloads if decode(payload) is None],
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                started = time.process_time()
                way()
                seconds[name].append(time.process_time() - started)
        worker = {"ours": lambda: ours(1), "field": lambda: pickles(True, 1)}
        wall: dict[str, list[float]] = {name: [] for name in worker}
        for _ in range(ROUNDS):
            for name, start in worker.items():
                wall[name].append(_seconds_after_first(start()))
    num = NUM_BATCHES * P * K
    return {
        "sequences": len(shard_set),
        "mean_frames": float(np.mean(shard_set.num_frames)),
        "per_second_and_core": {name: num / statistics.median(times) for name, times in seconds.items()},
        "ours_over_field": _ratio(seconds["field"], seconds["ours"]),
        "ours_over_field_left_uint8": _ratio(seconds["field, left uint8"], seconds["ours"]),
        "ours_over_field_one_worker_wall": _ratio(wall["field"], wall["ours"]),
        "ours_over_decoding_alone": _ratio(seconds["decoding alone"], seconds["ours"]),
        "pickles_over_shards_bytes": float(num_pickle_bytes / sum(s.bytes for s in shard_set.manifest.shards)),
        "pickles_over_payload_bytes": float(num_pickle_bytes / shard_set.index["size"].to_numpy().sum()),
    }


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _loader(dataset: Any, sampler: Any, workers: int, **options: Any) -> torch.utils.data.DataLoader[Any]:
    if sampler is not None:
        options |= {"sampler": sampler, "batch_size": None}
    context = "forkserver" if workers else None
    return torch.utils.data.DataLoader(dataset, num_workers=workers, multiprocessing_context=context, **options)


def _seconds_after_first(arriving: Iterator[Any]) -> float:
    next(arriving)
    started = time.perf_counter()
    for _ in arriving:
        pass
    return time.perf_counter() - started


def _pickles(shard_set: shards.ShardSet, folder: Path) -> tuple[list[Path], int]:
    folder.mkdir()
    paths = [folder / f"{row}.pkl" for row in range(len(shard_set))]
    for row, path in enumerate(paths):
        path.write_bytes(pickle.dumps(np.array(shard_set.read([row])[0]), protocol=4))
    return paths, sum(path.stat().st_size for path in paths)


def _payloads(shard_set: shards.ShardSet, rows: np.ndarray) -> list[bytes]:
    table = shard_set.index.take(pa.array(rows))
    places = zip(*(table[name].to_pylist() for name in ("shard", "offset", "size")), strict=True)
    return [bytes(shard_set._store.read_again(Range(name, at, at + size))) for name, at, size in places]


FIRST_BATCH = """
import json, sys, time
import numpy, torch, shards
from shards.store import remote
started = time.perf_counter()
shard_set = shards.open(sys.argv[1], cache=sys.argv[2])
opened = time.perf_counter()
batches = shards.Batches(shard_set, "train", 32, 8, 30)
batches[0]
first = time.perf_counter()
for step in range(1, 6): batches[step]
print(json.dumps({"open_s": opened - started, "first_batch_after_start_s": first - started,
                  "next_5_batches_s": time.perf_counter() - first, **shard_set.statistics}))
"""


def start(num_subjects: int = 720) -> dict[str, Any]:
    """28 sequences a subject, as OUMVLP; a fresh process each time."""
    from obstore import put

    from shards.object_store import connect
    from tests.shards.s3_server import running

    with tempfile.TemporaryDirectory() as name, running(Path(name)) as server:
        os.environ.update(server.environment())
        url = server.create_bucket("sets") + "/oumvlp"
        for file_name, content in made_set(num_subjects):
            put(connect(url), file_name, content)
        runs = []
        for number in range(3):
            command = [sys.executable, "-c", FIRST_BATCH, url, f"{name}/cache-{number}"]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        runs.sort(key=lambda run: run["first_batch_after_start_s"])
        started = time.perf_counter()
        shard_set = shards.open(url, f"{name}/cache-loader")
        batches = shards.Batches(shard_set, "train", 32, 8, FRAMES)
        next(iter(_loader(batches, range(100), 2, prefetch_factor=2)))
        with_workers = time.perf_counter() - started
    return {"sequences_in_set": 28 * num_subjects, **runs[1], "first_batch_with_2_loader_workers_s": with_workers}


def made_set(num_subjects: int) -> Iterator[tuple[str, bytes]]:
    """Files of a packed set of 28 sequences a subject, 20 to 30 frames each; 500 different ones, repeated."""
    rng = np.random.default_rng(0)
    payloads = []
    for _ in range(500):
        frames = int(rng.integers(20, 31))
        payloads.append((frames, encode(_blobs(frames, rng))))
    rows: list[tuple[Any, ...]] = []
    entries = []
    per_shard = 110  # subjects: some 30 MB
    for number, first in enumerate(range(0, num_subjects, per_shard)):
        name, buffer, before = f"train-{number:06d}.tar", BytesIO(), len(rows)
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for subject in range(first, min(first + per_shard, num_subjects)):
                for i in range(28):
                    frames, payload = payloads[int(rng.integers(len(payloads)))]
                    parts = (f"{subject:05d}", f"{i // 14:02d}", f"{i % 14 * 15:03d}")
                    member = tarfile.TarInfo("-".join(parts) + PAYLOAD_SUFFIX)
                    member.size = len(payload)
                    offset = tar.offset + tarfile.BLOCKSIZE
                    tar.addfile(member, BytesIO(payload))
                    place = (name, offset, len(payload), crc32(payload))
                    rows.append(("-".join(parts), *parts, frames, "train", *place))
        content = buffer.getvalue()
        entries.append(index.Shard(name, len(content), index.fingerprint(content), len(rows) - before))
        yield name, content
    encoded = index.encode_index([dict(zip(index.SCHEMA.names, row, strict=True)) for row in rows])
    yield index.INDEX_NAME, encoded
    manifest = index.Manifest("oumvlp", 64, 64, tuple(entries), index.fingerprint(encoded))
    yield index.MANIFEST_NAME, manifest.to_json()


def _blobs(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Ragged outlines that compress about as people do, uint8 [frames, 64, 64]."""
    half = 6 + 5 * np.sin(np.linspace(0, 9, 64)) + rng.normal(0, 1.3, (frames, 64)).cumsum(0) * 0.3
    edge = half[:, :, None] - np.abs(np.arange(64) - 31.5)
    return (np.clip(edge + 0.5, 0, 1) * 255).astype(np.uint8)


def open_index(num_rows: int) -> dict[str, Any]:
    """Seconds: the first opening on a machine, one after it, the table of subjects; a draw of 32 x 8 in ms of CPU."""
    encoded, manifest = made_index(num_rows)
    found: dict[str, Any] = {"rows": num_rows, "parquet_mb": len(encoded) / 1e6}
    with tempfile.TemporaryDirectory() as folder:
        for which in ("first_open_s", "next_open_s"):
            started = time.perf_counter()
            table = index.open_index(manifest, lambda: encoded, "here", Path(folder))
            found[which] = time.perf_counter() - started
        started = time.perf_counter()
        subjects = SubjectTable.of(table, "train")
        found["subject_table_s"] = time.perf_counter() - started
        times = []
        for step in range(1000):
            began = time.process_time()
            draw(subjects, 32, 8, 0, step)
            times.append(1000 * (time.process_time() - began))
        found |= {"draw_median_ms": statistics.median(times), "draw_worst_ms": max(times)}
    return found


def made_index(num_rows: int) -> tuple[bytes, index.Manifest]:
    rows = np.arange(num_rows)
    subject = pc.utf8_lpad(pa.array(rows // 500).cast(pa.string()), 7, "0")
    condition = pa.array([f"{i:02d}" for i in range(25)]).take(pa.array(rows // 20 % 25))
    view = pa.array([f"{18 * i:03d}" for i in range(20)]).take(pa.array(rows % 20))
    shard = pa.array([f"train-{i:06d}.tar" for i in range(num_rows // 3000 + 1)]).take(pa.array(rows // 3000))
    rng = np.random.default_rng(0)
    columns = {
        "key": pc.binary_join_element_wise(subject, condition, view, "-"),
        "subject": subject, "condition": condition, "view": view,
        "frames": pa.array(rng.integers(20, 31, num_rows).astype(np.int32)),
        "split": pa.array(["train", "test"]).take(pa.array((rows > 0.9 * num_rows).astype(np.int8))),
        "shard": shard,
        "offset": pa.array(rows % 3000 * 10_000),
        "size": pa.array(rng.integers(5_000, 10_000, num_rows)),
        "crc32": pa.array(rng.integers(0, 2**32, num_rows).astype(np.uint32)),
    }  # fmt: skip
    encoded = index.encode_index(pa.table(columns, schema=index.SCHEMA))
    entry = index.Shard("train-000000.tar", 0, "", num_rows)
    return encoded, index.Manifest("made", 64, 64, (entry,), index.fingerprint(encoded))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rate", "start", "index"))
    parser.add_argument("argument", nargs="?", help="URL of a packed set (rate), or how many rows (index)")
    parser.add_argument("--json", action="store_true", help="also write benchmarks/results/")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "rate":
        found = rate(given.argument)
    elif given.what == "start":
        found = start()
    else:
        found = open_index(int(given.argument or 1_000_000))
    table = Table("what", "value", title=f"read: {given.what}")
    for name, value in found.items():
        for row, number in value.items() if isinstance(value, dict) else ((name, value),):
            table.add_row(row, f"{number:,.3f}" if isinstance(number, float) else f"{number:,}")
    Console().print(table)
    if given.json:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        path = folder / f"{date.today():%Y-%m-%d}-read-{given.what}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
