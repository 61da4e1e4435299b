"""What goes wrong while training ends the job within a set time, says why, and loses nothing."""

import json
import math
import re
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from pipeline import faults
from pipeline.checkpoint import latest
from pipeline.cli import app
from pipeline.recipe import load
from tests.system.conftest import Launch

SMALL = ["batch.subjects=4", "batch.sequences=2", "batch.frames=9", "train.log_every=1", "train.trackers=[]"]

pytestmark = pytest.mark.slow


def faulty(
    launch: Launch, packed: Path, run: Path, fault: str, *overrides: str, config: str = "zero2"
) -> subprocess.CompletedProcess[str]:
    return launch(
        config,
        "tests.system.faulty",
        *("recipes/demo.yaml", f"data={packed}", f"run={run}", "train.steps=6", "train.save_every=2", *SMALL),
        *overrides,
        env={"FAULT": fault, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5", "ACCELERATE_USE_CPU": str(config == "ddp").lower()},
    )


@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3"])
def test_a_gradient_that_is_not_finite_stops_before_the_step(
    launch: Launch, packed: Path, tmp_path: Path, config: str
) -> None:
    run = tmp_path / "run"
    result = faulty(launch, packed, run, "gradient:1:3", config=config)
    assert result.returncode != 0
    assert re.search(r"gradients of \S.* are not finite at step 3 on rank 1: loss \d", result.stderr), result.stderr
    newest = latest(run)
    assert newest is not None and newest.name == "step-00000002"
    folder = run / "faults" / "step-00000003"
    first, second = (json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first["gradients"] == [] and "arme.0.0.weight" in second["gradients"]
    assert len(first["sequences"]) == len(second["sequences"]) == 4
    assert all(key in result.stderr for key in second["sequences"])
    # Without the injected fault the recorded step is the one that training took, and finite.
    recipe = load(run / "recipe.yaml")
    again = faults.repeat(folder, recipe.loss)
    assert again.step == 3 and again.gradients == []
    # What was recorded is this process's share of the cross-entropy; the mean over both is the batch's.
    recorded = [float(one["losses"]["cross_entropy"]) for one in (first, second)]
    assert again.losses["cross_entropy"] == pytest.approx(sum(recorded) / 2, rel=2e-2)  # recorded in bf16
    assert all(tensor.isfinite().all() for tensor in load_file(folder / "model.safetensors").values())


def test_a_loss_that_is_not_finite_can_be_seen_again(launch: Launch, packed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = faulty(launch, packed, run, "none:0:0", "optimizer.lr=1e30")
    assert result.returncode != 0
    assert "the loss is not finite at step 1 on rank" in result.stderr
    shown = CliRunner().invoke(app, ["fault", str(run / "faults" / "step-00000001")])
    assert shown.exit_code == 0, shown.output
    losses = re.search(r"step 1 again, .*: loss (\S+),", shown.output)
    assert losses is not None and not math.isfinite(float(losses[1]))


@pytest.mark.parametrize(("kind", "seconds"), [("die", 60), ("hang", 90)])
def test_a_process_that_dies_or_hangs_ends_the_job_in_time(
    launch: Launch, packed: Path, tmp_path: Path, kind: str, seconds: float
) -> None:
    run = tmp_path / "run"
    began = time.monotonic()
    result = faulty(launch, packed, run, f"{kind}:1:3", "train.stall_seconds=10")
    ended = time.monotonic()
    assert result.returncode != 0
    last_sign = (run / "metrics.jsonl").stat().st_mtime - time.time() + ended
    assert ended - last_sign < seconds, f"{ended - last_sign:.0f} s of {ended - began:.0f}"
    newest = latest(run)
    assert newest is not None and newest.name == "step-00000002"
    if kind == "hang":
        assert "rank 0 of 2 stalled: step 3 took longer than 10 s (train.stall_seconds)" in result.stderr
        assert "Where its threads are" in result.stderr and "train.py" in result.stderr
    else:
        assert "Signal 9 (SIGKILL)" in result.stderr


def test_out_of_memory_names_the_batch_and_micro_batch(launch: Launch, packed: Path, tmp_path: Path) -> None:
    result = faulty(launch, packed, tmp_path / "run", "memory:1:1")
    assert result.returncode != 0
    assert (
        "out of memory on rank 1, with 4 sequences of 9 frames a process, 4 of them convolved at once" in result.stderr
    )
    assert "set train.micro_batch=2" in result.stderr


def test_an_error_of_a_loader_arrives_whole(launch: Launch, packed: Path, tmp_path: Path) -> None:
    result = faulty(launch, packed, tmp_path / "run", "loader:1:3", "train.workers=1")
    assert result.returncode != 0
    assert "the loader met something nobody thought of" in result.stderr
    assert "in __getitem__" in result.stderr and "DataLoader worker process 0" in result.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_leaves_the_checkpoint_before(launch: Launch, packed: Path, tmp_path: Path, rank: int) -> None:
    run = tmp_path / "run"
    result = faulty(launch, packed, run, f"disk:{rank}:2")
    assert result.returncode != 0
    assert "the checkpoint of step 4 could not be written" in result.stderr
    newest = latest(run)
    assert newest is not None and newest.name == "step-00000002"
    on = launch(
        "zero2",
        "pipeline.train",
        "recipes/demo.yaml",
        f"data={packed}",
        f"run={run}",
        "train.steps=4",
        "train.save_every=2",
        *SMALL,
    )
    assert on.returncode == 0 and "at step 2 of 4" in on.stdout, on.stdout + on.stderr
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_taken(
    launch: Launch, packed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["recipes/demo.yaml", f"data={packed}", f"run={run}", "train.save_every=2", "train.keep_last=2", *SMALL]
    assert launch("zero2", "pipeline.train", *command, "train.steps=4").returncode == 0
    victim = next((run / "checkpoints/step-00000004/state/pytorch_model").glob("zero_pp_rank_1*"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    result = launch("zero2", "pipeline.train", *command, "train.steps=6")
    assert result.returncode == 0, result.stderr
    assert f"damaged checkpoint: {victim}" in result.stdout
    assert "step-00000002 at step 2 of 6" in result.stdout
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "damaged-step-00000004",
        "step-00000004",
        "step-00000006",
    ]
