"""A run that is asked to stop saves at the end of its step, and goes on to the result it would have had."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.checkpoint import latest
from pipeline.metrics_log import read
from tests.processes import free_port
from tests.system.conftest import ROOT, Launch, launch_environment

STEPS = 12
SMALL = ["batch.subjects=4", "batch.sequences=2", "batch.frames=9", "train.save_every=100", "train.log_every=1"]


def arguments(packed: Path, run: Path) -> list[str]:
    return ["recipes/demo.yaml", f"data={packed}", f"run={run}", f"train.steps={STEPS}", "train.trackers=[]", *SMALL]


def ranks(launcher: int) -> list[int]:
    """Processes of the training that a launcher started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    return [pid for pid in pids if b"pipeline.train" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "delay"), [(signal.SIGTERM, 0.0), (signal.SIGTERM, 0.3), (signal.SIGUSR2, 0.1)])
def test_a_signal_saves_and_the_run_resumes_bit_for_bit(
    launch: Launch, packed: Path, tmp_path: Path, number: signal.Signals, delay: float
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert launch("zero2", "pipeline.train", *arguments(packed, whole)).returncode == 0

    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", "accelerate_configs/zero2.yaml", "--main_process_port", str(free_port())]
    command += ["-m", "pipeline.train", *arguments(packed, cut)]
    # The launcher forwards SIGUSR2 only when told to; it would die of it otherwise, and orphan its processes.
    environment = launch_environment(PET_SIGNALS_TO_HANDLE="SIGTERM,SIGINT,SIGUSR2")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 120
        while len(read(cut)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(delay)
        process.send_signal(number)
        while process.poll() is None:  # and again and again, to the processes themselves, while they save and leave
            time.sleep(0.1)
            with suppress(OSError):  # one that has left meanwhile
                for rank in ranks(process.pid):
                    os.kill(rank, number)
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
    saved = latest(cut)
    assert saved is not None, (tmp_path / "log").read_text()
    assert 2 <= int(saved.name.removeprefix("step-")) < STEPS
    assert "interrupted: saved at step" in (tmp_path / "log").read_text()
    assert json.loads((cut / "state.json").read_text())["state"] == "interrupted"

    assert launch("zero2", "pipeline.train", *arguments(packed, cut)).returncode == 0
    ours, expected = (load_file(run / f"checkpoints/step-{STEPS:08d}/model.safetensors") for run in (cut, whole))
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_what_is_not_finite_is_neither_stepped_on_nor_saved(launch: Launch, packed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    good = launch("zero2", "pipeline.train", *arguments(packed, run), "train.steps=2")
    assert good.returncode == 0, good.stderr
    bad = ["optimizer.lr=1e30", "train.save_every=1", "train.allow_changes=true"]
    result = launch("zero2", "pipeline.train", *arguments(packed, run), *bad)
    assert result.returncode != 0
    assert "not finite" in result.stderr
    saved = latest(run)
    assert saved is not None
    assert all(tensor.isfinite().all() for tensor in load_file(saved / "model.safetensors").values())
    assert [path for path in (run / "checkpoints").iterdir() if not (path / "COMPLETE").exists()] == []
