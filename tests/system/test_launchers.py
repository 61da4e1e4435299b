"""The same recipe trains the same under every launch file: losses, and where the learning rate falls."""

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
# Adam turns a gradient of rounding noise into a whole step: by 20 steps the same training would be far apart.
RECIPE += ["optimizer={kind: sgd, lr: 0.02, momentum: 0.9, weight_decay: 5e-4}"]


def train(launch: Launch, packed: Path, run: Path, config: str, processes: int | None, *overrides: str) -> Path:
    # DeepSpeed finds out by itself; Accelerate, asked for CPUs by name, would leave DeepSpeed out.
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if config == "ddp" else {}
    arguments = ["recipes/demo.yaml", f"data={packed}", f"run={run}", *RECIPE, *overrides]
    result = launch(config, "pipeline.train", *arguments, env=on_cpu, processes=processes)
    assert result.returncode == 0, result.stdout + result.stderr
    return run


@pytest.fixture(scope="module")
def alone(packed: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(launch, packed, tmp_path_factory.mktemp("alone") / "run", "cpu", None, "train.workers=0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "launcher", "processes", "overrides"),
    [
        ("gpu", "NO", 1, ["train.workers=2"]),
        ("ddp", "MULTI_CPU", 2, ["train.workers=0"]),
        ("ddp", "MULTI_CPU", 4, ["train.workers=1"]),
        ("zero1", "DEEPSPEED ZeRO-1", 2, ["train.workers=2"]),
        ("zero2", "DEEPSPEED ZeRO-2", 2, ["train.micro_batch=1"]),
        ("zero2", "DEEPSPEED ZeRO-2", 4, ["train.workers=0"]),
        ("zero2-offload", "DEEPSPEED ZeRO-2", 2, []),
        ("zero3", "DEEPSPEED ZeRO-3", 2, ["train.workers=3"]),
        ("ddp", "MULTI_CPU", 2, ["train.shard_classifier=true"]),
        ("zero2", "DEEPSPEED ZeRO-2", 4, ["train.shard_classifier=true"]),
        ("zero3", "DEEPSPEED ZeRO-3", 2, ["train.micro_batch=1", "train.shard_classifier=true"]),
    ],
)
def test_every_launch_file_trains_the_same(
    launch: Launch,
    packed: Path,
    alone: Path,
    tmp_path: Path,
    config: str,
    launcher: str,
    processes: int,
    overrides: list[str],
) -> None:
    run = train(launch, packed, tmp_path / "run", config, processes, *overrides)
    last = f"checkpoints/step-{STEPS:08d}"
    said = json.loads((run / last / "training.json").read_text())
    assert (said["launcher"], said["world_size"]) == (launcher, processes)
    assert len(read(run)) == len(read(alone)) == STEPS
    for ours, expected in zip(read(run), read(alone), strict=True):
        assert ours["lr"] == expected["lr"]
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    weights, reference = (load_file(r / last / "model.safetensors") for r in (run, alone))
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in reference.items()}
    for name, expected in reference.items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-3, atol=1e-4)
