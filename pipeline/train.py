"""Training, from a recipe to checkpoints; what `accelerate launch -m pipeline.train RECIPE [key=value ...]` runs."""

import argparse
import itertools
import os
import platform
from collections.abc import Generator, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import shards
from pipeline import world
from pipeline.model import HSTL
from pipeline.objective import batch_losses
from pipeline.recipe import Recipe, Schedule, dump, load
from pipeline.stall import StallGuard

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipeline.run_hold import Hold
    from shards import Batches, ShardSet


def train(recipe: Recipe) -> Path:
    """Trains by the recipe with all processes of the launch; returns the run's folder.

    Raises ValueError, FileNotFoundError or FileExistsError on input that cannot be trained on, before anything is
    written; FloatingPointError when the loss or a gradient stops being finite on any process, before the weights
    change, with what repeats the step in RUN/faults; MemoryError, OSError (a full disk) with the remedy. On SIGTERM
    or SIGUSR2 to any process the step is finished, a checkpoint written, and all processes return.
    """
    # Accelerate and what brings it are imported here: loader workers import this module, too.
    from pipeline import run_hold, trackers

    trackers.require(recipe.train.trackers)
    shard_set = shards.open(recipe.data)
    batches = open_batches(shard_set, recipe)
    accelerator = world.start(batches.rank_batch_size, patience=2 * recipe.train.stall_seconds)
    world.choose_kernels(deterministic=recipe.train.deterministic)
    run = Path(world.agree(accelerator, lambda: str(open_run(recipe))))
    if not (run / "recipe.yaml").is_file():
        raise ValueError(f"{run} is not to be seen on {platform.node()}; give a `run` on a disk that all nodes share")

    with (
        world.Interruption() as interruption,  # outermost: what is left to do on the way out must not be cut short
        run_hold.hold(accelerator, run, recipe.train.steps) as state,
        StallGuard(recipe.train.stall_seconds, lambda line: state.leave(TimeoutError(line))) as alive,
    ):
        _train(accelerator, recipe, run, batches, state, interruption, alive)
    return run


def _train(
    accelerator: "Accelerator",
    recipe: Recipe,
    run: Path,
    batches: "Batches",
    state: "Hold",
    interruption: world.Interruption,
    alive: StallGuard,
) -> None:
    """All of training that happens in the run's folder, which is this launch's alone."""
    from pipeline import checkpoint, faults, provenance
    from pipeline.trained import Trained
    from pipeline.watch import Watch

    shard_set = batches.shard_set
    if accelerator.is_main_process:
        provenance.record()  # now: at the first checkpoint the source may be another
    # First what a checkpoint says, then the recipe's weights, then the seed's.
    with alive.during("checking the newest checkpoint"):
        found = checkpoint.find(accelerator, run, recipe, shard_set.fingerprint)
    torch.manual_seed(recipe.seed)  # every process starts from the same weights
    network = HSTL(
        recipe.network.variant,
        batches.num_classes,
        precision=recipe.train.precision,
        micro_batch=recipe.train.micro_batch,
    )
    if found is None and recipe.network.weights is not None:
        checkpoint.load_weights(network, recipe.network.weights)
    trained = Trained(accelerator, network, recipe.optimizer, shard_classifier=recipe.train.shard_classifier)

    step = start = 0
    if found is not None:
        with alive.during(f"loading {found.folder}"):
            checkpoint.take_up(accelerator, run, found, trained)
        step = start = found.step
        world.say(
            accelerator,
            "\n  ".join([f"resumed {found.folder} at step {start} of {recipe.train.steps}", *found.changes]),
        )
    state.step = start
    if accelerator.is_main_process:
        freeze(recipe, run)  # only now: a refused resume must not change the run

    with (
        Watch(accelerator, recipe, run, start, shard_set) as watch,
        closing(stream(batches, start, recipe, accelerator.device)) as arriving,
    ):
        leave = False
        while True:
            last = leave or step >= recipe.train.steps
            if step > start and (last or checkpoint.is_due(step, recipe.train)):
                with alive.during(f"saving step {step}"), watch.saving():
                    checkpoint.save(accelerator, trained, run, step, recipe, shard_set.fingerprint)
            if last:
                break
            with alive.during(f"waiting for the batch of step {step}"), watch.waiting():
                batch = next(arriving)
            with (
                alive.during(f"step {step}"),
                faults.out_of_memory_explained(recipe, batches.rank_batch_size, accelerator.process_index),
            ):
                trained.set_learning_rate(learning_rate(step, recipe.optimizer.lr, recipe.schedule))
                output = trained.model(batch["silhouettes"].float() / 255)
                terms = batch_losses(output, batch["labels"], recipe.loss, trained.classifier)
                trained.backward(terms["loss"])
                doubtful = ~terms["loss"].isfinite() | trained.gradients.broken()
                broken, leave = world.anywhere(accelerator, doubtful, interruption.asked)
                if broken:
                    keys = shard_set.index["key"].take(batch["rows"].tolist()).to_pylist()
                    raise faults.record(accelerator, trained, run, step, terms, batch, keys)
                trained.update()
            state.step = step = step + 1
            with alive.during(f"reporting step {step}"):
                watch.step_done(step, terms, trained.learning_rate())
    if step < recipe.train.steps:
        state.reason = "asked to stop by SIGTERM or SIGUSR2"
        world.say(
            accelerator,
            f"interrupted: saved at step {step} of {recipe.train.steps}; the same command with run={run} goes on",
        )
    else:
        world.say(accelerator, f"trained: {run}")


