"""How speed and memory grow: with batch, frames, width, classes and processes; and a projection to many GPUs.

python -m benchmarks.growth [--variant demo] [--pictures FOLDER]

Memory is what the forward pass keeps for the backward one, counted tensor by tensor: it does not depend on who else
uses the machine. The projection is arithmetic on stated assumptions, not a measurement.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from benchmarks.measure import alternate, machine
from benchmarks.step import our_step
from benchmarks.work import step_operations
from pipeline.losses import cross_entropy, triplet
from pipeline.model import HSTL, VARIANTS
from pipeline.model.global_batch import gather

USUAL = {"sequences": 16, "frames": 18, "width": 44, "classes": 74}
CURVES: dict[str, Sequence[int]] = {
    "sequences": (4, 8, 16, 32, 64),
    "frames": (9, 18, 30, 60),
    "width": (44, 64),
    "classes": (74, 3000, 5153, 20000),
}
PROCESSES = (1, 2, 4)
STEPS = 6

ASSUMED = {
    "bf16 TFLOP/s of products, H200 class": 790.0,
    "share of it reached by the step (the goal, not measured)": 0.45,
    "GB/s a GPU within a node of 8": 300.0,
    "GB/s a GPU between nodes": 40.0,
    "sequences a GPU": 32.0,
    "share of the exchange hidden behind the backward pass": 0.0,
}


def curve(variant: str, what: str) -> list[dict[str, float]]:
    """Sequences a second and MB kept, with all but one size as usual."""
    points = []
    for size in CURVES[what]:
        sizes = {**USUAL, what: size}
        network = HSTL(variant, sizes["classes"], precision="bf16")
        silhouettes = torch.randint(0, 2, (sizes["sequences"], sizes["frames"], 64, sizes["width"]), dtype=torch.uint8)
        labels = torch.arange(sizes["sequences"]) // 2
        kept = kept_bytes(network, silhouettes)
        times = alternate({"step": our_step(network, 255 * silhouettes, labels)}, 2)["step"]
        points.append(
            {
                what: size,
                "sequences/s": sizes["sequences"] / times.seconds,
                "sequences/CPU s": sizes["sequences"] / times.cpu_seconds,
                "MB kept": kept / 1e6,
                "MB of parameters": sum(p.numel() for p in network.parameters()) * 4 / 1e6,
            }
        )
    return points


def kept_bytes(network: HSTL, silhouettes: torch.Tensor) -> int:
    """Bytes of distinct storages that a forward pass in training saves for the backward one, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network.train()(silhouettes.float())
    total = sum(seen.values())
    del output
    return total


def processes(variant: str) -> list[dict[str, float]]:
    """Sequences a second of 1, 2 and 4 processes, a thread and 8 sequences each, gradients averaged by gloo."""
    points = []
    for number in PROCESSES:
        results = mp.get_context("spawn").SimpleQueue()
        mp.spawn(_rank, (number, variant, results), nprocs=number)
        points.append({"processes": number, "sequences/s": 8 * number / results.get()})
    return points


