"""A run that is asked to stop saves at the end of its step, and goes on to the result it would have had."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.checkpoint import latest
from pipeline.metrics_log import read
from tests.processes import free_port
from tests.system.conftest import ROOT, Launch

STEPS = 12
SMALL = ["batch.subjects=4", "batch.sequences=2", "batch.frames=9", "train.save_every=100", "train.log_every=1"]


def arguments(packed: Path, run: Path) -> list[str]:
    return ["recipes/demo.yaml", f"data={packed}", f"run={run}", f"train.steps={STEPS}", "train.trackers=[]", *SMALL]


@pytest.mark.slow
def test_sigterm_saves_and_resumes_bit_for_bit(launch: Launch, packed: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert launch("zero2", "pipeline.train", *arguments(packed, whole)).returncode == 0

    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", "accelerate_configs/zero2.yaml", "--main_process_port", str(free_port())]
    command += ["-m", "pipeline.train", *arguments(packed, cut)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        deadline = time.monotonic() + 120
        while len(read(cut)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    saved = latest(cut)
    assert saved is not None, (tmp_path / "log").read_text()
    assert 2 <= int(saved.name.removeprefix("step-")) < STEPS
    assert "interrupted: saved at step" in (tmp_path / "log").read_text()

    assert launch("zero2", "pipeline.train", *arguments(packed, cut)).returncode == 0
    ours, expected = (load_file(run / f"checkpoints/step-{STEPS:08d}/model.safetensors") for run in (cut, whole))
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    launch: Launch, packed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = launch("zero2", "pipeline.train", *arguments(packed, run), "optimizer.lr=1e30", "train.save_every=1")
    assert result.returncode != 0
    assert "the loss is not finite at step" in result.stderr and "-nm-0" in result.stderr
    saved = latest(run)
    assert saved is not None
    step = int(saved.name.removeprefix("step-"))
    assert f"not finite at step {step} " in result.stderr  # nothing was saved after it
