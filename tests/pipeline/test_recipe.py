from pathlib import Path

import pytest
import torch
import yaml

from pipeline.model import HSTL
from pipeline.recipe import Recipe, RecipeError, dump, load

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
DEMO = next(path for path in RECIPES if path.stem == "demo")

# the released configurations: P, K, frames, skip, kind, lr, decay, momentum, milestones, steps, scale, smoothing
RELEASED = {
    "casia-b": (8, 8, 30, 0, "adam", 1e-4, 5e-4, 0.0, (70_000,), 90_000, 1.0, 0.0),
    "oumvlp": (32, 8, 30, 0, "sgd", 0.1, 5e-4, 0.9, (150_000, 200_000), 250_000, 1.0, 0.1),
    "gait3d": (32, 8, 30, 4, "sgd", 0.1, 5e-4, 0.9, (80_000, 150_000, 200_000), 210_000, 16.0, 0.1),
}


def test_there_is_a_recipe_for_the_demo_and_each_benchmark() -> None:
    assert [path.stem for path in RECIPES] == ["casia-b", "demo", "gait3d", "grew", "oumvlp"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_builds_its_network(path: Path) -> None:
    recipe = load(path)
    assert recipe.name == path.stem
    with torch.device("meta"):
        assert HSTL(recipe.network.variant, 4).variant.name == recipe.network.variant


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_opens_with_command_hardware_goal_and_source(path: Path) -> None:
    header = path.read_text().split("\n\n")[0]
    for part in (f"-m pipeline.train recipes/{path.stem}.yaml", "# hardware ", "# takes ", "# reaches ", "# source "):
        assert part in header


@pytest.mark.parametrize("name", RELEASED)
def test_recipes_carry_the_released_figures(name: str) -> None:
    r = load(DEMO.with_name(f"{name}.yaml"))
    batch, optimizer = r.batch, r.optimizer
    figures = (batch.subjects, batch.sequences, batch.frames, batch.frames_skip, optimizer.kind, optimizer.lr)
    figures += (optimizer.weight_decay, optimizer.momentum, r.schedule.milestones, r.train.steps)
    assert (*figures, r.loss.scale, r.loss.smoothing) == RELEASED[name]
    assert (r.loss.margin, r.loss.triplet_weight, r.loss.cross_entropy_weight, r.schedule.factor) == (0.2, 1, 1, 0.1)
    assert (r.network.variant, r.evaluate.protocol) == (name, name)


def test_overrides_take_yaml_values() -> None:
    recipe = load(
        DEMO, ["train.steps=7", "optimizer.lr=1e-4", "schedule.milestones=[3, 5]", "run=x=y", "train.micro_batch=4"]
    )
    assert (recipe.train.steps, recipe.optimizer.lr, recipe.schedule.milestones) == (7, 1e-4, (3, 5))
    assert (recipe.run, recipe.train.micro_batch) == ("x=y", 4)


def test_all_faults_are_named_at_once_with_their_places() -> None:
    with pytest.raises(RecipeError) as caught:
        load(DEMO, ["batch.subject=8", "train.steps=many", "nonsense", "optimizer.momentum=0.9"])
    message = str(caught.value)
    assert "4 faults" in message
    assert "batch.subject: unknown key; this section takes subjects, sequences, frames, frames_skip" in message
    assert "train.steps: input should be a valid integer, not 'many' (str)" in message
    assert "'nonsense': write it as key.path=value" in message
    assert "optimizer: momentum 0.9 is SGD's" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=1.5", "train.steps: input should be a valid integer, not 1.5"),
        ("train.steps='100'", "train.steps: input should be a valid integer"),
        ("train.precision=fp16", "train.precision: input should be 'bf16' or 'fp32', not 'fp16'"),
        ("batch.subjects=1", "greater than or equal to 2"),
        ("network.variant=resnet", "'casia-b'"),
        ("schedule.milestones=[5, 3]", "milestones [5, 3] must rise"),
        ("evaluate.protocol=casia-c", "unknown protocol 'casia-c'"),
        ("data.url=x", "'data' is not a section"),
        ("train=[1", "is not a YAML value"),
    ],
)
def test_a_wrong_value_is_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(DEMO, [override])
    assert message in str(caught.value)


def test_a_missing_recipe_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(FileNotFoundError, match=r"no recipe .*other\.yaml; .*mine\.yaml"):
        load(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n- b\n", "holds list"), ("a: [1", "is not YAML"), ("seed: 1\nseed: 2\n", r"\['seed'\] twice")],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load(tmp_path / "bad.yaml")


def test_a_dumped_recipe_loads_as_the_same(tmp_path: Path) -> None:
    recipe = load(DEMO, ["seed=4"])
    (tmp_path / "copy.yaml").write_text(dump(recipe))
    assert load(tmp_path / "copy.yaml") == recipe
    assert isinstance(recipe, Recipe) and yaml.safe_load(dump(recipe))["seed"] == 4
