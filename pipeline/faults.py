"""When training meets what is not finite or does not fit: who, where, and what is needed to see it again.

RUN/faults/step-00000017/
    model.safetensors       the weights before the step; running statistics have it in them
    rank-0.safetensors ...  silhouettes, labels and rows of each process's part of the batch
    rank-0.json ...         its losses, the gradients that were not finite, the keys of its sequences
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import checkpoint
from pipeline.objective import batch_losses
from pipeline.recipe import Loss
from pipeline.trained import GradientCheck

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipeline.recipe import Recipe
    from pipeline.trained import Trained


NO_MEMORY = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
"""In what CPU's allocator, CUDA and NCCL, cuDNN and cuBLAS say."""


@contextmanager
def out_of_memory_explained(recipe: "Recipe", rank_sequences: int, rank: int) -> Iterator[None]:
    """Running out of memory inside becomes a MemoryError that says at what batch, and what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        at_once = min(recipe.train.micro_batch or rank_sequences, rank_sequences)
        remedy = (
            f"set train.micro_batch={max(at_once // 2, 1)}: the result is the same, with fewer convolved at once"
            if at_once > 1
            else "launch more processes, or take fewer batch.frames"
        )
        raise MemoryError(
            f"out of memory on rank {rank}, with {rank_sequences} sequences of {recipe.batch.frames} frames a process, "
            f"{at_once} of them convolved at once; {remedy}. ({str(error).splitlines()[0]})"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine had no memory left; all but torch's own allocator on GPUs say so in words only."""
    said = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in said for text in NO_MEMORY)


def record(
    accelerator: "Accelerator",
    trained: "Trained",
    run: Path,
    step: int,
    terms: dict[str, Tensor],
    batch: dict[str, Tensor],
    keys: list[str],
) -> FloatingPointError:
    """Writes RUN/faults/step-...; every process must call it. Returns the error to be raised, of this process.

    `keys` names this process's sequences.
    """
    gradients = trained.gradients.names()
    folder = run / "faults" / f"step-{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    accelerator.wait_for_everyone()
    tensors = trained.full_state(folder)
    if accelerator.is_main_process:
        checkpoint.save_weights(folder / "model.safetensors", trained.network(), tensors, step)
    rank = accelerator.process_index
    said = {name: value.item() for name, value in terms.items()}
    save_file({name: tensor.cpu() for name, tensor in batch.items()}, folder / f"rank-{rank}.safetensors")
    described = {"step": step, "rank": rank, "losses": {k: str(v) for k, v in said.items()}}
    described |= {"gradients": gradients, "sequences": keys}
    (folder / f"rank-{rank}.json").write_text(json.dumps(described, indent=1))
    accelerator.wait_for_everyone()
    finite = bool(torch.stack(list(terms.values())).isfinite().all())
    what = f"gradients of {_some(gradients)} are" if finite else "the loss is"
    if finite and not gradients:
        return FloatingPointError(f"step {step}: what rank {rank} computed is finite; another rank's is not")
    return FloatingPointError(
        f"{what} not finite at step {step} on rank {rank}: {', '.join(f'{k} {v}' for k, v in said.items())}. The step "
        f"was not taken, and every checkpoint was finite when it was saved. `hstl fault {folder}` runs it again. "
        "A lower optimizer.lr or train.precision=fp32 is the usual remedy, from the newest checkpoint with "
        f"train.allow_changes=true. Sequences of this rank: {', '.join(keys)}"
    )


@dataclass(frozen=True)
class Repeated:
    """A faulty step, run again by one process in fp32."""

    step: int
    recorded: list[dict[str, Any]]
    """rank-*.json, in rank order."""
    losses: dict[str, float]
    gradients: list[str]
    """Names of the parameters whose gradients are not finite."""


def repeat(folder: Path, loss: Loss) -> Repeated:
    """Runs the recorded step again on the whole batch, without an update. Raises FileNotFoundError if none is there."""
    described = sorted(folder.glob("rank-*.json"), key=lambda path: int(path.stem.removeprefix("rank-")))
    if not described:
        raise FileNotFoundError(f"{folder} records no fault; give a folder RUN/faults/step-...")
    recorded = [json.loads(path.read_text()) for path in described]
    parts = [load_file(path.with_suffix(".safetensors")) for path in described]
    batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    network = checkpoint.to_network(checkpoint.read_weights(folder / "model.safetensors")).train()
    check = GradientCheck(network)
    terms = batch_losses(network(batch["silhouettes"].float() / 255), batch["labels"], loss)
    terms["loss"].backward()
    return Repeated(recorded[0]["step"], recorded, {k: v.item() for k, v in terms.items()}, check.names())


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
