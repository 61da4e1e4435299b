"""The state of a training run, saved so that an interruption at any instant leaves a good one.

RUN/checkpoints/step-00000300/
    model.safetensors   the network, readable without DeepSpeed
    training.json       step, fingerprint of the data, recipe, world, versions, commit
    state/              what Accelerate and DeepSpeed need to go on
    files.json          size and CRC-32 of every file
    COMPLETE            the marker, written last: a folder without it is not a checkpoint
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline import provenance, world
from pipeline.checkpoint import classifier, folders, manifest, universal
from pipeline.checkpoint.weights import FILE, MARKER, save_weights
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipeline.trained import Trained

DESCRIPTION = "training.json"

TORCHS_WRITER = ("PytorchStreamWriter", "inline_container", "iostream error")
"""What a plain RuntimeError says that comes of torch.save and a file that could not be written."""

FREE = {
    "steps",
    "save_every",
    "interim_every",
    "keep_last",
    "keep_every",
    "log_every",
    "workers",
    "micro_batch",
    "trackers",
    "deterministic",
    "stall_seconds",
    "start_from",
    "allow_changes",
}
"""Keys of the recipe's train section that change nothing that is learnt: a resumed run may have others."""


def save(
    accelerator: "Accelerator", trained: "Trained", run: Path, step: int, recipe: Recipe, fingerprint: str
) -> Path:
    """Writes the checkpoint of `step` under a temporary name, renames it, marks it; then prunes older ones.

    Every process must call it; only the main process's write of the marker makes it count. Raises FloatingPointError,
    and writes nothing, where a weight is not finite: such a checkpoint would push out good ones. Raises OSError where
    it cannot be written; the one before stays good.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    writing = folder.with_name(f".{folder.name}.partial")
    with _explained(writing, step):
        if accelerator.is_main_process:
            shutil.rmtree(writing, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed between renaming and marking
            (writing / "state").mkdir(parents=True)
        accelerator.wait_for_everyone()
        tensors = trained.full_state(writing / "state")
        broken = accelerator.is_main_process and not all(tensor.isfinite().all() for tensor in tensors.values())
        if world.anywhere(accelerator, broken)[0]:
            if accelerator.is_main_process:
                shutil.rmtree(writing)
            raise FloatingPointError(
                f"weights are not finite after step {step}: not saved; the newest checkpoint is good"
            )
        with _without_the_network(accelerator):
            accelerator.save_state(str(writing / "state"))
        if accelerator.is_main_process:
            save_weights(writing / FILE, trained.network(), tensors, step)
            description = describe(accelerator, step, recipe, fingerprint) | provenance.record()
            (writing / DESCRIPTION).write_text(json.dumps(description, indent=1))
        accelerator.wait_for_everyone()
        # Nodes may see new files of other nodes late: the names are put together first, then shared out.
        names = sorted(world.united(accelerator, dict.fromkeys(manifest.names(writing))))
        rank, ranks = _share(accelerator)
        files = world.united(accelerator, manifest.sums(writing, names[rank::ranks]))
        if accelerator.is_main_process:
            manifest.write(writing, files)
        if accelerator.is_local_main_process:
            _flush(writing)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            writing.rename(folder)
            _flush(folder.parent, deep=False)
            (folder / MARKER).touch()
            _flush(folder, deep=False)
    if accelerator.is_main_process:
        folders.prune(run, recipe.train)
    accelerator.wait_for_everyone()
    return folder


@contextmanager
def _explained(writing: Path, step: int) -> Iterator[None]:
    """What fails inside becomes an OSError that says what stays good; what was half written is deleted."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        if isinstance(error, RuntimeError) and not any(said in str(error) for said in TORCHS_WRITER):
            raise
        shutil.rmtree(writing, ignore_errors=True)
        raise OSError(
            f"the checkpoint of step {step} could not be written to {writing.parent}: {error}. The newest complete "
            "checkpoint is good; free space or raise train.save_every, and start again with the same `run`"
        ) from error


@dataclass(frozen=True)
class Resumable:
    """A whole checkpoint that fits the recipe, the data and the launch."""

    folder: Path
    step: int
    changes: list[str]
    """Differences that the user allowed."""
    reshard: bool
    """Whether its optimizer's shards are of another number of processes."""


def find(accelerator: "Accelerator", run: Path, recipe: Recipe, fingerprint: str) -> Resumable | None:
    """What the run goes on from: its newest whole checkpoint, else the recipe's `train.start_from`, else None.

    Every process must call it, before the network is prepared. Every byte is checked; a damaged checkpoint is put
    aside, and the one before it taken. Raises ValueError where data, recipe or launcher are not those it was written
    with, naming both sides and the key that overrides it.
    """
    put_aside = []
    while (folder := world.agree(accelerator, lambda: folders.latest(run))) is not None:
        if _is_whole(accelerator, folder):
            return _fitting(accelerator, folder, recipe, fingerprint)
        put_aside.append(folder.name)
        world.agree(accelerator, partial(folders.put_aside, folder))
    if put_aside:  # beginning anew without a word would throw away all that was done
        raise ValueError(
            f"{run} has no whole checkpoint left: {', '.join(put_aside)} are damaged and put aside; mend one and take "
            "`damaged-` off its name, or give another `run`"
        )
    if recipe.train.start_from is None:
        return None
    folder = world.agree(accelerator, lambda: _asked_for(Path(str(recipe.train.start_from))))
    if not _is_whole(accelerator, folder):
        raise ValueError(f"train.start_from: {folder} is damaged; take another checkpoint")
    return _fitting(accelerator, folder, recipe, fingerprint)


