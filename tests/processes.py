"""Runs a function in several processes joined by gloo."""

import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _enter(rank: int, work: Callable[..., Any], world_size: int, port: int, folder: Path, arguments: tuple) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank)
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save(work(*arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()


def run(work: Callable[..., Any], world_size: int, folder: Path, *arguments: Any) -> list[Any]:
    """What `work(*arguments)` returned on each rank, in rank order; an exception on any rank is raised here."""
    multiprocessing.start_processes(
        _enter, (work, world_size, free_port(), folder, arguments), world_size, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def average(values: Iterable[torch.Tensor]) -> None:
    """Replaces each by its mean over the ranks: what DDP and ZeRO do to gradients, and the log to losses."""
    if dist.is_initialized():
        for value in values:
            dist.all_reduce(value)
            value /= dist.get_world_size()
