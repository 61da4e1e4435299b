"""Whole shards in parallel, on processes that share counters with this one."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from shards.allot import ShardPlan
from shards.destination import Destination
from shards.tar import FinishedShard, write_shard

_POLL_SECONDS = 0.2

# Shared with the workers: sequences done, raw frames done.
_counters: Any = None


@dataclass(frozen=True)
class Job:
    """What every shard of a pack is made from and for."""

    layout: str
    source: Path
    destination: Destination

    def make(self, plan: ShardPlan, on_sequence: Callable[[int], None]) -> FinishedShard:
        return self.destination.make(
            plan.name, lambda file: write_shard(plan, self.layout, self.source, file, on_sequence)
        )


def default_workers() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def make_shards(
    plans: Sequence[ShardPlan],
    job: Job,
    num_workers: int,
    made: dict[str, FinishedShard],
    show: Callable[[int, int], None],
) -> None:
    """Make the shards and put them into `made` as they come, also those that were finished when one failed.

    `show` is told (sequences, raw frames) done so far. Raises what the first failing shard raised;
    RuntimeError when a worker died.
    """
    if num_workers == 1 or len(plans) <= 1:
        _make_here(plans, job, made, show)
        return
    # fork would copy whatever threads and handles the caller has, and obstore does not survive it.
    context = multiprocessing.get_context("forkserver")
    counters = context.Array("q", 2)
    pool = ProcessPoolExecutor(min(num_workers, len(plans)), context, _start_worker, (counters,))
    futures: list[Future[FinishedShard]] = []
    try:
        # Long shards first would be faster by a little; in order, a killed pack has its finished shards at
        # the front.
        futures = [pool.submit(_work, plan, job) for plan in plans]
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            _take(done, made)
            show(*counters[:])
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a packing worker died, most likely for want of memory: run the same command again with fewer "
            "--workers; finished shards are kept."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        _take({f for f in futures if f.done() and not f.cancelled() and f.exception() is None}, made)


def _take(done: set[Future[FinishedShard]], made: dict[str, FinishedShard]) -> None:
    for future in done:
        finished = future.result()
        made[finished.name] = finished


def _make_here(
    plans: Sequence[ShardPlan], job: Job, made: dict[str, FinishedShard], show: Callable[[int, int], None]
) -> None:
    done = [0, 0]

    def on_sequence(num_raw_frames: int) -> None:
        done[0] += 1
        done[1] += num_raw_frames
        show(*done)

    for plan in plans:
        made[plan.name] = job.make(plan, on_sequence)


def _start_worker(counters: Any) -> None:
    global _counters
    _counters = counters
    cv2.setNumThreads(0)  # the processes are the parallelism
    # A pool's workers outlive a killed parent, waiting for ever; this ends them.
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(plan: ShardPlan, job: Job) -> FinishedShard:
    return job.make(plan, _count_shared)


def _count_shared(num_raw_frames: int) -> None:
    with _counters.get_lock():
        _counters[0] += 1
        _counters[1] += num_raw_frames
