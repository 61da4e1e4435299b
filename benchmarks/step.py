"""The training step against the release's, and against what the machine could do.

python -m benchmarks.step [--variant casia-b] [--subjects 2] [--sequences 2] [--repeats 3] [--threads N] [--paths]

Everything takes turns in one process: the baseline, our step in fp32 and bf16, with --paths our bf16 step with each
fast path off, and the machine's own peak (a product of matrices, a copy of memory), so that whoever else uses the
machine slows all of them alike.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.backends import cudnn

from benchmarks import baseline
from benchmarks.measure import Times, alternate, machine, ratio
from benchmarks.work import multiplications, step_bytes, step_operations
from pipeline.losses import cross_entropy, triplet
from pipeline.model import HSTL, VARIANTS, fast
from pipeline.model.released import to_released
from pipeline.recipe import Optimizer
from pipeline.trained import build_optimizer

NUM_CLASSES, SIDE, COPIED = 74, 2048, 64 * 2**20


def walks(number: int, frames: int) -> list[np.ndarray]:
    """uint8 `[frames, 64, 64]` each; arithmetic does not depend on what is in them."""
    rng = np.random.default_rng(0)
    return [255 * rng.integers(0, 2, (frames, 64, 64), np.uint8) for _ in range(number)]


def stepping(
    network: HSTL, off: Sequence[str] = (), *, deterministic: bool = False
) -> Callable[[torch.Tensor, torch.Tensor], float]:
    """What takes a step on a batch as the loader gives it: uint8 `[n, frames, 64, 44]`, and labels `[n]`."""
    optimizer = build_optimizer(network.train(), Optimizer(kind="adam", lr=1e-4, weight_decay=5e-4))

    def step(silhouettes: torch.Tensor, labels: torch.Tensor) -> float:
        with fast.without(*off), cudnn.flags(True, not deterministic, deterministic=deterministic, allow_tf32=False):
            output = network(silhouettes.float() / 255)
            loss = triplet(output.embeddings, labels, 0.2) + cross_entropy(output.logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

    return step


def our_step(
    network: HSTL, silhouettes: torch.Tensor, labels: torch.Tensor, off: Sequence[str] = (), **options: bool
) -> Callable[[], float]:
    """Our step on one batch in memory."""
    step = stepping(network, off, **options)
    return lambda: step(silhouettes, labels)


def release_step(like: HSTL, batch: Sequence[np.ndarray], labels: torch.Tensor) -> Callable[[], float]:
    """The release's step with the same weights."""
    network = baseline.Baseline(like.variant, like.num_classes).to(labels.device).train()
    network.load_state_dict(to_released(like.state_dict(), like.variant))
    step = baseline.Step(network, torch.optim.Adam(network.parameters(), 1e-4, weight_decay=5e-4), 1.0, 0.0)

    def run() -> float:
        with baseline.release_backends():
            return step(batch, labels)

    return run


def product(dtype: torch.dtype, device: torch.device) -> Callable[[], torch.Tensor]:
    a, b = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b


def copying(device: torch.device) -> Callable[[], torch.Tensor]:
    a, b = (torch.zeros(COPIED, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: a.copy_(b)


def measure(variant: str, subjects: int, sequences: int, frames: int, repeats: int, paths: bool) -> dict[str, Any]:
    """Seconds, ratios to the baseline and shares of the peak."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    number = subjects * sequences
    labels = torch.arange(number, device=device) // sequences
    batch = walks(number, frames)
    silhouettes = torch.from_numpy(np.stack(batch)[..., 10:-10].copy()).to(device)
    state = HSTL(variant, NUM_CLASSES).to(device).state_dict()

    def network(precision: str) -> HSTL:
        made = HSTL(variant, NUM_CLASSES, precision=precision).to(device)  # type: ignore[arg-type]
        made.load_state_dict(state)
        return made

    functions: dict[str, Callable[[], object]] = {
        "release": release_step(network("fp32"), batch, labels),
        "fp32, every path off": our_step(network("fp32"), silhouettes, labels, tuple(fast.PATHS)),
        "fp32": our_step(network("fp32"), silhouettes, labels),
        "bf16, every path off": our_step(network("bf16"), silhouettes, labels, tuple(fast.PATHS)),
        # In front of "bf16", which has better luck after its own kind: memory of the right sizes is at hand.
        **(
            {f"bf16 without {path}": our_step(network("bf16"), silhouettes, labels, (path,)) for path in fast.PATHS}
            if paths
            else {}
        ),
        "bf16": our_step(network("bf16"), silhouettes, labels),
        **(
            {"bf16, deterministic": our_step(network("bf16"), silhouettes, labels, deterministic=True)}
            if device.type == "cuda"  # CPUs have no other kernels
            else {}
        ),
        "product fp32": product(torch.float32, device),
        "product bf16": product(torch.bfloat16, device),
        "copy": copying(device),
    }
    times = alternate(functions, repeats)
    return {
        "variant": variant,
        "batch": f"{subjects} x {sequences} x {frames} frames",
        "machine": machine(),
        "seconds": {name: {"clock": t.seconds, "cpu": t.cpu_seconds} for name, t in times.items()},
        "times faster than the release": {
            name: ratio(times["release"], t) for name, t in times.items() if not name.startswith(("product", "copy"))
        },
        "bound": bound(variant, number, frames, times),
    }


def bound(variant: str, number: int, frames: int, times: dict[str, Times]) -> dict[str, float]:
    """What the step asks by calculation, what the machine gave in the same minutes, and the share reached."""
    description = VARIANTS[variant]
    operations = step_operations(description, frames, NUM_CLASSES, number)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in HSTL(variant, NUM_CLASSES).parameters())
    # By CPU seconds on a CPU: a core taken away by somebody else is no fault of the step's. A figure is then a core's.
    taken = {name: t.wall if torch.cuda.is_available() else t.cpu for name, t in times.items()}
    found = {
        "GMAC a sequence, forward": multiplications(description, frames, NUM_CLASSES) / 1e9,
        "TFLOP a step": operations / 1e12,
        "GB a step at least, bf16": step_bytes(description, frames, number, parameters, 2) / 1e9,
        "GB/s copied (read and written)": 2 * COPIED / min(taken["copy"]) / 1e9,
    }
    for precision in ("fp32", "bf16"):
        peak = 2 * SIDE**3 / min(taken[f"product {precision}"])
        found[f"GFLOP/s of products, {precision}"] = peak / 1e9
        # Operations as the convolutions are defined: fewer products (winograd) may take the share over 1.
        found[f"share of that reached, {precision}"] = operations / statistics.median(taken[precision]) / peak
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="casia-b")
    parser.add_argument("--subjects", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--paths", action="store_true", help="our bf16 step with each fast path off, too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    a = arguments
    print(json.dumps(measure(a.variant, a.subjects, a.sequences, a.frames, a.repeats, a.paths), indent=1))


if __name__ == "__main__":
    main()
