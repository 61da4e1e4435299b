"""Packing against the field's way, in one run on the same raw frames: frames a second and core, and bytes.

python -m benchmarks.pack [--source CASIA-B-TREE | --subjects 4] [--workers N] [--repeats 3] [--save]

The field's way is what GaitSet's and OpenGait's preparation does in each of its processes: read a PNG, find the
person by sums over the whole picture, resize, search the centre column, keep; then pickle the sequence into a file
of its own. Both sides read the same files, from the page cache after the first pass, and take turns.
"""

import argparse
import json
import os
import pickle
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from shards import walkers
from shards.pack import pack

RESULTS = Path(__file__).parent / "results"


def fields_way(source: Path, to: Path) -> int:
    """One process: every sequence of a CASIA-B tree normalised and pickled; returns the number of frames."""
    num_frames = 0
    for folder in sorted(source.glob("*/*/*")):
        frames = []
        for path in sorted(folder.glob("*.png")):
            num_frames += 1
            normalised = _normalise(np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))
            if normalised is not None:
                frames.append(normalised)
        if frames:
            place = to / folder.relative_to(source)
            place.mkdir(parents=True)
            with (place / f"{folder.name}.pkl").open("wb") as file:
                pickle.dump(np.asarray(frames), file)
    return num_frames


def _normalise(frame: np.ndarray) -> np.ndarray | None:
    """GaitSet's steps as its authors describe them, each over the whole picture: uint8 [64, 64]."""
    if frame.sum() <= 10_000:
        return None
    filled = frame.sum(axis=1) != 0
    top, bottom = filled.argmax(), filled.cumsum().argmax()
    frame = frame[top : bottom + 1]
    frame = cv2.resize(frame, (int(64 * frame.shape[1] / frame.shape[0]), 64), interpolation=cv2.INTER_CUBIC)
    half = frame.sum() / 2
    centre = next(column for column, mass in enumerate(frame.sum(axis=0).cumsum()) if mass > half)
    left, right = centre - 32, centre + 32
    if left <= 0 or right >= frame.shape[1]:
        margin = np.zeros((64, 32))
        frame = np.concatenate([margin, frame, margin], axis=1)
        left, right = left + 32, right + 32
    return frame[:, left:right].astype("uint8")


def ours(workers: int) -> Callable[[Path, Path], int]:
    def run(source: Path, to: Path) -> int:
        return pack("casia-b", source, to / "set", workers=workers, progress=False).num_raw_frames

    return run


def measure(run: Callable[[Path, Path], int], source: Path) -> dict[str, float]:
    """Frames, wall and CPU seconds (of this process and those it waited for), and bytes written."""
    to = Path(tempfile.mkdtemp(prefix="hstl-bench-"))
    try:
        before, started = os.times(), time.perf_counter()
        num_frames = run(source, to)
        seconds, after = time.perf_counter() - started, os.times()
        cpu = sum(after[:4]) - sum(before[:4])
        written = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(to)
    return {"frames": num_frames, "seconds": seconds, "cpu_seconds": cpu, "bytes": written}


def compare(source: Path, workers: int, repeats: int) -> dict[str, dict[str, float]]:
    """The least of `repeats` rounds in which all take turns: what else runs on the machine only adds. One round
    before, unmeasured, fills the page cache.
    """
    ways: dict[str, Callable[[Path, Path], int]] = {"field's way, 1 process": fields_way, "ours, 1 process": ours(1)}
    if workers > 1:
        ways[f"ours, {workers} processes"] = ours(workers)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, run in ways.items():
            measured = measure(run, source)
            if turn:
                rounds[name].append(measured)
    return {
        name: {key: min(measured[key] for measured in of_way) for key in of_way[0]} for name, of_way in rounds.items()
    }


def table(results: dict[str, dict[str, float]]) -> Table:
    first = next(iter(results.values()))
    shown = Table("", "frames/s", "frames/s a core", "ratio a core", "bytes a frame", "of the pickles", title="packing")
    for name, found in results.items():
        a_core = found["frames"] / found["cpu_seconds"]
        shown.add_row(
            name,
            f"{found['frames'] / found['seconds']:,.0f}",
            f"{a_core:,.0f}",
            f"{a_core / (first['frames'] / first['cpu_seconds']):.2f}",
            f"{found['bytes'] / found['frames']:,.0f}",
            f"1/{first['bytes'] / found['bytes']:.1f}",
        )
    return shown


def main() -> None:
    """Prints the table; --save also writes it to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, help="raw frames in CASIA-B's layout; walkers are made unless given")
    parser.add_argument("--subjects", type=int, default=4, help="walkers to make: 110 sequences each")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write JSON to benchmarks/results/")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hstl-bench-raw-") as folder:
        source = arguments.source
        if source is None:
            source = Path(folder) / "walkers"
            walkers.write(source, arguments.subjects, frames=40, progress=False)
        results = compare(source, arguments.workers, arguments.repeats)
    Console().print(table(results))
    if arguments.save:
        now = datetime.now(UTC)
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"pack-{now:%Y-%m-%d}.json"
        found: dict[str, Any] = {
            "date": now.isoformat(timespec="seconds"),
            "source": str(arguments.source.name) if arguments.source else f"{arguments.subjects} walkers, 40 frames",
            "machine": {"cores": len(os.sched_getaffinity(0)), "processor": platform.machine()},
            "results": results,
        }
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
