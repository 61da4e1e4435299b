"""The processes of a run: how they start, what they share. Effects only; nothing here decides what is computed."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


def start(rank_batch_size: int = 1, *, patience: int = 1800) -> "Accelerator":
    """Joins this process to the others of `accelerate launch`, on GPUs by nccl and on CPUs by gloo.

    `rank_batch_size` is the number of sequences a process sees a step; `patience` the seconds that processes wait for
    one another. Without a launcher it is the only process.
    """
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.cuda.is_available()
    _refuse_what_is_the_recipes(on_cpu)
    torch.backends.cudnn.allow_tf32 = False  # or "fp32" would be 10 bits of mantissa on GPUs
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
        kwargs_handlers=[InitProcessGroupKwargs("gloo" if on_cpu else "nccl", timeout=timedelta(seconds=patience))]
        if "WORLD_SIZE" in os.environ
        else [],
        # What is learnt is the recipe's: the network opens autocast itself, the schedule is a function of the step.
        mixed_precision="no",
        gradient_accumulation_steps=1,
        step_scheduler_with_optimizer=False,
    )
    if (plugin := accelerator.state.deepspeed_plugin) is not None:
        # P x K batches come from a loader of ours, which Accelerate never sees: it asks for the size here.
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = rank_batch_size
        # Or Accelerate would put Adam in the place of the recipe's SGD where the optimizer is offloaded.
        plugin.deepspeed_config["zero_force_ds_cpu_optimizer"] = False
    return accelerator


def choose_kernels(*, deterministic: bool) -> None:
    """cuDNN's on GPUs: the same ones in every run, or those that it finds fastest by trying them at every new shape.

    Meant to make weights repeat; not shown on a GPU yet (tests/pipeline/test_gpu.py). What a GPU sums in an order of
    its own, such as the triplet loss's cumulative sums, enters the loss that is logged, and no gradient.
    """
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def _refuse_what_is_the_recipes(on_cpu: bool) -> None:
    if (precision := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        raise ValueError(
            f"the launcher asks for mixed precision {precision!r}, which would cast parameters and statistics, too; "
            "take it out of the launch, and set train.precision in the recipe"
        )
    if _under_deepspeed() and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        raise ValueError(
            "the launch asks for DeepSpeed and for CPUs by name (ACCELERATE_USE_CPU), and Accelerate would leave "
            "DeepSpeed out without a word; unset the variable: DeepSpeed finds the CPUs by itself"
        )
    wanted = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not on_cpu and wanted > torch.cuda.device_count():
        raise ValueError(
            f"{wanted} processes were launched on a machine of {torch.cuda.device_count()} GPUs; "
            f"launch with --num_processes {torch.cuda.device_count()}"
        )


def _under_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def _without_compiled_collectives() -> None:
    """Keeps DeepSpeed from compiling its shared-memory all-reduce: gloo does the same.

    The compilation needs g++ and fails where the environment's path holds a space.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def agree(accelerator: "Accelerator", choose: Callable[[], Any]) -> Any:
    """What the main process chose, on every process; an error of its choosing is raised on every process."""
    from accelerate.utils import broadcast_object_list

    if accelerator.num_processes == 1:
        return choose()
    chosen: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            chosen[0] = choose()
        except Exception as error:  # or the others would wait for a choice that never comes
            chosen[1] = error
    value, failed = broadcast_object_list(chosen)
    if failed is not None:
        raise failed
    return value


def anywhere(accelerator: "Accelerator", *flags: Tensor | bool) -> list[bool]:
    """For each flag, whether it is set on any process; one small exchange, and one wait for the device, for all."""
    # A bool is filled in by the device: copying it there would wait for the device once more.
    mine = torch.stack(
        [
            flag.int() if isinstance(flag, Tensor) else torch.full((), int(flag), device=accelerator.device).int()
            for flag in flags
        ]
    )
    if accelerator.num_processes > 1:
        dist.all_reduce(mine, dist.ReduceOp.MAX)
    return [bool(flag) for flag in mine.tolist()]


def say(accelerator: "Accelerator", text: str) -> None:
    """Prints once for all processes of all nodes; Accelerate's own `print` does once a node."""
    if accelerator.is_main_process:
        print(text, flush=True)


def united(accelerator: "Accelerator", mine: dict[str, Any]) -> dict[str, Any]:
    """The entries of all processes' dictionaries, on every process."""
    if accelerator.num_processes == 1:
        return mine
    everyones: list[dict[str, Any]] = [{}] * accelerator.num_processes
    dist.all_gather_object(everyones, mine)
    return {key: value for one in everyones for key, value in one.items()}


SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""What asks a run to save and leave."""


@contextmanager
def signals_withheld() -> Iterator[None]:
    """Processes started inside never get SIGTERM or SIGUSR2, which a launcher sends to the whole group.

    Loader workers must outlive the signal: the step it interrupts still needs them. They end with their parent.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # multiprocessing's helper, which lifts the block after it has started
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Interruption:
    """Notes SIGTERM and SIGUSR2 instead of dying of them; `asked` says whether one came. A second does no harm."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interruption":
        self._before = [signal.signal(number, self._note) for number in SIGNALS]
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in zip(SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.asked = True


def is_users_mistake(error: Exception) -> bool:
    """Whether the error was raised by our own code to name a place, a value and a remedy; else it is a fault."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    ours = Path(__file__).parents[1]
    return isinstance(error, USER_MISTAKES) and any(raised_in.is_relative_to(ours / p) for p in ("pipeline", "shards"))


def leave_with(error: Exception) -> None:
    """Ends the process over a mistake of the user's: the message, and no traceback. Others are raised again, whole.

    Every process says its own: a shard that is missing on one node is met by that node's processes alone.
    """
    if not is_users_mistake(error):
        raise error
    rank = os.environ.get("RANK", "0")
    print(f"\n{'' if rank == '0' else f'[rank {rank}] '}error: {error}\n", file=sys.stderr, flush=True)
    sys.exit(2)


USER_MISTAKES = (ValueError, OSError, MemoryError)
"""Errors that, raised by our own code, end in their message."""
