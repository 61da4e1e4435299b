"""`hstl submit` on a real SLURM: nodes are preempted, lost or never come, and what is trained is the same."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.metrics_log import read
from tests.system import slurm_cluster
from tests.system.conftest import ROOT, launch_environment
from tests.system.slurm_cluster import Cluster

STEPS = 30
SMALL = ["batch.subjects=2", "batch.sequences=2", "batch.frames=4", "train.log_every=1", "train.trackers=[]"]
RECIPE = ["recipes/demo.yaml", f"train.steps={STEPS}", "train.save_every=10", "train.precision=fp32", *SMALL]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if (reason := slurm_cluster.missing()) is not None:
        pytest.skip(reason)
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm") / "cluster") as started:
        yield started


def hstl_submit(cluster: Cluster, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = launch_environment(PATH=cluster.environment["PATH"])
    command = [sys.executable, "-m", "pipeline.cli", "submit", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def submit(cluster: Cluster, packed: Path, run: Path, *arguments: object) -> str:
    """Submits to CPU nodes; returns the job's id."""
    done = hstl_submit(cluster, *RECIPE, f"data={packed}", "--run", run, "--gpus-per-node", 0, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"job (\d+)", done.stdout)[0]


def log_of(run: Path) -> str:
    return "".join(path.read_text() for path in sorted(run.glob("slurm/job-*.log")))


