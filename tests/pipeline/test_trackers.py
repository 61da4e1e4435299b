import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
from accelerate.tracking import GeneralTracker

from pipeline import trackers, world
from pipeline.recipe import Recipe, RecipeError, load
from pipeline.trackers import Trackers, flat, require

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"


def recipe(*overrides: str, names: str = "[tensorboard, wandb, mlflow]") -> Recipe:
    return load(DEMO, [f"train.trackers={names}", *overrides])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder, with a space in its path, in an environment that says nothing but to stay offline."""
    for name in ("WANDB_PROJECT", "WANDB_DIR", "WANDB_NAME", "WANDB_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # which reads the environment once a process
    folder = tmp_path / "runs of" / "first"
    folder.mkdir(parents=True)
    return folder


def track(recipe: Recipe, run: Path, step: int, values: dict[int, float], failed: bool = False) -> None:
    accelerator = world.start()
    accelerator.trackers.clear()
    started = Trackers(accelerator, recipe, run, step)
    for number, loss in values.items():
        started.log({"loss": loss, "lr": 0.1}, number)
    started.finish(failed)
    accelerator.trackers.clear()


def wandb_records(run: Path) -> list[list[Any]]:
    """Per start of the run, its records: a file of wandb's is a LevelDB log of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    def records(content: bytes) -> Iterator[Any]:
        position, whole = 7, b""
        while position + 7 <= len(content):
            if 32768 - position % 32768 < 7:
                position += 32768 - position % 32768
                continue
            _, length, kind = struct.unpack_from("<IHB", content, position)
            whole += content[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # whole, or the last part
                yield wandb_internal_pb2.Record.FromString(whole)  # type: ignore[attr-defined]
                whole = b""

    wandb.teardown()  # its own process writes the files, and does so when it ends
    return [list(records(path.read_bytes())) for path in sorted(run.glob("wandb/offline-run-*/*.wandb"))]


def test_tensorboard_has_the_losses_and_the_recipe_and_hides_what_is_done_anew(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(recipe(names="[tensorboard]"), run, 0, {10: 3.0, 20: 2.0, 30: 9.0})
    track(recipe(names="[tensorboard]"), run, 20, {30: 1.0})
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 3.0), (20, 2.0), (30, 1.0)]
    plugin = events.PluginTagToContent("hparams")
    assert b"network.variant" in plugin["_hparams_/session_start_info"]
    assert len(list((run / "tensorboard").iterdir())) == 2  # a file a start
    assert not (run / trackers.FILE).exists()  # there is nothing to remember


def test_mlflow_goes_on_in_its_run_and_has_the_recipe(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    track(recipe(names="[mlflow]"), run, 0, {10: 3.0, 20: 2.0}, failed=True)
    client = MlflowClient(f"sqlite:///{run}/mlflow/mlflow.db")
    run_id = json.loads((run / trackers.FILE).read_text())["mlflow"]["run_id"]
    assert client.get_run(run_id).info.status == "FAILED"
    track(recipe("train.steps=77", names="[mlflow]"), run, 20, {30: 1.0})
    found = client.get_run(run_id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "first")
    assert client.get_experiment(found.info.experiment_id).name == "demo"
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "loss")] == [
        (10, 3.0),
        (20, 2.0),
        (30, 1.0),
    ]
    expected = {key: str(value) for key, value in flat(recipe(names="[mlflow]")).items()}
    assert found.data.params == expected  # which MLflow never changes
    assert found.data.tags["train.steps"] == "77"
    assert [experiment.name for experiment in client.search_experiments()].count("demo") == 1
    assert sorted(path.name for path in run.iterdir()) == ["mlflow", trackers.FILE]


