"""Killed with -9 at a moment nobody chose, started again: the end is the one of an undisturbed run, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.metrics_log import read
from tests.processes import free_port
from tests.system.conftest import ROOT, Launch, launch_environment

STEPS = 16
SMALL = ["batch.subjects=4", "batch.sequences=2", "batch.frames=9", "train.log_every=1", "train.trackers=[]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "workers", "shard_classifier"),
    [("ddp", 2, "false"), ("zero1", 0, "true"), ("zero2", 2, "false"), ("zero3", 1, "false")],
)
def test_killed_at_a_random_moment_training_ends_the_same(
    launch: Launch, packed: Path, tmp_path: Path, config: str, workers: int, shard_classifier: str
) -> None:
    environment = {"ACCELERATE_USE_CPU": "true"} if config == "ddp" else {}

    def arguments(run: Path) -> list[str]:
        command = ["recipes/demo.yaml", f"data={packed}", f"run={run}", f"train.steps={STEPS}", *SMALL]
        command += [f"train.shard_classifier={shard_classifier}"]
        return [*command, f"train.workers={workers}", "train.save_every=4", "train.interim_every=1"]

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = launch(config, "pipeline.train", *arguments(whole), env=environment)
    assert done.returncode == 0, done.stderr

    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    after, delay = chance.randrange(2, STEPS - 4), chance.uniform(0, 0.5)
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", f"accelerate_configs/{config}.yaml", "--main_process_port", str(free_port())]
    process = subprocess.Popen(
        [*command, "-m", "pipeline.train", *arguments(cut)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=launch_environment(**environment),
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(read(cut)) < after and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(delay)
    _kill_all(process.pid)
    process.wait(timeout=10)
    steps_done = len(read(cut))
    assert not (cut / f"checkpoints/step-{STEPS:08d}/COMPLETE").exists(), f"seed {seed}: too late to be killed"

    again = launch(config, "pipeline.train", *arguments(cut), env=environment)
    assert again.returncode == 0, f"seed {seed}: {again.stderr}"
    assert "resumed" in again.stdout, f"seed {seed}, killed after {steps_done} steps"
    ours, expected = (load_file(run / f"checkpoints/step-{STEPS:08d}/model.safetensors") for run in (cut, whole))
    assert all(torch.equal(ours[name], expected[name]) for name in expected), f"seed {seed}"
    assert [line["loss"] for line in read(cut)] == [line["loss"] for line in read(whole)], f"seed {seed}"


def _kill_all(leader: int) -> None:
    """The whole session at once, as a power cut would; torch's launcher puts its processes into groups of their own."""
    session = os.getsid(leader)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == session:
                    os.kill(int(entry.name), signal.SIGKILL)
            except ProcessLookupError:
                continue