def _rank(rank: int, number: int, variant: str, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(29500 + number))
    dist.init_process_group("gloo", rank=rank, world_size=number)
    network = HSTL(variant, USUAL["classes"], precision="bf16").train()
    model = nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    silhouettes = torch.rand(8, USUAL["frames"], 64, 44).round()
    labels = torch.arange(8) // 2 + 4 * rank
    seconds = []
    for _ in range(STEPS):
        dist.barrier()
        began = time.perf_counter()
        output = model(silhouettes)
        loss = triplet(gather(output.embeddings), gather(labels), 0.2) + cross_entropy(output.logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dist.barrier()
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        results.put(statistics.median(seconds[1:]))
    dist.destroy_process_group()


def projection(
    variant: str, num_classes: int, assumed: dict[str, float] = ASSUMED, *, sharded: bool = False
) -> list[dict[str, float]]:
    """Seconds a step on 8 to 512 GPUs: operations over assumed speed, and bytes of gradients over assumed links.

    A ring sends each gradient (fp32) twice around, less one share; between nodes the slower link sets the pace. What
    every GPU does on its own grows with nothing; triplets over all embeddings are left out (under 1 % up to 512).
    With a sharded classifier its gradients stay, and all embeddings and their gradients go around instead.
    """
    peak, share, inside, between, sequences, hidden = assumed.values()
    with torch.device("meta"):
        network = HSTL(variant, num_classes)
    parameters = sum(p.numel() for p in network.parameters())
    embeddings = 0.0
    if sharded:
        parameters -= sum(p.numel() for p in network.classifier.parameters())
        embeddings = 2 * 4 * sequences * network.variant.parts * network.variant.channels
    compute = step_operations(VARIANTS[variant], 30, num_classes, int(sequences)) / (peak * share * 1e12)
    points = []
    for gpus in (1, 8, 16, 32, 64, 128, 256, 512):
        link = inside if gpus <= 8 else between
        sent = 2 * (gpus - 1) / gpus * 4 * parameters + (gpus - 1) * embeddings
        exchange = sent / (link * 1e9) * (1 - hidden)
        points.append(
            {
                "GPUs": gpus,
                "seconds a step": compute + exchange,
                "of it exchange": exchange,
                "sequences/s": gpus * sequences / (compute + exchange),
            }
        )
    return points


def measure(variant: str) -> dict[str, Any]:
    return {
        "variant": variant,
        "usual": USUAL,
        "machine": machine(),
        **{what: curve(variant, what) for what in CURVES},
        "processes": processes(variant),
        "projection, not measured": {
            "assumed": ASSUMED,
            "casia-b, 74 classes": projection("casia-b", 74),
            "oumvlp, 5,153 classes": projection("oumvlp", 5153),
            "grew, 20,000 classes, all exchanged": projection("grew", 20000),
            "grew, its classifier sharded": projection("grew", 20000, sharded=True),
        },
    }


def picture(found: dict[str, Any], path: Path) -> None:
    """All curves on one sheet, PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    for axis, what in zip(axes.flat, [*CURVES, "processes"], strict=False):
        points = found[what]
        x = [point[what] for point in points]
        axis.plot(x, [point["sequences/s"] for point in points], "o-", color="tab:blue")
        axis.set(xlabel=what, ylim=(0, None))
        axis.set_ylabel("sequences a second", color="tab:blue")
        if "MB kept" in points[0]:
            memory = axis.twinx()
            whole = [point["MB kept"] + 4 * point["MB of parameters"] for point in points]
            memory.plot(x, whole, "s--", color="tab:orange")
            memory.set(ylim=(0, None))
            memory.set_ylabel("MB", color="tab:orange")
    axis = axes.flat[5]
    for name, points in found["projection, not measured"].items():
        if name != "assumed":
            ideal = points[0]["sequences/s"]
            x = [point["GPUs"] for point in points]
            axis.plot(x, [100 * p["sequences/s"] / ideal / p["GPUs"] for p in points], "o-", label=name)
    axis.set(xscale="log", xlabel="GPUs (projection, not measured)", ylabel="% of ideal speed", ylim=(0, 105))
    axis.set_xticks([1, 8, 64, 512], ["1", "8", "64", "512"])
    axis.legend(fontsize=7, ncol=2, loc="upper center", bbox_to_anchor=(0.4, -0.2))
    figure.suptitle(
        f"{found['variant']} network, bf16; {found['machine']['cores']} cores. Blue: sequences a second. "
        "Orange: kept for the backward pass, and parameters with Adam's state",
        fontsize=10,
    )
    figure.savefig(path, dpi=70)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="demo")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.variant)
    print(json.dumps(found, indent=1))
    if arguments.picture:
        picture(found, arguments.picture)


if __name__ == "__main__":
    main()
