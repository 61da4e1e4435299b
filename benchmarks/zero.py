"""What ZeRO buys: bytes of training state a rank, and bytes sent a step, measured at two processes and calculated.

python -m benchmarks.zero [--classes 2000] [--processes 2] [--json FILE]

Measured is a real launch by each file of accelerate_configs/ on CPU: the network of GREW with fewer classes, SGD with
momentum as its recipe has it, fp32. State: all live tensors of a rank between backward pass and update, less the batch.
Sent: bytes that went over the loopback interface in a network namespace of its own (Linux, root), per step and rank.
"""

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

LAUNCHES = ("ddp", "zero1", "zero2", "zero3", "ddp sharded", "zero2 sharded")
"""Launch files; "sharded" is with `train.shard_classifier`."""
STEPS = 3


def parameters(num_classes: int, parts: int = 50, channels: int = 256) -> tuple[int, int]:
    """Of OUMVLP's and GREW's network: without the classifier, and of the classifier."""
    from pipeline.model import HSTL

    with torch.device("meta"):
        total = sum(p.numel() for p in HSTL("grew", num_classes).parameters())
    classifier = parts * channels * num_classes
    return total - classifier, classifier


def held_bytes(backbone: int, classifier: int, world_size: int, optimizer_words: int) -> dict[str, float]:
    """Bytes a rank holds by calculation: parameters, gradients, optimizer state, all fp32.

    `backbone` and `classifier` are numbers of parameters; `optimizer_words` is 1 for SGD with momentum, 2 for Adam.
    DeepSpeed keeps one more copy of the parameters that a rank updates, even in fp32.
    """

    def each(num_parameters: float) -> dict[str, float]:
        whole, share = 4 * num_parameters, 4 * num_parameters / world_size
        return {
            "ddp": whole * (2 + optimizer_words),
            "zero1": 2 * whole + share * (1 + optimizer_words),
            "zero2": whole + share * (2 + optimizer_words),
            "zero3": share * (3 + optimizer_words),
        }

    everything, rest = each(backbone + classifier), each(backbone)
    own = 4 * classifier / world_size * (2 + optimizer_words)
    return everything | {"ddp sharded": rest["ddp"] + own, "zero2 sharded": rest["zero2"] + own}


def sent_bytes(backbone: int, classifier: int, world_size: int) -> dict[str, float]:
    """Bytes of parameters and gradients a rank sends a step by calculation, for collectives that waste nothing (rings).

    Averaging gradients and having all updated parameters takes twice (N - 1) / N of them: nothing exact that keeps the
    parameters on every rank needs less. ZeRO-3 gathers them twice, before the forward and before the backward pass. A
    sharded classifier's are not sent. Embeddings, which the triplet loss gathers in every case, are left out.
    """
    share = 4.0 * (backbone + classifier) * (world_size - 1) / world_size
    least = 4.0 * backbone * (world_size - 1) / world_size
    usual = {"ddp": 2 * share, "zero1": 2 * share, "zero2": 2 * share, "zero3": 3 * share}
    return usual | {"ddp sharded": 2 * least, "zero2 sharded": 2 * least}


def measure_here(num_classes: int, sharded: bool) -> None:
    """One process of a launch: trains a few steps and prints what rank 0 holds and sends, as JSON."""
    import torch.distributed as dist

    from pipeline import world
    from pipeline.model import HSTL
    from pipeline.objective import batch_losses
    from pipeline.recipe import Loss, Optimizer
    from pipeline.trained import Trained

    accelerator = world.start(2)
    torch.manual_seed(0)
    network = HSTL("grew", num_classes)
    trained = Trained(accelerator, network, Optimizer(kind="sgd", lr=1e-3, momentum=0.9), shard_classifier=sharded)
    del network
    silhouettes = torch.rand(2, 3, 64, 44)
    labels = torch.tensor([accelerator.process_index] * 2)
    sent = []
    for _ in range(STEPS):
        before = _loopback_bytes()
        terms = batch_losses(trained.model(silhouettes), labels, Loss(), trained.classifier)
        trained.backward(terms["loss"])
        held = _live_bytes()
        trained.update()
        accelerator.wait_for_everyone()
        sent.append(_loopback_bytes() - before)
    if accelerator.is_main_process:
        print(json.dumps({"held": held, "sent": sent[-1] / accelerator.num_processes}), flush=True)
    dist.destroy_process_group()


def measure(launch: str, num_classes: int, processes: int) -> dict[str, float]:
    """Launches `measure_here` by a file of accelerate_configs/, in a network namespace of its own where possible."""
    launch_file, *sharded = launch.split()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", f"accelerate_configs/{launch_file}.yaml", "--num_processes", str(processes)]
    command += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    command += ["-m", "benchmarks.zero", "--child", "--classes", str(num_classes), *(f"--{one}" for one in sharded)]
    alone = ["unshare", "--net", "bash", "-c", 'ip link set lo up && exec "$@"', "_"]
    prefix = alone if subprocess.run([*alone, "true"], capture_output=True).returncode == 0 else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if launch_file == "ddp":
        environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{launch}: {done.stderr}")
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"held"')))
    return found if prefix else {**found, "sent": float("nan")}


def _live_bytes() -> int:
    """Bytes of the storages of all tensors that Python can reach; views of one storage count once."""
    gc.collect()
    reachable = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.device.type != "meta"]
    reachable += [one.grad for one in reachable if one.is_leaf and one.grad is not None]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in reachable}
    return sum(storages.values())


def _loopback_bytes() -> int:
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:"))


def main() -> None:
    """Prints measured beside calculated, then the calculation for GREW over growing numbers of GPUs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classes", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sharded", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure_here(arguments.classes, arguments.sharded)
        return
    backbone, classifier = parameters(arguments.classes)
    world_size = arguments.processes
    held, sent = held_bytes(backbone, classifier, world_size, 1), sent_bytes(backbone, classifier, world_size)
    found: dict[str, Any] = {"backbone": backbone, "classifier": classifier, "processes": world_size, "measured": {}}
    table = Table("", "held MB", "calculated", "sent MB a step", "calculated")
    for name in LAUNCHES:
        measured = measure(name, arguments.classes, world_size)
        found["measured"][name] = {**measured, "held calculated": held[name], "sent calculated": sent[name]}
        row = (measured["held"], held[name], measured["sent"], sent[name])
        table.add_row(name, *(f"{value / 1e6:,.0f}" for value in row))
    console = Console()
    console.print(
        f"GREW's network, {arguments.classes} classes: {backbone / 1e6:.1f} + {classifier / 1e6:.1f} M parameters"
    )
    console.print(table)
    backbone, classifier = parameters(20_000)
    found["grew"] = {}
    for world_size in (2, 8, 32, 128):
        held, sent = held_bytes(backbone, classifier, world_size, 1), sent_bytes(backbone, classifier, world_size)
        found["grew"][world_size] = {"held": held, "sent": sent}
    for what, title in (("held", "held by a GPU"), ("sent", "sent by a GPU a step")):
        growing = Table("GPUs", *LAUNCHES, title=f"GREW, GB {title}, calculated")
        for world_size, values in found["grew"].items():
            growing.add_row(str(world_size), *(f"{values[what][name] / 1e9:.2f}" for name in LAUNCHES))
        console.print(growing)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
