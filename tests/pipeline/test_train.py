from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import world
from pipeline.metrics_log import MetricsLog, read
from pipeline.model import HSTL
from pipeline.recipe import Optimizer, Schedule, load
from pipeline.train import learning_rate, open_run
from pipeline.trained import build_optimizer

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"


def test_learning_rate_falls_right_at_each_milestone() -> None:
    schedule = Schedule(milestones=(3, 5), factor=0.1)
    rates = [learning_rate(step, 2.0, schedule) for step in range(7)]
    np.testing.assert_allclose(rates, [2.0, 2.0, 2.0, 0.2, 0.2, 0.02, 0.02])


def test_learning_rate_is_that_of_torchs_multi_step_schedule() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 7], gamma=0.1)
    for step in range(10):
        assert learning_rate(step, 0.1, Schedule(milestones=(4, 7))) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("kind", "expected"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_the_optimizer_has_every_parameter_and_the_recipes_figures(kind: Any, expected: type) -> None:
    network = HSTL("demo", 3)
    momentum = 0.9 if kind == "sgd" else 0.0
    optimizer = build_optimizer(network, Optimizer(kind=kind, lr=0.3, weight_decay=0.01, momentum=momentum))
    assert isinstance(optimizer, expected)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == len(list(network.parameters()))
    assert (group["lr"], group["weight_decay"], group.get("momentum", 0.0)) == (0.3, 0.01, momentum)


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_repeat_or_are_chosen_by_time_never_both(deterministic: bool) -> None:
    with torch.backends.cudnn.flags(enabled=True):
        world.choose_kernels(deterministic=deterministic)
        assert torch.backends.cudnn.deterministic is deterministic
        assert torch.backends.cudnn.benchmark is not deterministic


def test_a_new_run_freezes_its_recipe(tmp_path: Path) -> None:
    recipe = load(DEMO, [f"run={tmp_path / 'run'}", "seed=9"])
    run = open_run(recipe)
    assert load(run / "recipe.yaml") == recipe
    assert open_run(recipe) == run  # given again, it is the same run


def test_a_folder_with_something_else_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"not a run .*recipe\.yaml.*another `run`"):
        open_run(load(DEMO, [f"run={tmp_path}"]))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_metrics_of_steps_done_anew_replace_the_old_ones(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 1.0})
    with log.path.open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    assert [line["step"] for line in read(tmp_path)] == [10, 20, 30]
    MetricsLog(tmp_path, 20).write({"step": 30, "loss": 2.0})
    assert [(line["step"], line["loss"]) for line in read(tmp_path)] == [(10, 1.0), (20, 1.0), (30, 2.0)]
