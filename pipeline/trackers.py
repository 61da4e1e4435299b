"""Trackers beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow, through Accelerate's interface to them.

Their files lie in the run's folder unless the environment says otherwise (WANDB_*, MLFLOW_*), and a run that is resumed
goes on in the same run of the tracker, whose id RUN/trackers.json keeps.
"""

import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from pipeline import world
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

FILE = "trackers.json"


def require(names: Sequence[str]) -> None:
    """Raises ValueError for a tracker of the recipe that is not installed."""
    for name in names:
        modules = [name, "sqlalchemy", "alembic"] if name == "mlflow" and _own_store() else [name]
        # A folder of the name, such as wandb makes, is found as well, but has no origin.
        missing = [module for module in modules if (spec := find_spec(module)) is None or spec.origin is None]
        if missing:
            raise ValueError(
                f"train.trackers: {name} needs {', '.join(missing)}, which is not installed; "
                f"pip install 'hstl[trackers]', or take {name} out"
            )


class Trackers:
    """The recipe's trackers, started. On all but the main process it does nothing.

    None of them may end a training run: one that fails is named and left out until the next start. Raises ValueError
    where one does not start.
    """

    def __init__(self, accelerator: "Accelerator", recipe: Recipe, run: Path, step: int) -> None:
        """`step`: the training step from which on values come."""
        self.accelerator = accelerator
        if not accelerator.is_main_process:
            return
        ids = json.loads((run / FILE).read_text()) if (run / FILE).exists() else {}
        for name in dict.fromkeys(recipe.train.trackers):
            tracker, known = MAKERS[name](recipe, run, ids.get(name, {}), step)
            try:
                # Accelerate's init_trackers would not say which one failed.
                with world.signals_withheld():  # a tracker's own processes must outlive the signal to save and leave
                    tracker.start()
                tracker.store_init_configuration(flat(recipe))
            except Exception as error:
                raise ValueError(
                    f"train.trackers: {name} did not start ({type(error).__name__}: {error}); mend that, take {name} "
                    f"out, or remove {run / FILE} if the run it names is no more"
                ) from error
            accelerator.trackers.append(tracker)
            ids[name] = known()
            _write(run / FILE, {name: values for name, values in ids.items() if values})

    def log(self, values: dict[str, float], step: int) -> None:
        """Hands the values of a step to all trackers."""
        for tracker in list(self.accelerator.trackers):
            try:
                tracker.log(values, step=step)
            except Exception as error:
                self._give_up(tracker, error)

    def finish(self, failed: bool) -> None:
        """Ends the trackers' runs, as failed or as finished."""
        for tracker in list(self.accelerator.trackers):
            try:
                if failed and isinstance(tracker, WandBTracker):
                    tracker.tracker.finish(exit_code=1)
                elif failed and isinstance(tracker, MLflow):
                    tracker.end("FAILED")
                else:
                    tracker.finish()
            except Exception as error:
                self._give_up(tracker, error)

    def _give_up(self, tracker: GeneralTracker, error: Exception) -> None:
        self.accelerator.trackers.remove(tracker)
        reason = f"{type(error).__name__}: {error}"
        print(f"{tracker.name} fails and is left out ({reason}); metrics.jsonl has everything", file=sys.stderr)


def flat(recipe: Recipe) -> dict[str, bool | int | float | str]:
    """The resolved recipe by dotted keys; what is no plain value is written as JSON."""

    def leaves(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, dict):
                found |= leaves(f"{prefix}{key}.", value)
            else:
                found[prefix + key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
        return found

    return leaves("", recipe.model_dump(mode="json"))


class TensorBoard(TensorBoardTracker):
    """With the recipe beside the losses, in one file: TensorBoard stops reading a file when a newer one appears."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(values, {"loss": 0}):
            self.writer.file_writer.add_summary(summary)


class MLflow(MLflowTracker):
    """In a store of the run's own unless one is named, and resumed though the recipe changed."""

    def __init__(self, recipe: Recipe, run: Path, run_id: str | None) -> None:
        own = run.absolute() / "mlflow"
        artifacts = (own / "artifacts").as_uri() if _own_store() else None
        super().__init__(recipe.name, artifacts, run_id, run_name=run.absolute().name)
        self.store = f"sqlite:///{own}/mlflow.db" if _own_store() else None
        self._before: str | None = None

    def start(self) -> None:
        import mlflow

        if self.store is not None:
            Path(self.store.removeprefix("sqlite:///")).parent.mkdir(exist_ok=True)
            mlflow.set_tracking_uri(self.store)
        super().start()

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        import mlflow

        # MLflow never changes a parameter: what another start had otherwise becomes a tag.
        first = self.tracker.data.params
        super().store_init_configuration({key: value for key, value in values.items() if key not in first})
        mlflow.set_tags({key: value for key, value in values.items() if first.get(key, str(value)) != str(value)})

    def finish(self) -> None:
        self.end("FINISHED")

    def end(self, status: str) -> None:
        import mlflow

        mlflow.end_run(status)
        if self.store is not None:
            # It had set the environment's variable, too, which would now look like the user's.
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


Made = tuple[GeneralTracker, Callable[[], dict[str, str]]]
"""A tracker, and what gives its entry in RUN/trackers.json once it has started."""


def _tensorboard(recipe: Recipe, run: Path, known: dict[str, str], step: int) -> Made:
    # Hides what an earlier start logged of steps that are done anew.
    again = {"purge_step": step + 1} if step else {}
    return TensorBoard("tensorboard", str(run), **again), dict


def _wandb(recipe: Recipe, run: Path, known: dict[str, str], step: int) -> Made:
    identity = known.get("id") or uuid.uuid4().hex[:8]
    ours = {"id": identity, "resume": "allow", "name": run.absolute().name, "dir": str(run)}
    variables = {"id": "WANDB_RUN_ID", "resume": "WANDB_RESUME", "name": "WANDB_NAME", "dir": "WANDB_DIR"}
    given = {key: value for key, value in ours.items() if variables[key] not in os.environ}
    tracker = WandBTracker(os.environ.get("WANDB_PROJECT", recipe.name), **given)
    return tracker, lambda: {"id": os.environ.get("WANDB_RUN_ID", identity)}


def _mlflow(recipe: Recipe, run: Path, known: dict[str, str], step: int) -> Made:
    import mlflow

    store = "" if _own_store() else re.sub("//[^/@]*@", "//", mlflow.get_tracking_uri())  # without a password
    # An id means nothing to another store.
    tracker = MLflow(recipe, run, known.get("run_id") if known.get("store", "") == store else None)
    return tracker, lambda: {"run_id": tracker.tracker.info.run_id, "store": store}


MAKERS: dict[str, Callable[[Recipe, Path, dict[str, str], int], Made]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def _own_store() -> bool:
    return not os.environ.get("MLFLOW_TRACKING_URI")


def _write(path: Path, ids: dict[str, dict[str, str]]) -> None:
    if ids:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(ids, indent=1))
        partial.replace(path)
