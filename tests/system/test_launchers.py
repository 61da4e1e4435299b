"""The same recipe trains the same under every launch file, with any number of processes and loader workers.

In fp32 rounding grows a thousandfold in the first steps of training (sums over processes are in another order), so the
number of processes is proved in float64; launch files, which do the same sums in the same order, in fp32.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.metrics_log import read
from tests.system.conftest import Launch

STEPS = 20
RECIPE = [
    f"train.steps={STEPS}",
    "train.save_every=20",
    "train.log_every=1",
    "train.precision=fp32",
    "train.trackers=[]",
]
RECIPE += ["batch.subjects=4", "batch.sequences=2", "batch.frames=9", "schedule.milestones=[7, 15]"]
RECIPE += ["optimizer={kind: sgd, lr: 0.02, momentum: 0.9, weight_decay: 5e-4}"]
LAST = f"checkpoints/step-{STEPS:08d}"

pytestmark = pytest.mark.slow


def train(
    launch: Launch,
    packed: Path,
    run: Path,
    config: str,
    processes: int,
    *overrides: str,
    module: str = "pipeline.train",
) -> Path:
    # DeepSpeed finds out by itself; Accelerate, asked for CPUs by name, would leave DeepSpeed out.
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if config == "ddp" else {}
    arguments = ["recipes/demo.yaml", f"data={packed}", f"run={run}", *RECIPE, *overrides]
    result = launch(config, module, *arguments, env=on_cpu, processes=processes)
    assert result.returncode == 0, result.stdout + result.stderr
    return run


def assert_same(run: Path, reference: Path, loss: float, weight: float) -> None:
    """Losses of each step within a relative `loss`, weights of the last within `weight` of their largest."""
    assert len(read(run)) == len(read(reference)) == STEPS
    for ours, expected in zip(read(run), read(reference), strict=True):
        assert ours["lr"] == expected["lr"]
        assert ours["loss"] == pytest.approx(expected["loss"], rel=loss), f"step {ours['step']}"
    weights, wanted = (load_file(r / LAST / "model.safetensors") for r in (run, reference))
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in wanted.items()}
    for name, expected in wanted.items():
        assert (weights[name] - expected).abs().max() <= weight * expected.abs().max(), name


@pytest.fixture(scope="module")
def alone(packed: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    return train(launch, packed, run, "cpu", 1, "train.workers=0", module="tests.system.double")


@pytest.mark.parametrize(
    ("processes", "overrides"),
    [
        (2, ["train.workers=2"]),
        (4, ["train.workers=0"]),
        (2, ["train.micro_batch=1", "train.workers=0"]),
        (4, ["train.shard_classifier=true", "train.workers=1"]),
    ],
)
def test_any_number_of_processes_trains_as_one(
    launch: Launch, packed: Path, alone: Path, tmp_path: Path, processes: int, overrides: list[str]
) -> None:
    run = train(launch, packed, tmp_path / "run", "ddp", processes, *overrides, module="tests.system.double")
    assert load_file(run / LAST / "model.safetensors")["head.weight"].dtype == torch.float64
    assert_same(run, alone, 1e-9, 1e-7)


@pytest.fixture(scope="module")
def ddp(packed: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(launch, packed, tmp_path_factory.mktemp("ddp") / "run", "ddp", 2, "train.workers=0")


@pytest.mark.parametrize(
    ("config", "launcher", "overrides"),
    [
        ("zero1", "DEEPSPEED ZeRO-1", ["train.workers=2"]),
        ("zero2", "DEEPSPEED ZeRO-2", ["train.workers=0"]),
        ("zero2-offload", "DEEPSPEED ZeRO-2", ["train.workers=0"]),
        ("zero3", "DEEPSPEED ZeRO-3", ["train.workers=3"]),
    ],
)
def test_every_launch_file_trains_as_plain_data_parallelism(
    launch: Launch, packed: Path, ddp: Path, tmp_path: Path, config: str, launcher: str, overrides: list[str]
) -> None:
    run = train(launch, packed, tmp_path / "run", config, 2, *overrides)
    said = json.loads((run / LAST / "training.json").read_text())
    assert (said["launcher"], said["world_size"]) == (launcher, 2)
    assert_same(run, ddp, 1e-6, 1e-5)


def test_a_sharded_classifier_is_the_same_under_zero3_micro_batches_and_all(
    launch: Launch, packed: Path, tmp_path: Path
) -> None:
    few = ["train.steps=3", "train.shard_classifier=true", "train.micro_batch=1", "train.workers=0"]
    runs = [train(launch, packed, tmp_path / config, config, 2, *few) for config in ("ddp", "zero3")]
    ours, expected = ([line["loss"] for line in read(run)] for run in runs)
    assert ours == pytest.approx(expected, rel=1e-5)


def test_one_process_is_the_same_under_either_of_its_files(launch: Launch, packed: Path, tmp_path: Path) -> None:
    runs = [train(launch, packed, tmp_path / config, config, 1, "train.steps=3") for config in ("cpu", "gpu")]
    ours, expected = ([line["loss"] for line in read(run)] for run in runs)
    assert ours == expected
