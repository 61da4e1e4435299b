"""Sequences -> embeddings, by all processes of a launch, on disk as they come.

The work is cut into batches of sequences of equal length: nothing is padded, so each embedding is the one the
sequence gets alone. The cut does not depend on the number of processes, and a finished batch is a file: a stopped
run goes on where it was, also with more or fewer processes.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from shards.silhouettes import cut

if TYPE_CHECKING:
    from accelerate import Accelerator

    from shards import ShardSet

Embedder = Callable[[torch.Tensor], torch.Tensor]
"""uint8 [n, frames, 64, 44] -> float [n, parts, channels]"""

FRAMES_PER_BATCH = 2048
"""Silhouettes embedded at once; bounds memory. A longer sequence is a batch of its own."""


def equal_lengths(frames: np.ndarray, frames_per_batch: int = FRAMES_PER_BATCH) -> list[np.ndarray]:
    """Positions of sequences, int64, in batches of one length each; longest first, so that ranks end together.

    `frames` int [n]: the length of each sequence.
    """
    order = np.argsort(-frames, kind="stable")
    changes = np.flatnonzero(np.diff(frames[order])) + 1
    batches = []
    for start, stop in pairwise([0, *changes, len(order)]):
        size = max(frames_per_batch // max(int(frames[order[start]]), 1), 1)
        batches += [order[i : min(i + size, stop)] for i in range(start, stop, size)]
    return [batch for batch in batches if len(batch)]


def deal(batches: Sequence[np.ndarray], frames: np.ndarray, world_size: int) -> list[list[int]]:
    """Numbers of the batches each process takes: each next one goes to whoever has the fewest frames so far."""
    loads, hands = np.zeros(world_size, np.int64), [[] for _ in range(world_size)]  # type: ignore[var-annotated]
    for number, batch in enumerate(batches):
        poorest = int(loads.argmin())
        hands[poorest].append(number)
        loads[poorest] += int(frames[batch].sum())
    return hands


@dataclass(frozen=True)
class Work:
    """What is embedded, and where the finished batches are kept."""

    shard_set: "ShardSet"
    rows: np.ndarray
    """int64 [n], rows of the index."""
    folder: Path

    @property
    def frames(self) -> np.ndarray:
        """int [n]"""
        return self.shard_set.index["frames"].take(self.rows.tolist()).to_numpy()

    @classmethod
    def at(cls, folder: Path, shard_set: "ShardSet", rows: np.ndarray, embedder: str) -> "Work":
        """`embedder` names exactly what makes the embeddings: with another one, nothing kept is believed."""
        content = hashlib.sha256(f"{shard_set.fingerprint} {embedder} {FRAMES_PER_BATCH}".encode())
        content.update(rows.tobytes())
        return cls(shard_set, rows, folder / content.hexdigest()[:16])

    def file(self, number: int) -> Path:
        return self.folder / f"batch-{number:07d}.npy"


class _ToRead(Dataset[tuple[int, torch.Tensor]]):
    def __init__(self, work: Work, batches: list[np.ndarray], numbers: list[int]) -> None:
        self.work, self.batches, self.numbers = work, batches, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> tuple[int, torch.Tensor]:
        rows = self.work.rows[self.batches[self.numbers[i]]]
        sequences = self.work.shard_set.read(rows)
        return self.numbers[i], torch.from_numpy(np.stack([cut(sequence) for sequence in sequences]))


def embed(work: Work, embedder: Embedder, accelerator: "Accelerator", workers: int, label: str) -> np.ndarray | None:
    """Embeds all rows with all processes; float32 [n, parts, channels] on the main process, None on the others.

    Every process must call it.
    """
    frames = work.frames
    batches = equal_lengths(frames)
    mine = deal(batches, frames, accelerator.num_processes)[accelerator.process_index]
    todo = [number for number in mine if not work.file(number).exists()]
    work.folder.mkdir(parents=True, exist_ok=True)
    done = sum(len(batches[n]) for n in mine) - sum(len(batches[n]) for n in todo)
    with _progress(accelerator) as bar:
        task = bar.add_task(label, total=sum(len(batches[n]) for n in mine), completed=done)
        for number, silhouettes in _read_ahead(_ToRead(work, batches, todo), workers, accelerator.device):
            embeddings = embedder(silhouettes.to(accelerator.device, non_blocking=True))
            _write(work.file(number), embeddings.float().cpu().numpy())
            bar.advance(task, len(silhouettes))
    accelerator.wait_for_everyone()
    return _collect(work, batches) if accelerator.is_main_process else None


def _read_ahead(data: _ToRead, workers: int, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    return iter(
        DataLoader(
            data,
            batch_size=None,
            num_workers=workers if len(data) else 0,
            multiprocessing_context="forkserver" if workers and len(data) else None,
            pin_memory=device.type == "cuda",
        )
    )


def _write(path: Path, embeddings: np.ndarray) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, embeddings)
    partial.replace(path)


def _collect(work: Work, batches: list[np.ndarray]) -> np.ndarray:
    """All embeddings in the order of the rows, in one memory-mapped file beside the batches."""
    whole: np.ndarray | None = None
    for number, batch in enumerate(batches):
        part = np.load(work.file(number))
        if whole is None:
            shape = (len(work.rows), *part.shape[1:])
            whole = np.lib.format.open_memmap(work.folder / "all.npy", "w+", np.float32, shape)
        whole[batch] = part
    assert whole is not None, "no rows to embed"
    return whole


def _progress(accelerator: "Accelerator") -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("embed: {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (accelerator.is_main_process and console.is_terminal),
    )
