"""Training with one fault put into one process at one step; what a test launches in place of `pipeline.train`.

FAULT is `kind:rank:step`: gradient (a gradient turns NaN, the loss stays finite), die (killed), hang (stops for good in
the step), memory (the process may have no more memory than it has), loader (its loader fails), disk (files may not
grow beyond 100 kB from that step on).
"""

import os
import resource
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline import train
from pipeline.model import HSTL, HSTLOutput


class Faulty(HSTL):
    """HSTL whose forward pass of one step does something bad."""

    calls = 0

    def forward(self, silhouettes: Tensor) -> HSTLOutput:
        kind, rank, step = os.environ["FAULT"].split(":")
        if os.environ.get("RANK", "0") == rank and self.calls == int(step):
            _fail(kind, self)
        self.calls += 1
        return super().forward(silhouettes)


def _fail(kind: str, network: HSTL) -> None:
    if kind == "gradient":
        # Of the first layer: behind it, statistics of the global batch would carry the NaN to the other processes.
        network.arme[0].register_forward_hook(_spoil)
    elif kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "memory":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
        torch.empty(1 << 30)
    elif kind == "disk":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def _spoil(module: nn.Module, arguments: object, regions: list[Tensor]) -> None:
    regions[0].register_hook(lambda gradient: gradient * torch.nan)


class FaultyBatches(train.shards.Batches):  # type: ignore[name-defined, misc]
    """Batches of which one cannot be made."""

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        kind, rank, at = os.environ["FAULT"].split(":")
        if kind == "loader" and os.environ.get("RANK", "0") == rank and step == int(at):
            raise KeyError("the loader met something nobody thought of")
        return super().__getitem__(step)


if __name__ == "__main__":
    train.HSTL = Faulty  # type: ignore[misc]
    train.shards.Batches = FaultyBatches  # type: ignore[attr-defined, misc]
    train.main()
