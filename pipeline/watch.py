"""What a person sees of a training run while it goes: a bar, metrics.jsonl, trackers."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from pipeline.metrics_log import MetricsLog
from pipeline.recipe import Recipe
from pipeline.trackers import Trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

    from shards import ShardSet


class Watch:
    """Collects the losses and times of every step; every `log_every` steps reports their means.

    Losses are summed on the device and fetched once a report: reading one each step would stall a GPU.
    """

    def __init__(
        self, accelerator: "Accelerator", recipe: Recipe, run: Path, start: int, shard_set: "ShardSet"
    ) -> None:
        self.accelerator, self.recipe, self.run, self.shard_set = accelerator, recipe, run, shard_set
        self.step = start
        self._sums: dict[str, Tensor] = {}
        self._steps_since = 0
        self._waited = self._saved = 0.0
        self._since = self._begin = time.perf_counter()
        self._log: MetricsLog | None = None
        console = Console(stderr=True)
        self._bar = _Bar(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (accelerator.is_main_process and console.is_terminal),
        )
        self._task = self._bar.add_task("train", total=recipe.train.steps, completed=start, line="")

    def __enter__(self) -> "Watch":
        if self.accelerator.is_main_process:
            self._log = MetricsLog(self.run, self.step)
        # Not given to the Accelerator when it was made: the run's folder is agreed on only after that.
        self._trackers = Trackers(self.accelerator, self.recipe, self.run, self.step)
        self._bar.start()
        self._since = time.perf_counter()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.stop()
        failed = exception[0] is not None
        self._trackers.finish(failed)
        if not failed:  # leaving the process group would wait for processes that may hang: let an error out first
            self.accelerator.state.destroy_process_group()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Time spent inside is left out of the rates and reported by itself."""
        begin = time.perf_counter()
        yield
        self._saved += time.perf_counter() - begin

    def step_done(self, step: int, terms: dict[str, Tensor], rate: float) -> None:
        """Counts a finished step (its number after the update), and reports where one is due."""
        self.step = step
        self._steps_since += 1
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._bar.update(self._task, completed=step)
        if step % self.recipe.train.log_every == 0 or step == self.recipe.train.steps:
            self._report(rate)

    def _report(self, rate: float) -> None:
        names = list(self._sums)
        sums = torch.stack([self._sums[name].double() for name in names])
        memory = sums.new_tensor([peak_memory(self.accelerator.device)])
        ranks = self.accelerator.gather(torch.cat([sums / self._steps_since, memory])).view(-1, len(names) + 1)
        means = ranks[:, :-1].mean(0).tolist()
        now = time.perf_counter()
        seconds = max(now - self._since - self._saved, 1e-9)
        batch = self.recipe.batch
        line = {
            "step": self.step,
            "steps": self._steps_since,
            **dict(zip(names, means, strict=True)),
            "lr": rate,
            "steps_per_s": self._steps_since / seconds,
            "sequences_per_s": self._steps_since * batch.subjects * batch.sequences / seconds,
            "data_wait": self._waited / seconds,
            "memory_bytes": int(ranks[:, -1].max()),
            "save_seconds": self._saved,
            "seconds": now - self._begin,
        }
        if self._log is not None:
            # Requests, retries, cache hits of this process and its loader workers: a slow store shows here first.
            self._log.write({**line, "store": self.shard_set.statistics})
            self._show(line)
        self._trackers.log({k: v for k, v in line.items() if k != "step"}, self.step)
        self._sums, self._steps_since = {}, 0
        self._waited = self._saved = 0.0
        self._since = now

    def _show(self, line: dict[str, Any]) -> None:
        text = (
            f"loss {line['loss']:.3f} (triplet {line['triplet']:.3f}, cross-entropy {line['cross_entropy']:.3f})  "
            f"lr {line['lr']:.0e}  {line['steps_per_s']:.2f} steps/s  {line['sequences_per_s']:.0f} sequences/s  "
            f"waiting for data {line['data_wait']:.0%}  memory {line['memory_bytes'] / 2**30:.1f} GiB"
        )
        if self._bar.disable:
            self._bar.console.print(f"step {self.step}/{self.recipe.train.steps}  {text}", soft_wrap=True)
        else:
            self._bar.update(self._task, line=text)


class _Bar(Progress):
    """A bar, and below it the newest line, which a narrow terminal would cut off beside it."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.fields["line"]) for task in self.tasks)


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: on a GPU of its tensors, on CPUs of this process without its loader workers."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Not getrusage's figure, which begins with that of the program that started this one.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
