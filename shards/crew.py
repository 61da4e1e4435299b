"""Tasks of one kind on processes, with counters of what is done and results as they come."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import Any, TypeVar

import cv2

_POLL_SECONDS = 0.2

Task = TypeVar("Task")
Result = TypeVar("Result")
Count = Callable[[int, int], None]

_counters: Any = None  # of a worker, shared with the process that started it


def num_workers(workers: int | None) -> int:
    """As many as there are cores this process may use, unless given. Raises ValueError for less than one."""
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if workers < 1:
        raise ValueError(f"workers must be at least 1, it is {workers}.")
    return workers


def run(
    tasks: Sequence[Task],
    work: Callable[[Task, Count], Result],
    workers: int,
    take: Callable[[Result], None],
    show: Count,
) -> None:
    """`work(task, count)` for every task; `take` gets the results as they come, also of the tasks that were
    still under way when one failed.

    `work` adds to two counters by `count`, and `show` is told their sums. Raises what the first failing task
    raised; RuntimeError when a worker died. Tasks, results and `work` go through pickle.
    """
    if workers == 1 or len(tasks) <= 1:
        _run_here(tasks, work, take, show)
        return
    # fork would copy whatever threads and handles the caller has, and obstore does not survive it.
    context = multiprocessing.get_context("forkserver")
    counters = context.Array("q", 2)
    # The fork server has the environment of when it was started, perhaps without today's credentials.
    shared = (counters, dict(os.environ))
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _start_worker, shared)
    waiting: set[Future[Result]] = set()
    try:
        # Long tasks first would be faster by a little; in order, a killed run has finished those in front.
        waiting = {pool.submit(_work, work, task) for task in tasks}
        while waiting:
            done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            failed = [future for future in done if future.exception() is not None]
            for future in done.difference(failed):
                take(future.result())
            show(*counters[:])
            for future in failed:
                future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker died, most likely for want of memory: run the same command again with fewer --workers; "
            "what is finished is kept."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        for future in waiting:
            if future.done() and not future.cancelled() and future.exception() is None:
                take(future.result())


def _run_here(
    tasks: Sequence[Task], work: Callable[[Task, Count], Result], take: Callable[[Result], None], show: Count
) -> None:
    sums = [0, 0]

    def count(first: int, second: int) -> None:
        sums[0] += first
        sums[1] += second
        show(*sums)

    for task in tasks:
        take(work(task, count))


def _start_worker(counters: Any, environment: dict[str, str]) -> None:
    global _counters
    _counters = counters
    os.environ.clear()
    os.environ.update(environment)
    cv2.setNumThreads(0)  # the processes are the parallelism
    leave_with_parent()


@lru_cache  # once a process
def leave_with_parent() -> None:
    """End this process when the one that started it ends, also by kill -9.

    What the fork server starts outlives a killed parent otherwise, waiting for ever: the pipe on whose end the server
    would leave is held open by its own children.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(work: Callable[[Task, Count], Result], task: Task) -> Result:
    return work(task, _count)


def _count(first: int, second: int) -> None:
    with _counters.get_lock():
        _counters[0] += first
        _counters[1] += second