def test_mlflow_writes_where_the_environment_says(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    store = (run.parent / "shared").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    own = {"mlflow": {"run_id": "0" * 32, "store": ""}}  # of the run's own store: it means nothing elsewhere
    (run / trackers.FILE).write_text(json.dumps(own))
    track(recipe(names="[mlflow]"), run, 10, {20: 2.0})
    entry = json.loads((run / trackers.FILE).read_text())["mlflow"]
    assert entry["store"] == store
    history = MlflowClient(store).get_metric_history(entry["run_id"], "loss")
    assert [metric.step for metric in history] == [20]
    assert [path.name for path in run.iterdir()] == [trackers.FILE]


def test_wandb_goes_on_in_its_run_and_has_the_recipe(run: Path) -> None:
    track(recipe(names="[wandb]"), run, 0, {10: 3.0, 20: 2.0})
    time.sleep(1)  # its folders are named by the second
    track(recipe(names="[wandb]"), run, 20, {30: 1.0})
    starts = wandb_records(run)
    identity = json.loads((run / trackers.FILE).read_text())["wandb"]["id"]
    opened = [record.run for records in starts for record in records if record.WhichOneof("record_type") == "run"]
    assert {(one.run_id, one.project, one.display_name) for one in opened} == {(identity, "demo", "first")}
    assert len(starts) == 2
    logged = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for records in starts
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [(line["_step"], line["loss"]) for line in logged] == [(10, 3.0), (20, 2.0), (30, 1.0)]
    config = {
        item.key or item.nested_key[0]: json.loads(item.value_json)
        for record in starts[0]
        if record.WhichOneof("record_type") == "config"
        for item in record.config.update
    }
    assert config.items() >= flat(recipe(names="[wandb]")).items()


def test_wandb_keeps_to_its_environment(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.parent / "elsewhere").mkdir()
    monkeypatch.setenv("WANDB_DIR", str(run.parent / "elsewhere"))
    monkeypatch.setenv("WANDB_PROJECT", "gait")
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    wandb.teardown()
    track(recipe(names="[wandb]"), run, 0, {10: 3.0})
    assert [path.name for path in run.iterdir()] == [trackers.FILE]
    (records,) = wandb_records(run.parent / "elsewhere")
    (opened,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (opened.run_id, opened.project) == ("mine", "gait")


def test_a_tracker_that_is_not_installed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    require(("tensorboard", "wandb", "mlflow"))  # all are here
    found = trackers.find_spec
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else found(name))
    require(("tensorboard", "mlflow"))
    with pytest.raises(ValueError, match=r"train\.trackers: wandb needs wandb.*pip install 'hstl\[trackers\]'"):
        require(("tensorboard", "wandb"))


def test_a_folder_of_its_name_is_no_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ValueError, match="wandb"):
        require(("wandb",))


def test_mlflow_needs_its_store_only_where_it_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = trackers.find_spec
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "sqlalchemy" else found(name))
    with pytest.raises(ValueError, match=r"mlflow needs sqlalchemy"):
        require(("mlflow",))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    require(("mlflow",))


def test_an_unknown_tracker_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"train\.trackers\.0: .*tensorboard.*wandb.*mlflow.*'comet'"):
        recipe(names="[comet]")


def test_one_that_does_not_start_says_what_to_do(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://server")
    with pytest.raises(ValueError, match=r"train\.trackers: mlflow did not start \(.*nonsense.*take mlflow out"):
        track(recipe(names="[mlflow]"), run, 0, {})


class Failing(GeneralTracker):
    """Takes one line, then its server is gone."""

    name = "failing"
    requires_logging_directory = False

    def __init__(self) -> None:
        self.calls = 0

    @property
    def tracker(self) -> None:
        return None

    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        self.calls += 1
        if self.calls > 1:
            raise ConnectionError("no route to host")


def test_one_that_fails_later_does_not_end_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    failing, taken = Failing(), []
    good = SimpleNamespace(name="good", log=lambda values, step: taken.append(step), finish=lambda: taken.append("end"))
    accelerator: Any = SimpleNamespace(is_main_process=True, trackers=[])
    started = Trackers(accelerator, recipe(names="[]"), run, 0)
    accelerator.trackers += [failing, good]
    for step in range(4):
        started.log({"loss": 1.0}, step)
    started.finish(failed=False)
    assert failing.calls == 2 and taken == [0, 1, 2, 3, "end"]
    said = capfd.readouterr().err
    assert said.count("failing fails and is left out (ConnectionError: no route to host)") == 1
    assert list(run.iterdir()) == []


def test_other_ranks_track_nothing(run: Path) -> None:
    accelerator: Any = SimpleNamespace(is_main_process=False, trackers=[])
    started = Trackers(accelerator, recipe(), run, 0)
    started.log({"loss": 1.0}, 1)
    started.finish(failed=False)
    assert list(run.iterdir()) == []


def test_the_recipe_lies_flat_for_trackers() -> None:
    values = flat(recipe())
    assert values["batch.subjects"] == recipe().batch.subjects
    assert values["train.keep_every"] == "null"
    assert values["train.trackers"] == '["tensorboard", "wandb", "mlflow"]'
    assert all(isinstance(value, bool | int | float | str) for value in values.values())
    assert torch.utils.tensorboard.summary.hparams(values, {})  # takes no other kinds
