"""Training from shards against the bare step on data in memory: what loader, checkpoints and start cost.

python -m benchmarks.whole [--data demo/shards] [--steps 60]

A real run of recipes/demo.yaml in a process of its own, one process, every step logged; then, in this one, the same
network, losses and optimizer on what the loader streams and on one batch in memory, in turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

import shards
from benchmarks.measure import Times, alternate, machine, ratio
from benchmarks.step import stepping
from pipeline.model import HSTL
from pipeline.recipe import Recipe, load
from pipeline.train import stream

SKIPPED = 5
"""First steps left out of rates: caches, the loader's workers."""
PAIRS = 25
"""Of steps, from shards and in memory."""


def drawn(folder: Path) -> Path:
    """Shards of a few walkers, all of them in the training split."""
    from shards import walkers
    from shards.pack import pack

    walkers.write(folder / "raw", 8, frames=24, progress=False)
    names = ", ".join(f"'{subject.name}'" for subject in sorted((folder / "raw").iterdir()))
    (folder / "all.yaml").write_text(f"train: [{names}]\ntest: []\n")
    pack("casia-b", folder / "raw", folder / "set", folder / "all.yaml", progress=False)
    return folder / "set"


def measure(data: Path | None, steps: int) -> dict[str, Any]:
    """Steps a second from shards and from memory, and where the rest of the time goes."""
    with tempfile.TemporaryDirectory() as folder:
        source = data or drawn(Path(folder))
        run = Path(folder) / "run"
        overrides = [
            f"data={source}", f"run={run}", f"train.steps={steps}", f"train.save_every={steps}", "train.log_every=1",
            "schedule.milestones=[]",
        ]  # fmt: skip
        # A thread the loader's worker may need is left to it, as `make demo` does.
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(torch.get_num_threads() - 1, 1))}
        began = time.time()
        command = [sys.executable, "-m", "pipeline.train", "recipes/demo.yaml", *overrides]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall = time.time() - began
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines = [line for line in lines if "steps_per_s" in line]
        saved = sum(file.stat().st_size for file in (run / "checkpoints").rglob("*") if file.is_file())
        recipe = load(Path("recipes/demo.yaml"), overrides)
        streamed, held = side_by_side(recipe, source, int(environment["OMP_NUM_THREADS"]))
    seconds = [1 / line["steps_per_s"] for line in lines[SKIPPED:]]
    waited = [line["data_wait"] / line["steps_per_s"] for line in lines[SKIPPED:]]
    return {
        "machine": machine(),
        "steps": len(seconds),
        "seconds a step of the run, median": statistics.median(seconds),
        "share of a step waiting for the loader": sum(waited) / sum(seconds),
        "seconds a bare step from shards, median": streamed.seconds,
        "seconds a bare step in memory, median": held.seconds,
        "times longer from shards than in memory, median of pairs": ratio(streamed, held)["clock"],
        "seconds from start of the process to the end of the first step": wall
        - (lines[-1]["seconds"] - lines[0]["seconds"]),
        "seconds from first to last step": lines[-1]["seconds"] - lines[0]["seconds"],
        "MB of one checkpoint": saved / 1e6,
        "share of steady training outside waiting": 1 - sum(waited) / sum(seconds),
        "share of the whole process in steps (300 steps as the demo has)": _share_of_demo(wall, lines, seconds),
    }


def _share_of_demo(wall: float, lines: list[dict[str, Any]], seconds: list[float]) -> float:
    """What start and end cost here, against 300 steps at the measured rate."""
    outside = wall - sum(1 / line["steps_per_s"] for line in lines)
    stepping = 300 * statistics.mean(seconds)
    return stepping / (stepping + outside)


def side_by_side(recipe: Recipe, source: Path, threads: int) -> tuple[Times, Times]:
    """Steps on batches as they come from the loader, and steps on one batch in memory, taking turns.

    The loader's worker makes up for each batch taken while the step on it runs, so its work falls on the right one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    batch = recipe.batch
    batches = shards.Batches(shards.open(source), "train", batch.subjects, batch.sequences, batch.frames, seed=0)
    held = batches[0]
    network = HSTL(recipe.network.variant, batches.num_classes, precision=recipe.train.precision)
    step = stepping(network)
    with closing(stream(batches, 0, recipe, torch.device("cpu"))) as arriving:

        def from_shards() -> None:
            batch = next(arriving)
            step(batch["silhouettes"], batch["labels"])

        ways = {"shards": from_shards, "memory": lambda: step(held["silhouettes"], held["labels"])}
        times = alternate(ways, PAIRS)
    torch.set_num_threads(before)
    return times["shards"], times["memory"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="shards; a few walkers are drawn and packed unless given")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.data, arguments.steps), indent=1))


if __name__ == "__main__":
    main()