def until_step(run: Path, step: int, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not any(line["step"] >= step for line in read(run)):
        assert time.monotonic() < deadline, f"no step {step} after {seconds:.0f} s:\n{log_of(run)}"
        time.sleep(0.05)


def same_result(ours: Path, expected: Path) -> bool:
    """Weights and losses, bit for bit."""
    weights, reference = (load_file(r / f"checkpoints/step-{STEPS:08d}/model.safetensors") for r in (ours, expected))
    assert [line["loss"] for line in read(ours)] == [line["loss"] for line in read(expected)]
    return weights.keys() == reference.keys() and all(torch.equal(weights[n], reference[n]) for n in reference)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed runs") / "run"
    job = submit(cluster, packed, run, "--nodes", 2)
    assert cluster.wait(job)["JobState"] == "COMPLETED", log_of(run)
    return run


def test_two_nodes_train_and_a_complete_run_is_left_alone(cluster: Cluster, packed: Path, undisturbed: Path) -> None:
    assert [line["step"] for line in read(undisturbed)] == list(range(1, STEPS + 1))
    log = log_of(undisturbed)
    assert "0: [rank 0]: " in log and "1: [rank 1]: " in log and f"complete: {undisturbed}" in log
    (output,) = undisturbed.glob("slurm/ranks/*.0/node0/*/attempt_0/0/stderr.log")
    assert f"step {STEPS}/{STEPS}" in output.read_text()

    again = cluster.run("sbatch", "--parsable", undisturbed / "slurm" / "job.sbatch")
    assert cluster.wait(again, seconds=20)["JobState"] == "COMPLETED"
    assert "nothing to do" in (undisturbed / "slurm" / f"job-{again}.log").read_text()
    refused = hstl_submit(cluster, *RECIPE, f"data={packed}", "--run", undisturbed, "--gpus-per-node", 0)
    assert refused.returncode == 2 and "is complete" in refused.stderr


def test_signalled_then_preempted_it_goes_on_to_the_same_result(
    cluster: Cluster, packed: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(cluster, packed, run, "--nodes", 2)
    until_step(run, 4)
    cluster.run("scancel", "--signal=USR2", job)  # as SLURM does before the time limit
    cluster.wait(job, "PENDING", seconds=30)
    saved = max(line["step"] for line in read(run))
    assert saved < STEPS
    until_step(run, saved + 4)
    above = cluster.run("sbatch", "--parsable", "--partition=high", "--nodes=3", "--exclusive",
                        "--output=/dev/null", "--wrap=sleep 1")  # fmt: skip
    cluster.wait(above, seconds=60)
    found = cluster.wait(job)
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "2"), log_of(run)
    log = log_of(run)
    assert log.count("[rank 0]: interrupted: saved at step") == 2 and log.count("back to the queue") == 2
    assert f"/step-{saved:08d} at step {saved} of {STEPS}" in log
    assert same_result(run, undisturbed)


def test_a_lost_node_is_replaced_and_the_result_is_the_same(
    cluster: Cluster, packed: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(cluster, packed, run, "--nodes", 2)
    until_step(run, 13)
    lost = cluster.run("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).split()[1]
    cluster.power_off(lost)
    try:
        found = cluster.wait(job, seconds=240)
    finally:
        cluster.power_on(lost)
    assert found["JobState"] == "COMPLETED" and int(found["Restarts"]) >= 1, log_of(run)
    assert lost not in cluster.run("scontrol", "show", "hostnames", found["NodeList"]).split()
    assert "at step 10 of" in log_of(run)
    assert same_result(run, undisturbed)


def test_a_node_that_never_comes_ends_the_job_with_the_reason(cluster: Cluster, packed: Path, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text('join_seconds: 12\nsetup: ["[ $SLURM_NODEID = 0 ] || sleep 600"]\n')
    run = tmp_path / "run"
    job = submit(cluster, packed, run, "--nodes", 2, "--site", site)
    found = cluster.wait(job, seconds=90)
    assert (found["JobState"], found["Restarts"]) == ("FAILED", "0"), log_of(run)
    assert re.search(r"[Tt]imed out after \d+ seconds waiting for clients. 1/2 clients joined", log_of(run))
    assert "FAILED with return code" in log_of(run)


def test_a_killed_process_ends_the_job_failed_and_not_requeued(cluster: Cluster, packed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(cluster, packed, run, "--nodes", 2)
    until_step(run, 2)
    os.kill(process_of(run, rank=1), 9)
    found = cluster.wait(job, seconds=120)
    assert (found["JobState"], found["Restarts"]) == ("FAILED", "0"), log_of(run)
    assert found["ExitCode"] != "0:0"
    assert "Signal 9" in log_of(run) and "FAILED with return code" in log_of(run)


def process_of(run: Path, rank: int) -> int:
    """The training process of a rank: nodes' processes are seen from outside their namespaces."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        started = b"pipeline.train" in command and str(run / "slurm/recipe.yaml").encode() in command
        if started and f"RANK={rank}".encode() in variables:
            return int(process.name)
    raise LookupError(f"no process of rank {rank} of {run}")


def test_interrupted_before_training_began_it_is_requeued_and_a_cancelled_job_is_not(
    cluster: Cluster, packed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(cluster, packed, run, "--nodes", 1)
    cluster.wait(job, "RUNNING", seconds=30)
    refused = hstl_submit(cluster, *RECIPE, f"data={packed}", "--run", run, "--gpus-per-node", 0)
    assert refused.returncode == 2 and f"used by job {job}, which is RUNNING" in refused.stderr
    assert read(run) == []
    cluster.run("scancel", "--signal=USR2", job)
    cluster.wait(job, "PENDING", seconds=30)
    assert "back to the queue" in log_of(run)
    cluster.wait(job, "RUNNING", seconds=30)
    time.sleep(2)
    cluster.run("scancel", job)
    found = cluster.wait(job, seconds=30)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "1")
    time.sleep(3)
    assert cluster.job(job)["JobState"] == "CANCELLED"


def test_two_recipes_are_an_array_of_two_runs(cluster: Cluster, packed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other one.yaml"
    other.write_text((ROOT / "recipes/demo.yaml").read_text())
    folder = tmp_path / "runs"
    job = submit(cluster, packed, folder, other, "train.steps=4", "--launch", "accelerate_configs/ddp.yaml",
                 "--processes-per-node", 2, "--cpus-per-node", 2)  # fmt: skip
    for index, name in enumerate(("demo", "other one")):
        task = f"{job}_{index}"
        assert cluster.wait(task)["JobState"] == "COMPLETED", log_of(folder)
        assert (folder / name / "checkpoints/step-00000004/COMPLETE").exists()
        assert (folder / name / "slurm" / "job").read_text() == task
        assert f"complete: {folder / name}" in (folder / "slurm" / f"job-{task}.log").read_text()
