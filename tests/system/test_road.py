"""The whole road by its real commands: ZeRO-2 over two processes, bf16, resume, evaluation, report."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.checkpoint import read_weights
from pipeline.metrics_log import read
from tests.system.conftest import Launch

SMALL = ["batch.subjects=4", "batch.sequences=2", "batch.frames=9", "train.save_every=2", "train.log_every=1"]


@pytest.fixture(scope="module")
def run(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "uninterrupted"


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def train(launch: Launch, packed: Path, run: Path, steps: int, *overrides: str, config: str = "zero2") -> str:
    arguments = ["recipes/demo.yaml", f"data={packed}", f"run={run}", f"train.steps={steps}", *SMALL, *overrides]
    result = launch(config, "pipeline.train", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_train_by_zero2_in_two_processes(launch: Launch, packed: Path, run: Path) -> None:
    output = train(launch, packed, run, 4)
    assert "step 4/4" in output and f"trained: {run}" in output
    assert [line["step"] for line in read(run)] == [1, 2, 3, 4]
    description = json.loads((run / "checkpoints" / "step-00000004" / "training.json").read_text())
    assert (description["world_size"], description["launcher"]) == (2, "DEEPSPEED ZeRO-2")
    assert {tensor.dtype for name, tensor in weights_of(run, 4).items() if "tracked" not in name} == {torch.float32}
    assert list((run / "tensorboard").rglob("events.out.tfevents.*"))


def test_interrupted_equals_uninterrupted_bit_for_bit(launch: Launch, packed: Path, run: Path, tmp_path: Path) -> None:
    train(launch, packed, tmp_path / "cut", 2)
    output = train(launch, packed, tmp_path / "cut", 4)
    assert "at step 2 of 4" in output
    whole, resumed = weights_of(run, 4), weights_of(tmp_path / "cut", 4)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [line["loss"] for line in read(tmp_path / "cut")] == [line["loss"] for line in read(run)]


def test_a_changed_recipe_is_not_resumed(launch: Launch, packed: Path, run: Path) -> None:
    result = launch(
        "zero2", "pipeline.train", "recipes/demo.yaml", f"data={packed}", f"run={run}", *SMALL, "optimizer.lr=0.5"
    )
    assert result.returncode != 0
    assert "optimizer.lr: it was 0.001, now it is 0.5" in result.stderr
    assert "train.allow_changes=true" in result.stderr
    assert "lr: 0.5" not in (run / "recipe.yaml").read_text()  # the refused run is as it was


def test_evaluate_and_report(launch: Launch, packed: Path, run: Path) -> None:
    result = launch("zero2", "pipeline.evaluate", "recipes/demo.yaml", "--checkpoint", run, f"data={packed}")
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads((run / "evaluation" / "results.json").read_text())
    assert [method["kind"] for method in results["methods"]] == ["trained", "untrained", "gei"]
    for method in results["methods"]:
        assert method["metrics"]["counts"]["probe"] == {"NM": 12, "BG": 12, "CL": 12}
        assert 0 <= method["metrics"]["headline"]["mean"] <= 100
    assert results["checkpoint"]["step"] == read_weights(run).step == 4
    page = (run / "report.html").read_text()
    assert results["data"]["fingerprint"] in page
    assert "HSTL, untrained" in result.stdout and str(run / "report.html") in result.stdout
