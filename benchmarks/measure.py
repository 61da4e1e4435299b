"""Timing that stands up to a shared machine: pairs in turn, medians, and the load beside them."""

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch


class Times(NamedTuple):
    """Seconds of every repeat."""

    wall: list[float]
    cpu: list[float]
    """Of this process, all threads together: what it took also while others held the cores."""

    @property
    def seconds(self) -> float:
        return statistics.median(self.wall)

    @property
    def cpu_seconds(self) -> float:
        return statistics.median(self.cpu)


def alternate(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Each function once unmeasured, then all in turn, `repeats` times over."""
    times = {name: Times([], []) for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            synchronize()
            if repeat:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].cpu.append(time.process_time() - cpu)
    return times


def ratio(slow: Times, fast: Times) -> dict[str, float]:
    """Median over the pairs of how many times faster the second is, by the clock and by CPU seconds."""
    return {
        "clock": statistics.median(_ratios(slow.wall, fast.wall)),
        "cpu": statistics.median(_ratios(slow.cpu, fast.cpu)),
    }


def _ratios(above: Iterable[float], below: Iterable[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, object]:
    """Hardware, versions and load."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": torch.get_num_threads(),
        "load over the last minute": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
