"""Two machines, started by hand with the launch files for several: here both are this one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.metrics_log import read
from tests.processes import free_port
from tests.system.conftest import ROOT, Launch, launch_environment

STEPS = 3
RECIPE = ["recipes/demo.yaml", f"train.steps={STEPS}", "train.save_every=10", "train.log_every=1", "train.trackers=[]"]
RECIPE += ["batch.subjects=2", "batch.sequences=2", "batch.frames=6", "train.precision=fp32"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("config", "launcher"), [("zero2", "DEEPSPEED ZeRO-2"), ("ddp", "MULTI_CPU")])
def test_two_machines_train_as_two_processes_of_one(
    launch: Launch, packed: Path, tmp_path: Path, config: str, launcher: str
) -> None:
    variables = {"ACCELERATE_USE_CPU": "true"} if config == "ddp" else {}
    alone, apart = tmp_path / "alone", tmp_path / "apart"
    done = launch(config, "pipeline.train", *RECIPE, f"data={packed}", f"run={alone}", env=variables)
    assert done.returncode == 0, done.stdout + done.stderr

    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", f"accelerate_configs/nodes-{config}.yaml", "--main_process_port", str(free_port())]
    training = ["-m", "pipeline.train", *RECIPE, f"data={packed}", f"run={apart}"]
    machines = [
        subprocess.Popen(
            [*command, "--machine_rank", str(rank), *training], cwd=ROOT, env=launch_environment(**variables),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [machine.communicate(timeout=280)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(said)
    described = json.loads((apart / f"checkpoints/step-{STEPS:08d}/training.json").read_text())
    assert (described["world_size"], described["launcher"]) == (2, launcher)
    assert [line["loss"] for line in read(apart)] == [line["loss"] for line in read(alone)]
    ours, expected = (load_file(run / f"checkpoints/step-{STEPS:08d}/model.safetensors") for run in (apart, alone))
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
