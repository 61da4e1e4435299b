"""What a job asks of SLURM, and which launch file it runs by; pure checks."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TIME = re.compile(r"(?:(?P<days>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+))?(?::(?P<ds>\d+))?|(?P<rest>\d+(?::\d+){0,2}))")


@dataclass(frozen=True)
class Resources:
    """What is asked for. Raises ValueError, naming the option, for what cannot be."""

    nodes: int
    gpus_per_node: int
    """0: nodes without GPUs, trained on CPUs."""
    processes_per_node: int | None = None
    """As many as GPUs, which needs no saying; on CPU nodes 1 unless given."""
    cpus_per_node: int | None = None
    """Cores for the processes and their loader workers; just enough unless given."""
    partition: str | None = None
    time: str | None = None
    save_seconds: float = 30
    """How long a checkpoint takes to write, at most."""

    def __post_init__(self) -> None:
        if self.gpus_per_node and self.processes_per_node not in (None, self.gpus_per_node):
            raise ValueError(
                f"--processes-per-node {self.processes_per_node} with --gpus-per-node {self.gpus_per_node}: a process "
                "has a GPU of its own; leave --processes-per-node out, which is for nodes without GPUs"
            )
        if self.time is not None and (limit := seconds(self.time)) is not None and limit <= self.ahead:
            raise ValueError(
                f"--time {self.time} is {limit} s, and the job is told to save {self.ahead} s before its end: it would "
                "never train; give more time, or a smaller --save-seconds"
            )
        if self.ahead > 65535:
            raise ValueError(f"--save-seconds {self.save_seconds:g}: SLURM signals 65535 s ahead at most; give less")

    @property
    def processes(self) -> int:
        """Processes a node."""
        return self.gpus_per_node or self.processes_per_node or 1

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes

    @property
    def ahead(self) -> int:
        """Seconds before the time limit at which the job is told to save.

        SLURM's signals were seen up to 22 s early and 12 s late, and the step under way is finished first.
        """
        return round(2 * self.save_seconds) + 60

    def cpus(self, workers: int) -> int:
        """Cores a node, for recipes with so many loader workers a process."""
        return self.cpus_per_node or self.processes * (1 + workers)

    def threads(self, workers: int) -> int:
        """Threads a process computes with: what its loader workers leave of its cores."""
        return max(1, self.cpus(workers) // self.processes - workers)


def seconds(time: str) -> int | None:
    """SLURM's way of writing a time, in seconds; None for no limit. Raises ValueError for anything else."""
    if time.upper() in ("UNLIMITED", "INFINITE"):
        return None
    found = TIME.fullmatch(time)
    if found is None:
        raise ValueError(
            f"--time {time!r} is not a time SLURM takes: write minutes, hours:minutes:seconds or "
            "days-hours:minutes:seconds, such as 90, 12:00:00 or 2-00:00:00"
        )
    if found["rest"] is None:
        days, hours, minutes, rest = (int(found[name] or 0) for name in ("days", "dh", "dm", "ds"))
        return ((days * 24 + hours) * 60 + minutes) * 60 + rest
    parts = [int(part) for part in found["rest"].split(":")]
    if len(parts) == 3:
        return parts[0] * 3600 + parts[1] * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)


def read_launch(path: Path) -> dict[str, Any]:
    """A launch file of Accelerate's. Raises FileNotFoundError or ValueError."""
    if not path.is_file():
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.yaml"))) or "none"
        raise FileNotFoundError(f"--launch: no file {path}; launch files in that folder: {near}")
    try:
        launch = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"--launch: {path} is not YAML: {error}") from None
    if not isinstance(launch, dict):
        raise ValueError(f"--launch: {path} is no launch file of Accelerate's; see accelerate_configs/zero2.yaml")
    return launch


def check_launch(launch: dict[str, Any], path: Path, resources: Resources) -> None:
    """Whether the processes asked for can start by the launch file. Raises ValueError naming file and remedy."""
    kind = launch.get("distributed_type") or "NO"  # an unquoted NO is false in YAML
    if kind not in ("DEEPSPEED", "MULTI_GPU"):
        raise ValueError(
            f"--launch: {path} has distributed_type {kind!r}, which "
            + ("starts one process and does not pass SLURM's signals on" if kind == "NO" else "training does not know")
            + "; take accelerate_configs/zero2.yaml (any number of processes) or ddp.yaml (two or more)"
        )
    if launch.get("use_cpu") and resources.gpus_per_node:
        raise ValueError(
            f"--launch: {path} says use_cpu, but --gpus-per-node is {resources.gpus_per_node}; take a file without it"
        )
    if kind == "MULTI_GPU" and resources.world_size < 2:
        raise ValueError(
            f"--launch: {path} starts two processes or more, and {resources.nodes} node x {resources.processes} is "
            "one; take accelerate_configs/zero2.yaml, or more processes"
        )
    kept = launch.get("deepspeed_config") or {}
    if kind == "DEEPSPEED" and (json := kept.get("deepspeed_config_file")) and not Path(json).is_file():
        raise FileNotFoundError(
            f"--launch: {path} names {json}, which is not here; submit from the folder that it is relative to"
        )


def resolve_launch(launch: dict[str, Any], resources: Resources, deepspeed_json: Path) -> dict[str, Any]:
    """The launch file for these nodes; its DeepSpeed JSON is looked for at `deepspeed_json`."""
    resolved = launch | {
        "num_machines": resources.nodes,
        "num_processes": resources.world_size,
        "machine_rank": 0,  # each node gives its own
        "same_network": True,
    }
    if launch["distributed_type"] == "DEEPSPEED":
        # The default, pdsh, would start processes by ssh from a host file: SLURM has started them already.
        kept = {**(launch.get("deepspeed_config") or {}), "deepspeed_multinode_launcher": "standard"}
        if "deepspeed_config_file" in kept:
            kept["deepspeed_config_file"] = str(deepspeed_json)
        resolved["deepspeed_config"] = kept
    return resolved
