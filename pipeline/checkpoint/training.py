"""The state of a training run, saved so that an interruption at any instant leaves a good one.

RUN/checkpoints/step-00000300/
    model.safetensors   the network, readable without DeepSpeed
    training.json       step, fingerprint of the data, recipe, world, versions
    state/              what Accelerate and DeepSpeed need to go on
    COMPLETE            the marker, written last: a folder without it is not a checkpoint
"""

import json
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pipeline import world
from pipeline.checkpoint.weights import FILE, MARKER, save_weights
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

DESCRIPTION = "training.json"

FREE = {
    "steps",
    "save_every",
    "keep_last",
    "keep_every",
    "log_every",
    "workers",
    "micro_batch",
    "trackers",
    "allow_changes",
}
"""Keys of the recipe's train section that change nothing that is learnt: a resumed run may have others."""


def latest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    complete = sorted(run.glob(f"checkpoints/step-*/{MARKER}"))
    return complete[-1].parent if complete else None


def save(accelerator: "Accelerator", model: nn.Module, run: Path, step: int, recipe: Recipe, fingerprint: str) -> Path:
    """Writes the checkpoint of `step` under a temporary name, renames it, marks it; then prunes older ones.

    Every process must call it; only the main process's write of the marker makes it count. Raises FloatingPointError,
    and writes nothing, where a weight is not finite: such a checkpoint would push out good ones.
    """
    tensors = accelerator.get_state_dict(model)  # a collective under ZeRO-3
    broken = accelerator.is_main_process and not all(tensor.isfinite().all() for tensor in tensors.values())
    if world.anywhere(accelerator, broken)[0]:
        raise FloatingPointError(f"weights are not finite after step {step}: not saved; the newest checkpoint is good")
    folder = run / "checkpoints" / f"step-{step:08d}"
    partial = folder.with_name(f".{folder.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed between renaming and marking
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial / "state"))
    if accelerator.is_main_process:
        save_weights(partial / FILE, accelerator.unwrap_model(model), tensors, step)
        description = describe(accelerator, step, recipe, fingerprint)
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=1))
    if accelerator.is_local_main_process:
        _flush(partial)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        partial.rename(folder)
        _flush(folder.parent, deep=False)
        (folder / MARKER).touch()
        _flush(folder, deep=False)
        _prune(run, recipe.train.keep_last, recipe.train.keep_every)
    accelerator.wait_for_everyone()
    return folder


def resume(accelerator: "Accelerator", folder: Path, recipe: Recipe, fingerprint: str) -> int:
    """Takes up the training state of a checkpoint; returns the next step.

    Raises ValueError where data, recipe or processes are not those it was written with, naming both sides and the
    key that overrides it.
    """
    saved = json.loads((folder / DESCRIPTION).read_text())
    asked = describe(accelerator, saved["step"], recipe, fingerprint)
    if saved["launcher"] != asked["launcher"] and "DEEPSPEED" in saved["launcher"] + asked["launcher"]:
        raise ValueError(
            f"{folder} was written under {saved['launcher']}, now it is {asked['launcher']}: their optimizer states "
            "differ; launch with the file it was written with"
        )
    if differences := _differences(saved, asked):
        if not recipe.train.allow_changes:
            raise ValueError(
                f"{folder} cannot be resumed as asked:\n"
                + "\n".join(f"  {d}" for d in differences)
                + "\nstart a new run (another `run`), or go on all the same with train.allow_changes=true"
            )
        accelerator.print("resuming with changes:\n" + "\n".join(f"  {d}" for d in differences))
    if saved["launcher"].startswith("DEEPSPEED") and saved["world_size"] != accelerator.num_processes:
        raise ValueError(
            f"{folder} was written by {saved['world_size']} processes under DeepSpeed, now there are "
            f"{accelerator.num_processes}; launch it with --num_processes {saved['world_size']}"
        )
    accelerator.load_state(str(folder / "state"))
    return int(saved["step"])


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
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what computes, by name."""
    names = ("hstl", "torch", "accelerate", "deepspeed", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _differences(saved: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    found = []
    for key, label in (("fingerprint", "data set"), ("launcher", "launcher")):
        if saved[key] != asked[key]:
            found.append(f"{label}: it was {saved[key]}, now it is {asked[key]}")
    for section, before in saved["recipe"].items():
        now = asked["recipe"][section]
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


def _flush(folder: Path, *, deep: bool = True) -> None:
    """Everything below reaches the disk before anyone may believe it."""
    for path in [*(folder.rglob("*") if deep else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _prune(run: Path, keep_last: int, keep_every: int | None) -> None:
    for abandoned in (*run.glob("checkpoints/.step-*.partial"), *run.glob("checkpoints/step-*")):
        if not (abandoned / MARKER).exists():  # of a run that was killed while saving or pruning
            shutil.rmtree(abandoned)
    complete = sorted(marker.parent for marker in run.glob(f"checkpoints/step-*/{MARKER}"))
    for folder in complete[:-keep_last]:
        step = int(folder.name.removeprefix("step-"))
        if keep_every is None or step % keep_every:
            (folder / MARKER).unlink()  # first, so that a half-deleted folder is not believed
            shutil.rmtree(folder)
