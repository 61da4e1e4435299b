"""A run goes on with another number of processes: the same batches, the same losses to rounding."""

import shutil
from pathlib import Path

import pytest

from pipeline.metrics_log import read
from tests.system.conftest import Launch

SMALL = ["batch.subjects=4", "batch.sequences=2", "batch.frames=9", "train.log_every=1", "train.trackers=[]"]
SMALL += ["train.precision=fp32", "train.save_every=3", "train.workers=0", "schedule.milestones=[5]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "worlds", "shard_classifier"),
    [
        ("ddp", (1, 4), "false"),
        ("zero1", (4,), "false"),
        ("zero2", (1, 4), "false"),
        ("zero2", (1, 4), "true"),
        ("zero3", (1, 4), "false"),
        ("zero3", (1,), "true"),
    ],
)
def test_two_processes_become_one_or_four(
    launch: Launch, packed: Path, tmp_path: Path, config: str, worlds: tuple[int, ...], shard_classifier: str
) -> None:
    def train(run: Path, steps: int, processes: int) -> str:
        done = launch(
            config,
            *("pipeline.train", "recipes/demo.yaml", f"data={packed}", f"run={run}", f"train.steps={steps}", *SMALL),
            f"train.shard_classifier={shard_classifier}",
            env={"ACCELERATE_USE_CPU": "true"} if config == "ddp" else {},
            processes=processes,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    two = tmp_path / "two"
    train(two, 3, 2)
    others = {world: shutil.copytree(two, tmp_path / f"{world}") for world in worlds}
    train(two, 7, 2)
    for world, run in others.items():
        said = train(run, 7, world)
        assert ("resharding" in said) == (config != "ddp") and "at step 3 of 7" in said
        for ours, expected in zip(read(run), read(two), strict=True):
            assert ours["lr"] == expected["lr"]
            assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step-0000000{n}" for n in (3, 6, 7)]