def open_batches(shard_set: "ShardSet", recipe: Recipe) -> "Batches":
    """This process's share of the recipe's batches; the launcher's variables say which process this is."""
    batch = recipe.batch
    return shards.Batches(
        shard_set,
        "train",
        batch.subjects,
        batch.sequences,
        batch.frames,
        batch.frames_skip,
        seed=recipe.seed,
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
    )


def open_run(recipe: Recipe) -> Path:
    """Makes or finds the run's folder; a new one keeps the resolved recipe. FileExistsError: it is no run's."""
    run = Path(recipe.run or f"runs/{recipe.name}/{datetime.now():%Y%m%d-%H%M%S}")
    if run.is_dir() and any(run.iterdir()) and not (run / "recipe.yaml").is_file():
        raise FileExistsError(f"{run} exists and is not a run (it has no recipe.yaml); give another `run`")
    try:
        run.mkdir(parents=True, exist_ok=True)
        if not (run / "recipe.yaml").exists():
            freeze(recipe, run)
    except OSError as error:
        raise OSError(f"the run's folder {run} cannot be made ({error.strerror}); give another `run`") from None
    return run


def freeze(recipe: Recipe, run: Path) -> None:
    """Writes the resolved recipe as RUN/recipe.yaml, whole or not at all."""
    partial = run / ".recipe.partial"
    partial.write_text(dump(recipe))
    partial.replace(run / "recipe.yaml")


def stream(
    batches: "Batches", start: int, recipe: Recipe, device: torch.device
) -> Generator[dict[str, Tensor], None, None]:
    """Batches from step `start` to the recipe's last, in order, prepared ahead by worker processes.

    Must be closed: its workers do not hear SIGTERM, by which Python would otherwise end them at exit.
    """
    loader: DataLoader[dict[str, Tensor]] = DataLoader(
        batches,
        sampler=range(start + 1, recipe.train.steps),
        batch_size=None,
        num_workers=recipe.train.workers,
        # Forked workers would inherit threads and clients of object stores that do not survive a fork.
        multiprocessing_context="forkserver" if recipe.train.workers else None,
        prefetch_factor=4 if recipe.train.workers else None,
        pin_memory=device.type == "cuda",
    )
    with world.signals_withheld():
        following: Any = iter(loader)
    try:
        # Workers take seconds to start; meanwhile this process makes the first batch itself.
        for batch in itertools.chain([batches[start]], following):
            yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    finally:
        # Said outright: the traceback of an error would keep the iterator, and so the workers, alive for ever.
        if recipe.train.workers:
            following._shutdown_workers()
            for worker in following._workers:
                worker.kill()  # one that is stuck in a read would be waited for at exit


def learning_rate(step: int, base: float, schedule: Schedule) -> float:
    """The rate of the update that follows batch `step` (from 0): a function of the step, so nothing to resume."""
    passed = sum(step >= milestone for milestone in schedule.milestones)
    return base * schedule.factor**passed


def parse(argv: Sequence[str] | None, description: str, *options: dict[str, Any]) -> argparse.Namespace:
    """RECIPE [key.path=value ...] and further options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("recipe", type=Path, help="recipe file, such as recipes/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values in place of the recipe's")
    for option in options:
        parser.add_argument(option.pop("name"), **option)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m pipeline.train`; exits 2 with a message on mistakes of the user's."""
    arguments = parse(argv, "Train HSTL by a recipe.")
    try:
        train(load(arguments.recipe, arguments.overrides))
    except world.USER_MISTAKES as error:
        world.leave_with(error)


if __name__ == "__main__":
    main()
