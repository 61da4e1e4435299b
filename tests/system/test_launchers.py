"""The same recipe trains the same under every launch file: losses, and where the learning rate falls."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.metrics_log import read
from tests.system.conftest import Launch

STEPS = 4
RECIPE = [f"train.steps={STEPS}", "train.save_every=4", "train.log_every=1", "train.precision=fp32"]
RECIPE += ["batch.subjects=4", "batch.sequences=2", "batch.frames=9", "schedule.milestones=[2]", "train.trackers=[]"]


def train(launch: Launch, packed: Path, run: Path, config: str, *overrides: str) -> Path:
    # DeepSpeed finds out by itself; Accelerate, asked for CPUs by name, would leave DeepSpeed out.
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if config == "ddp" else {}
    result = launch(
        config, "pipeline.train", "recipes/demo.yaml", f"data={packed}", f"run={run}", *RECIPE, *overrides, env=on_cpu
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return run


@pytest.fixture(scope="module")
def alone(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alone") / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "launcher", "overrides"),
    [
        ("ddp", "MULTI_CPU", ["train.workers=0"]),
        ("zero1", "DEEPSPEED ZeRO-1", ["train.workers=2"]),
        ("zero2", "DEEPSPEED ZeRO-2", ["train.micro_batch=1"]),
        ("zero3", "DEEPSPEED ZeRO-3", []),
    ],
)
def test_two_processes_train_as_one(
    launch: Launch, packed: Path, alone: Path, tmp_path: Path, config: str, launcher: str, overrides: list[str]
) -> None:
    if not alone.exists():
        train(launch, packed, alone, "cpu")
    run = train(launch, packed, tmp_path / "run", config, *overrides)
    assert json.loads((run / "checkpoints/step-00000004/training.json").read_text())["launcher"] == launcher
    assert len(read(run)) == len(read(alone)) == STEPS
    for ours, expected in zip(read(run), read(alone), strict=True):
        assert ours["lr"] == expected["lr"]
        # Rounding grows as training goes on; the first steps agree to it.
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-6 * 10 ** ours["step"])
    weights, reference = (load_file(r / "checkpoints/step-00000004/model.safetensors") for r in (run, alone))
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in reference.items()}
    # Adam turns a gradient of rounding noise into a whole step, so a few weights may be a step apart; most may not.
    apart = sum((weights[n] - reference[n]).abs().gt(1e-4).sum().item() for n in reference)
    assert apart < 0.01 * sum(tensor.numel() for tensor in reference.values())
