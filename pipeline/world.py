"""The processes of a run: how they start, what they share. Effects only; nothing here decides what is computed."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


def start(rank_batch_size: int = 1) -> "Accelerator":
    """Joins this process to the others of `accelerate launch`, on GPUs by nccl and on CPUs by gloo.

    `rank_batch_size` is the number of sequences a process sees a step. Without a launcher it is the only process.
    """
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.cuda.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found nothing better
    # DeepSpeed calls torch's collectives by names that torch is about to drop; users can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # Seconds of import: loader workers re-import the main module and must not pay for them.
    from accelerate import Accelerator, InitProcessGroupKwargs

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


def anywhere(accelerator: "Accelerator", *flags: Tensor | bool) -> list[bool]:
    """For each flag, whether it is set on any process; one small exchange, and one wait for the device, for all."""
    mine = torch.stack([torch.as_tensor(flag, device=accelerator.device).int() for flag in flags])
    if accelerator.num_processes > 1:
        dist.all_reduce(mine, dist.ReduceOp.MAX)
    return [bool(flag) for flag in mine.tolist()]


class Interruption:
    """Notes SIGTERM and SIGUSR2 instead of dying of them; `asked` says whether one came. A second does no harm."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR2)

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interruption":
        self._before = [signal.signal(number, self._note) for number in self.SIGNALS]
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in zip(self.SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.asked = True


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


USER_MISTAKES = (ValueError, OSError)
"""Errors that, raised by our own code, end in their message."""