def take_up(accelerator: "Accelerator", run: Path, found: Resumable, trained: "Trained") -> None:
    """Loads the state of a checkpoint into what was prepared. Every process must call it."""
    state = found.folder / "state"
    if trained.classifier is not None and trained.classifiers_optimizer is not None:
        classifier.read(state, trained.classifier, trained.classifiers_optimizer)
    if not found.reshard:
        with _without_the_network(accelerator):
            accelerator.load_state(str(state))
    else:
        other = run / "checkpoints" / f".{found.folder.name}.universal.partial"  # pruned with others of that name
        world.say(accelerator, f"resharding {found.folder} for {accelerator.num_processes} processes")
        world.agree(accelerator, lambda: str(universal.convert(state, other)))
        accelerator.load_state(str(other))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(other)
    if accelerator.state.deepspeed_plugin is None:
        tensors = load_file(found.folder / FILE)
        if trained.classifier is not None:
            del tensors["classifier.weight"]
        trained.network().load_state_dict(tensors)


@contextmanager
def _without_the_network(accelerator: "Accelerator") -> Iterator[None]:
    """Keeps Accelerate from saving or loading what model.safetensors holds.

    Under DDP it names weights otherwise than in one process, and one could not go on from the other. DeepSpeed's
    checkpoints are not concerned.
    """
    hooks = [
        accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear()),
        accelerator.register_load_state_pre_hook(lambda models, folder: models.clear()),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def describe(accelerator: "Accelerator", step: int, recipe: Recipe, fingerprint: str) -> dict[str, Any]:
    """What a checkpoint says of itself, JSON-serialisable."""
    plugin = accelerator.state.deepspeed_plugin
    stage = "" if plugin is None else f" ZeRO-{plugin.zero_stage}"
    return {
        "step": step,
        "fingerprint": fingerprint,
        "recipe": recipe.model_dump(mode="json"),
        "world_size": accelerator.num_processes,
        "launcher": accelerator.distributed_type.value + stage,
    }


def _is_whole(accelerator: "Accelerator", folder: Path) -> bool:
    """Whether all files are as they were written; says on each process what is wrong with its share of them."""
    if not (folder / manifest.FILE).exists():
        world.say(accelerator, f"{folder} has no {manifest.FILE}: taken without having been checked")
        return True
    faults = manifest.faults(folder, *_share(accelerator))
    for fault in faults:
        print(f"damaged checkpoint: {fault}", flush=True)
    return not world.anywhere(accelerator, bool(faults))[0]


def _asked_for(asked: Path) -> Path:
    found = asked if (asked / MARKER).is_file() else folders.latest(asked)
    if found is None:
        raise FileNotFoundError(
            f"train.start_from: {asked} is neither a complete checkpoint nor a run that has one; "
            "give RUN or RUN/checkpoints/step-..."
        )
    return found


def _fitting(accelerator: "Accelerator", folder: Path, recipe: Recipe, fingerprint: str) -> Resumable:
    saved = json.loads((folder / DESCRIPTION).read_text())
    asked = describe(accelerator, saved["step"], recipe, fingerprint)
    under_deepspeed = "DEEPSPEED" in saved["launcher"] + asked["launcher"]
    if saved["launcher"] != asked["launcher"] and under_deepspeed:
        raise ValueError(
            f"{folder} was written under {saved['launcher']}, now it is {asked['launcher']}: their optimizer states "
            "differ; launch with the file it was written with (any number of processes will do)"
        )
    cut, now = (said["recipe"]["train"].get("shard_classifier", False) for said in (saved, asked))
    if cut != now:
        raise ValueError(
            f"{folder} was written with train.shard_classifier={str(cut).lower()}, now it is {str(now).lower()}: their "
            "optimizer states differ; set it back (or start a new run from its weights: network.weights)"
        )
    differences = _differences(saved, asked)
    if differences and not recipe.train.allow_changes:
        raise ValueError(
            f"{folder} cannot be resumed as asked:\n"
            + "\n".join(f"  {d}" for d in differences)
            + "\nstart a new run (another `run`), or go on all the same with train.allow_changes=true"
        )
    reshard = under_deepspeed and saved["world_size"] != asked["world_size"]
    if reshard:
        accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
    return Resumable(folder, int(saved["step"]), differences, reshard)


def _with_todays_keys(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe of an older version with what has been added since at its default; as it is where it no longer fits."""
    try:
        return Recipe.model_validate(recipe).model_dump(mode="json")
    except ValidationError:
        return recipe


def _differences(saved: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    found = []
    if saved["fingerprint"] != asked["fingerprint"]:
        found.append(f"data set: it was {saved['fingerprint']}, now it is {asked['fingerprint']}")
    for section, before in _with_todays_keys(saved["recipe"]).items():
        now = asked["recipe"].get(section)
        if section in ("name", "data", "run", "evaluate") or before == now:
            continue
        if not isinstance(before, dict):
            found.append(f"{section}: it was {before}, now it is {now}")
            continue
        found += [
            f"{section}.{key}: it was {before.get(key)}, now it is {now.get(key)}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not (section == "train" and key in FREE)
        ]
    return found


def _share(accelerator: "Accelerator") -> tuple[int, int]:
    return accelerator.process_index, accelerator.num_processes


def _flush(folder: Path, *, deep: bool = True) -> None:
    """Everything below reaches the disk before anyone may believe it."""
    for path in [*(folder.rglob("*") if deep else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
