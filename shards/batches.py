"""The order of training: step -> batch, a pure function of index and seed, sliced by rank last.

An epoch is one permutation of the split's subjects, dealt out P at a time; the `num_subjects % P` left over
differ from epoch to epoch, so every subject comes equally often. Every random draw has its own generator,
keyed by what it is for.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch

from shards.silhouettes import NETWORK_WIDTH, cut
from shards.store import ShardSet

# First word of every key, or kinds of draw would share generators: numpy seeds [1, 2] and [1, 2, 0] alike.
_SUBJECTS, _SEQUENCES, _FRAMES = 1, 2, 3


@dataclass(frozen=True)
class SubjectTable:
    """The sequences of one split by subject.

    subjects: str [num_subjects], sorted; a subject's position is its label. rows: int64 [sequences], row
    numbers of the index; those of subject i are rows[starts[i] : starts[i + 1]]. starts: int64 [num_subjects
    + 1].
    """

    subjects: np.ndarray
    rows: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, index: pa.Table, split: str) -> "SubjectTable":
        """Raises ValueError when the index has no such split."""
        rows = np.flatnonzero(index["split"].to_numpy() == split)
        if not rows.size:
            known = ", ".join(sorted(index["split"].unique().to_pylist()))
            raise ValueError(f"the data set has no split {split!r}, it has: {known}.")
        subjects, labels = np.unique(index["subject"].take(rows).to_numpy().astype(str), return_inverse=True)
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], np.arange(len(subjects) + 1))
        return cls(subjects, rows[order], starts)


def plan(index: pa.Table, split: str, P: int, K: int, seed: int, step: int) -> np.ndarray:
    """Row numbers of the global batch of `step`, int64 [P * K], the K of a subject side by side."""
    return draw(SubjectTable.of(index, split), P, K, seed, step)[0]


def draw(table: SubjectTable, P: int, K: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, labels) of the global batch of `step`, int64 [P * K] each.

    P subjects, none twice; of each K sequences without replacement, or all it has, topped up by repeating
    them.
    """
    num_subjects = len(table.subjects)
    epoch, step_of_epoch = divmod(step, num_subjects // P)
    chosen = _subject_order(num_subjects, seed, epoch)[step_of_epoch * P : (step_of_epoch + 1) * P]
    generator = np.random.default_rng([_SEQUENCES, seed, step])
    rows = np.empty((P, K), np.int64)
    for i, subject in enumerate(chosen):
        start, stop = table.starts[subject], table.starts[subject + 1]
        rows[i] = table.rows[start + np.resize(generator.permutation(stop - start), K)]
    return rows.ravel(), np.repeat(chosen, K)


@lru_cache(
    maxsize=4
)  # consecutive steps share an epoch; 20,000 subjects take longer to shuffle than a batch to draw
def _subject_order(num_subjects: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([_SUBJECTS, seed, epoch]).permutation(num_subjects)
    order.flags.writeable = False
    return order


def choose_frames(
    num_frames: int, frames: int, frames_skip: int, generator: np.random.Generator
) -> np.ndarray:
    """`fixed_ordered` of OpenGait: which `frames` frames of a sequence of `num_frames`, int64 [frames].

    A random window of frames + frames_skip, the sequence repeated first when it is shorter; from the window
    `frames` sorted, without replacement.
    """
    window = frames + frames_skip
    repeats = -(-window // num_frames)
    start = generator.integers(num_frames * repeats - window + 1)
    within = np.sort(generator.permutation(window)[:frames]) if frames_skip else np.arange(frames)
    return (start + within) % num_frames


class Batches(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """A map-style data set whose index is the step: `Batches(...)[step]` is this rank's part of batch `step`.

    Give a DataLoader `sampler=range(start, total), batch_size=None`; resuming is starting at the step. The
    result holds silhouettes uint8 [b, frames, 64, 44], labels int64 [b] (the subject's position among the
    split's sorted subjects) and rows int64 [b] (of the index), b = subjects_per_batch * sequences_per_subject
    / world_size.

    Raises ValueError when the split has fewer subjects than a batch takes, or ranks cannot share a batch
    evenly.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        split: str,
        subjects_per_batch: int,
        sequences_per_subject: int,
        frames: int,
        frames_skip: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.shard_set = shard_set
        self.table = SubjectTable.of(shard_set.index, split)
        self.P, self.K = subjects_per_batch, sequences_per_subject
        self.frames, self.frames_skip = frames, frames_skip
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._check(split)
        self.rank_batch_size = self.P * self.K // world_size

    def _check(self, split: str) -> None:
        sizes = {"batch.subjects": self.P, "batch.sequences": self.K, "batch.frames": self.frames}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, it is {value}.")
        for name, value in {"frames_skip": self.frames_skip, "seed": self.seed}.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, it is {value}.")
        if self.num_classes < self.P:
            raise ValueError(
                f"batch.subjects is {self.P}, split {split!r} of {self.shard_set.url} has "
                f"{self.num_classes} subjects: set batch.subjects to {self.num_classes} or less."
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}, it must be from 0 to {self.world_size - 1}.")
        if self.P * self.K % self.world_size:
            raise ValueError(
                f"batch.subjects {self.P} x batch.sequences {self.K} = {self.P * self.K} sequences cannot be "
                f"shared evenly by {self.world_size} processes: change one of the three so that it divides."
            )

    @property
    def num_classes(self) -> int:
        """Subjects of the split."""
        return len(self.table.subjects)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        if step < 0:
            raise IndexError(f"steps start at 0, asked for {step}.")
        rows, labels = draw(self.table, self.P, self.K, self.seed, step)
        first = self.rank * self.rank_batch_size
        mine = slice(first, first + self.rank_batch_size)
        sequences = self.shard_set.read(rows[mine])
        silhouettes = np.empty((len(sequences), self.frames, self.shard_set.height, NETWORK_WIDTH), np.uint8)
        for i, sequence in enumerate(sequences):
            generator = np.random.default_rng([_FRAMES, self.seed, step, first + i])
            chosen = choose_frames(len(sequence), self.frames, self.frames_skip, generator)
            silhouettes[i] = cut(sequence)[chosen]
        return {
            "silhouettes": torch.from_numpy(silhouettes),
            "labels": torch.from_numpy(labels[mine].astype(np.int64)),
            "rows": torch.from_numpy(rows[mine]),
        }
