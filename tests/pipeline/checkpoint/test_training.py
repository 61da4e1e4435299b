"""Saving and taking up, in one process; tests/system has the launches of several."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import latest, manifest
from pipeline.checkpoint.training import find, save, take_up
from pipeline.model import HSTL
from pipeline.recipe import Optimizer, Recipe, load
from pipeline.trained import Trained
from pipeline.world import start
from tests.pipeline.test_train import DEMO

SGD = Optimizer(kind="sgd", lr=0.1, momentum=0.9)


def make(seed: int = 0, *, shard_classifier: bool = False) -> Trained:
    torch.manual_seed(seed)
    return Trained(start(), HSTL("demo", 3), SGD, shard_classifier=shard_classifier)


def step(trained: Trained) -> None:
    output = trained.model(torch.ones(2, 3, 64, 44))
    loss = output.embeddings.square().sum()
    if trained.classifier is not None:
        loss = loss + trained.classifier(output.embeddings, torch.tensor([0, 2]), 1.0, 0.0)
    trained.backward(loss)
    trained.update()


def recipe(run: Path, *overrides: str) -> Recipe:
    return load(DEMO, [f"run={run}", "train.save_every=1", "train.keep_last=1", *overrides])


@pytest.mark.parametrize("shard_classifier", [False, True])
def test_what_is_taken_up_trains_on_as_what_was_saved(tmp_path: Path, shard_classifier: bool) -> None:
    asked = recipe(tmp_path, f"train.shard_classifier={shard_classifier}")
    first = make(shard_classifier=shard_classifier)
    step(first)
    save(first.accelerator, first, tmp_path, 1, asked, "data")
    second = make(seed=1, shard_classifier=shard_classifier)
    found = find(second.accelerator, tmp_path, asked, "data")
    assert found is not None and (found.step, found.changes, found.reshard) == (1, [], False)
    take_up(second.accelerator, tmp_path, found, second)
    step(first)
    step(second)
    ours, expected = second.full_state(tmp_path), first.full_state(tmp_path)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert ("classifier.weight" in ours) and not (found.folder / "state" / "model.safetensors").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    trained = make()
    save(trained.accelerator, trained, tmp_path, 1, recipe(tmp_path), "data")
    with torch.no_grad():
        trained.network().head.weight[0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite after step 2: not saved; the newest checkpoint is good"):
        save(trained.accelerator, trained, tmp_path, 2, recipe(tmp_path), "data")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_other_data_recipe_or_classifier_are_refused_by_name(tmp_path: Path) -> None:
    trained = make()
    save(trained.accelerator, trained, tmp_path, 1, recipe(tmp_path), "data")
    with pytest.raises(ValueError, match=r"data set: it was data, now it is other\n.*train\.allow_changes=true"):
        find(trained.accelerator, tmp_path, recipe(tmp_path), "other")
    with pytest.raises(ValueError, match=r"loss\.margin: it was 0\.2, now it is 0\.3"):
        find(trained.accelerator, tmp_path, recipe(tmp_path, "loss.margin=0.3"), "data")
    allowed = find(trained.accelerator, tmp_path, recipe(tmp_path, "seed=7", "train.allow_changes=true"), "data")
    assert allowed is not None and allowed.changes == ["seed: it was 0, now it is 7"]
    with pytest.raises(ValueError, match=r"shard_classifier=false, now it is true"):
        find(trained.accelerator, tmp_path, recipe(tmp_path, "train.shard_classifier=true"), "data")


def test_a_checkpoint_of_an_older_version_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = make()
    folder = save(trained.accelerator, trained, tmp_path, 1, recipe(tmp_path), "data")
    said = json.loads((folder / "training.json").read_text())
    for key in ("shard_classifier", "stall_seconds"):
        del said["recipe"]["train"][key]
    (folder / "training.json").write_text(json.dumps(said))
    (folder / manifest.FILE).unlink()
    found = find(trained.accelerator, tmp_path, recipe(tmp_path), "data")
    assert found is not None and found.changes == []
    assert "taken without having been checked" in capsys.readouterr().out


def test_training_never_begins_anew_because_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    trained = make()
    folder = save(trained.accelerator, trained, tmp_path, 1, recipe(tmp_path), "data")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no whole checkpoint left: step-00000001 are damaged"):
        find(trained.accelerator, tmp_path, recipe(tmp_path), "data")
    assert (tmp_path / "checkpoints" / "damaged-step-00000001").is_dir()


def test_a_run_starts_from_another_ones_checkpoint(tmp_path: Path) -> None:
    trained = make()
    old, new = tmp_path / "old", tmp_path / "new"
    folder = save(trained.accelerator, trained, old, 4, recipe(old), "data")
    for asked in (old, folder):
        found = find(trained.accelerator, new, recipe(new, f"train.start_from={asked}"), "data")
        assert found is not None and (found.folder, found.step) == (folder, 4)
    with pytest.raises(FileNotFoundError, match=r"train\.start_from: .*nowhere is neither"):
        find(trained.accelerator, new, recipe(new, f"train.start_from={tmp_path / 'nowhere'}"), "data")


KILLED = """
import os, sys
from pathlib import Path
from tests.pipeline.checkpoint.test_training import make, recipe, save, step
run, victim, call = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
trained = make()
save(trained.accelerator, trained, run, 1, recipe(run), "data")
step(trained)
import shutil
import pipeline.checkpoint.training as training
owner, name = {"rename": (Path, "rename"), "touch": (Path, "touch"), "unlink": (Path, "unlink"),
               "rmtree": (shutil, "rmtree"), "state": (training.Path, "write_text")}[victim]
real, calls = getattr(owner, name), 0
def killed(*arguments, **named):
    global calls
    calls += 1
    if calls == call:
        os._exit(9)
    return real(*arguments, **named)
setattr(owner, name, killed)
save(trained.accelerator, trained, run, 2, recipe(run), "data")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "call", "newest"),
    [
        ("rmtree", 1, 1),  # before anything
        ("state", 1, 1),  # the state is there, its description is not
        ("rename", 1, 1),  # all is written under the temporary name
        ("touch", 1, 1),  # renamed, not marked
        ("unlink", 1, 2),  # marked; the old one not yet pruned
        ("rmtree", 3, 2),  # the old one unmarked, not yet deleted
    ],
)
def test_a_kill_at_any_point_of_saving_leaves_a_good_checkpoint(
    tmp_path: Path, victim: str, call: int, newest: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), victim, str(call)], capture_output=True, text=True
    )
    assert done.returncode == 9, done.stderr
    found = latest(tmp_path)
    assert found is not None and found.name == f"step-0000000{newest}"
    assert manifest.faults(found) == []
    trained = make()
    save(trained.accelerator, trained, tmp_path, 3, recipe(tmp_path), "data")  # and what was left is cleared away
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
