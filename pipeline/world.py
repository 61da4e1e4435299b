"""The processes of a run: how they start, what they share. Effects only; nothing here decides what is computed."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


def start(rank_batch_size: int = 1) -> "Accelerator":
    """Joins this process to the others of `accelerate launch`, on GPUs by nccl and on CPUs by gloo.

    `rank_batch_size` is the number of sequences a process sees a step. Without a launcher it is the only process.
    """
    # Seconds of import: loader workers re-import the main module and must not pay for them.
    from accelerate import Accelerator, InitProcessGroupKwargs

    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.cuda.is_available()
    if on_cpu and _under_deepspeed():
        _without_compiled_collectives()
    accelerator = Accelerator(
        # With a backend named, Accelerate believes in a process group even where no launcher made one.
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if on_cpu and "WORLD_SIZE" in os.environ else [],
        # The schedule is a function of the step (pipeline.train.learning_rate); nothing may step it besides.
        step_scheduler_with_optimizer=False,
    )
    if (plugin := accelerator.state.deepspeed_plugin) is not None:
        # P x K batches come from a loader of ours, which Accelerate never sees: it asks for the size here.
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = rank_batch_size
    return accelerator


def _under_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def _without_compiled_collectives() -> None:
    """Keeps DeepSpeed from compiling its shared-memory all-reduce: gloo does the same.

    The compilation needs g++ and fails where the environment's path holds a space.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def agree(accelerator: "Accelerator", choose: Callable[[], Any]) -> Any:
    """What the main process chose, on every process."""
    from accelerate.utils import broadcast_object_list

    if accelerator.num_processes == 1:
        return choose()
    chosen = [choose() if accelerator.is_main_process else None]
    return broadcast_object_list(chosen)[0]


def is_users_mistake(error: Exception) -> bool:
    """Whether the error was raised by our own code to name a place, a value and a remedy; else it is a fault."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    ours = Path(__file__).parents[1]
    return isinstance(error, USER_MISTAKES) and any(raised_in.is_relative_to(ours / p) for p in ("pipeline", "shards"))


def leave_with(error: Exception) -> None:
    """Ends the process over a mistake of the user's: the message, from one process a job, and no traceback.

    Any other error is raised again, whole.
    """
    if not is_users_mistake(error):
        raise error
    if os.environ.get("RANK", "0") == "0":
        print(f"\nerror: {error}\n", file=sys.stderr, flush=True)
    sys.exit(2)


USER_MISTAKES = (ValueError, FileNotFoundError, FileExistsError)
"""Errors that, raised by our own code, end in their message."""
