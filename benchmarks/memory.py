"""Peak memory of one training step with and without `micro_batch`: casia-b network, P x K = 8 x 8, 30 frames.

python -m benchmarks.memory [--micro-batch 4] [--precision bf16] [--variant casia-b] [--sequences 64]
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from pipeline.losses import cross_entropy, triplet
from pipeline.model import HSTL


def one_step(variant: str, sequences: int, frames: int, precision: str, micro_batch: int | None) -> dict[str, float]:
    """Peak resident memory (GiB) and CPU seconds of a forward and backward pass, and the loss it came to."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = HSTL(variant, 74, precision=precision, micro_batch=micro_batch).train()  # type: ignore[arg-type]
    silhouettes = torch.rand(sequences, frames, 64, 44).round()
    labels = torch.arange(sequences) // 8
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    output = network(silhouettes)
    loss = triplet(output.embeddings, labels, 0.2) + cross_entropy(output.logits, labels)
    loss.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "loss": loss.item(),
        "cpu_seconds": time.process_time() - start,
        "before_gib": before / 2**20,
        "peak_gib": peak / 2**20,
    }


def in_fresh_process(arguments: argparse.Namespace, micro_batch: int | None) -> dict[str, float]:
    """One step in a process of its own: peak memory never falls again within one."""
    values = [arguments.variant, arguments.sequences, arguments.frames, arguments.precision, micro_batch]
    code = f"import json; from benchmarks.memory import one_step; print(json.dumps(one_step(*{values!r})))"
    return json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Prints both measurements and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", default="casia-b")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--micro-batch", type=int, default=4)
    arguments = parser.parse_args()
    print(f"{arguments.variant}, {arguments.sequences} x {arguments.frames} frames, {arguments.precision}, one core")
    split = in_fresh_process(arguments, arguments.micro_batch)
    print(f"  micro_batch {arguments.micro_batch}: {split}", flush=True)
    whole = in_fresh_process(arguments, None)
    print(f"  whole batch:   {whole}")
    grown = (whole["peak_gib"] - whole["before_gib"]) / (split["peak_gib"] - split["before_gib"])
    print(f"  memory of the step {grown:.1f}x less, CPU {split['cpu_seconds'] / whole['cpu_seconds']:.2f}x")


if __name__ == "__main__":
    main()
