"""Sequences -> embeddings, by all processes of a launch, on disk as they come.

The work is cut into batches of sequences of equal length: nothing is padded, so each embedding is the one the
sequence gets alone. The cut does not depend on the number of processes, and a finished batch is a file: a stopped
run goes on where it was, also with more or fewer processes. All processes must see the folder.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline import world
from pipeline.baselines import gei
from pipeline.long_sequences import STRIDE, embed_long
from pipeline.metrics.distances import give_back
from pipeline.model import HSTL
from pipeline.progress import progress
from shards.silhouettes import cut

if TYPE_CHECKING:
    from accelerate import Accelerator

    from shards import ShardSet

Embedder = Callable[[torch.Tensor], torch.Tensor]
"""uint8 [n, frames, 64, 44] -> float [n, parts, channels]"""

FRAMES_AT_ONCE = {"cpu": 256, "cuda": 4096}
"""Silhouettes a process embeds at once, by kind of device: CASIA-B's network needs about 3 MB a frame."""


def frames_at_once(device: torch.device) -> int:
    """See `FRAMES_AT_ONCE`; a kind of device not named there counts as a CPU."""
    return FRAMES_AT_ONCE.get(device.type, FRAMES_AT_ONCE["cpu"])


def network_embedder(network: HSTL, most_frames: int) -> Embedder:
    """The network as uint8 silhouettes -> embeddings; sequences of over `most_frames` go piece by piece."""

    def embedder(silhouettes: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            if silhouettes.shape[1] > max(most_frames, STRIDE):
                return embed_long(network, silhouettes, most_frames)
            return network.embed(silhouettes.float() / 255)

    return embedder


def silhouette_embedder(silhouettes: torch.Tensor) -> torch.Tensor:
    """Gait energy images."""
    return torch.from_numpy(np.stack([gei(sequence) for sequence in silhouettes.cpu().numpy()]))


def equal_lengths(frames: np.ndarray, most_frames: int) -> list[np.ndarray]:
    """Positions of sequences, int64, in batches of one length each; longest first, so that ranks end together.

    `frames` int [n]: the length of each sequence. A batch holds at most `most_frames` frames, or one sequence.
    """
    order = np.argsort(-frames, kind="stable")
    changes = np.flatnonzero(np.diff(frames[order])) + 1
    batches = []
    for start, stop in pairwise([0, *changes.tolist(), len(order)]):
        if start < stop:
            size = max(most_frames // max(int(frames[order[start]]), 1), 1)
            batches += [order[i : min(i + size, stop)] for i in range(start, stop, size)]
    return batches


def deal(batches: Sequence[np.ndarray], frames: np.ndarray, world_size: int) -> list[list[int]]:
    """Numbers of the batches each process takes: each next one goes to whoever has the fewest frames so far."""
    loads = np.zeros(world_size, np.int64)
    hands: list[list[int]] = [[] for _ in range(world_size)]
    for number, batch in enumerate(batches):
        poorest = int(loads.argmin())
        hands[poorest].append(number)
        loads[poorest] += int(frames[batch].sum())
    return hands


@dataclass(frozen=True)
class Work:
    """What is embedded, and where the embeddings are kept."""

    shard_set: "ShardSet"
    rows: np.ndarray
    """int64 [n], rows of the index."""
    folder: Path
    most_frames: int
    """Frames embedded at once."""
    frames_limit: int | None = None
    """Longer sequences are cut to this many frames, the middle ones. Not exact: rates depend on it."""

    @cached_property
    def frames(self) -> np.ndarray:
        """int64 [n], as embedded."""
        frames = self.shard_set.index["frames"].take(self.rows.tolist()).to_numpy().astype(np.int64)
        return frames if self.frames_limit is None else np.minimum(frames, self.frames_limit)

    @classmethod
    def at(
        cls,
        folder: Path,
        shard_set: "ShardSet",
        rows: np.ndarray,
        embedder: str,
        most_frames: int,
        frames_limit: int | None = None,
    ) -> "Work":
        """`embedder` names exactly what makes the embeddings: with another one, nothing kept is believed."""
        content = hashlib.sha256(f"{shard_set.fingerprint} {embedder} {most_frames} {frames_limit}".encode())
        content.update(rows.tobytes())
        return cls(shard_set, rows, folder / content.hexdigest()[:16], most_frames, frames_limit)

    @property
    def whole(self) -> Path:
        """All embeddings in the order of the rows; there once all batches are."""
        return self.folder / "all.npy"

    def file(self, number: int) -> Path:
        """Embeddings of one batch."""
        return self.folder / f"batch-{number:07d}.npy"


class _ToRead(Dataset[tuple[int, torch.Tensor]]):
    def __init__(self, work: Work, batches: list[np.ndarray], numbers: list[int]) -> None:
        self.work, self.batches, self.numbers = work, batches, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> tuple[int, torch.Tensor]:
        rows = self.work.rows[self.batches[self.numbers[i]]]
        limit = self.work.frames_limit
        sequences = [middle(cut(sequence), limit) for sequence in self.work.shard_set.read(rows)]
        return self.numbers[i], torch.from_numpy(np.stack(sequences))


def middle(silhouettes: np.ndarray, num_frames: int | None) -> np.ndarray:
    """At most `num_frames` frames [frames, height, width], from the middle; None: all."""
    if num_frames is None or len(silhouettes) <= num_frames:
        return silhouettes
    start = (len(silhouettes) - num_frames) // 2
    return silhouettes[start : start + num_frames]


def embed(work: Work, embedder: Embedder, accelerator: "Accelerator", workers: int, label: str) -> np.ndarray | None:
    """Embeds all rows with all processes; float32 [n, parts, channels] on the main process, None on the others.

    The array is memory-mapped. Every process must call it. Raises ValueError where there is nothing to embed.
    """
    if not len(work.rows):
        raise ValueError(f"{label}: there is no sequence to embed in {work.shard_set.url}")
    if not world.agree(accelerator, work.whole.is_file):
        batches = equal_lengths(work.frames, work.most_frames)
        _embed_batches(work, batches, embedder, accelerator, workers, label)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _collect(work, batches)
    return np.load(work.whole, mmap_mode="r") if accelerator.is_main_process else None


def _embed_batches(
    work: Work,
    batches: list[np.ndarray],
    embedder: Embedder,
    accelerator: "Accelerator",
    workers: int,
    label: str,
) -> None:
    """This process's batches, but those that are there from an earlier run."""
    mine = deal(batches, work.frames, accelerator.num_processes)[accelerator.process_index]
    todo = [number for number in mine if not work.file(number).exists()]
    work.folder.mkdir(parents=True, exist_ok=True)
    total = sum(len(batches[n]) for n in mine)
    done = total - sum(len(batches[n]) for n in todo)
    with progress(f"embed: {label}", total, done=done, shown=accelerator.is_main_process) as show:
        for number, silhouettes in _read_ahead(_ToRead(work, batches, todo), workers, accelerator.device):
            embeddings = embedder(silhouettes.to(accelerator.device, non_blocking=True))
            _write(work.file(number), embeddings.float().cpu().numpy())
            done += len(silhouettes)
            show(done)


def _read_ahead(data: _ToRead, workers: int, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    workers = min(workers, len(data))
    return iter(
        DataLoader(
            data,
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="forkserver" if workers else None,
            pin_memory=device.type == "cuda",
        )
    )


def _write(path: Path, embeddings: np.ndarray) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, embeddings)
    partial.replace(path)


def _collect(work: Work, batches: list[np.ndarray]) -> None:
    """Gathers the batches in one file, which takes their place."""
    if absent := [n for n in range(len(batches)) if not work.file(n).is_file()]:
        raise FileNotFoundError(
            f"{work.file(absent[0])} and {len(absent) - 1} more batches are not there: all processes must write "
            f"to one disk that the main process sees; give a `run` on a shared one"
        )
    partial = work.whole.with_suffix(".partial")
    whole: np.memmap | None = None
    for number, batch in enumerate(batches):
        part = np.load(work.file(number))
        if whole is None:
            shape = (len(work.rows), *part.shape[1:])
            whole = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
        whole[batch] = part
        give_back(whole)
    assert whole is not None, "no rows to embed"
    whole.flush()
    del whole
    partial.replace(work.whole)
    for number in range(len(batches)):
        work.file(number).unlink()
