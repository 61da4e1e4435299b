"""The order of training: step -> batch, a pure function of index and seed, sliced by rank last.

Subjects come as one endless stream, permutation after permutation, dealt out P at a time: at every step
each has come as often as any other, or once more. Every random draw has its own generator, keyed by what it
is for.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import gcd
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from shards.crew import leave_with_parent
from shards.silhouettes import NETWORK_WIDTH, cut
from shards.store import ShardSet

# First word of every key, or kinds of draw would share generators: numpy seeds [1, 2] and [1, 2, 0] alike.
_SUBJECTS, _SEQUENCES, _FRAMES = 1, 2, 3

_LINE = np.dtype((np.void, NETWORK_WIDTH))


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
        in_split = pc.equal(index["split"], split)
        rows = np.flatnonzero(in_split.to_numpy())
        if not rows.size:
            known = ", ".join(sorted(index["split"].unique().to_pylist()))
            raise ValueError(f"the data set has no split {split!r}, it has: {known}.")
        names = index["subject"].filter(in_split).combine_chunks().dictionary_encode()
        found = names.dictionary.to_numpy(zero_copy_only=False).astype(str)
        by_name = np.argsort(found)
        label_of_code = np.empty_like(by_name)
        label_of_code[by_name] = np.arange(len(found))
        labels = label_of_code[names.indices.to_numpy()]
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], np.arange(len(found) + 1))
        return cls(found[by_name], rows[order], starts)


def plan(index: pa.Table, split: str, P: int, K: int, seed: int, step: int) -> np.ndarray:
    """Row numbers of the global batch of `step`, int64 [P * K], the K of a subject side by side."""
    return draw(SubjectTable.of(index, split), P, K, seed, step)[0]


def draw(table: SubjectTable, P: int, K: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, labels) of the global batch of `step`, int64 [P * K] each.

    P subjects, none twice; of each K sequences without replacement, or all it has, topped up by repeating
    them.
    """
    chosen = _subjects_of_step(len(table.subjects), P, seed, step)
    first, num_sequences = table.starts[chosen], table.starts[chosen + 1] - table.starts[chosen]
    width = max(K, int(num_sequences.max()))
    # The K sequences of least weight are a sample without replacement; where there is none the weight is inf.
    weights = np.random.default_rng([_SEQUENCES, seed, step]).random((P, width))
    weights[np.arange(width) >= num_sequences[:, None]] = np.inf
    lightest = np.argpartition(weights, K - 1)[:, :K] if width > K else np.broadcast_to(np.arange(K), (P, K))
    by_weight = np.argsort(np.take_along_axis(weights, lightest, 1))
    again = np.arange(K) % num_sequences[:, None]
    picked = np.take_along_axis(np.take_along_axis(lightest, by_weight, 1), again, 1)
    return table.rows[first[:, None] + picked].ravel(), np.repeat(chosen, K)


def _subjects_of_step(num_subjects: int, P: int, seed: int, step: int) -> np.ndarray:
    """Places step * P to (step + 1) * P of the stream of subjects, int64 [P]: no subject twice."""
    epoch, place = divmod(step * P, num_subjects)
    chosen = _subject_order(num_subjects, P, seed, epoch)[place : place + P]
    if (missing := P - len(chosen)) == 0:
        return chosen
    return np.concatenate([chosen, _subject_order(num_subjects, P, seed, epoch + 1)[:missing]])


@lru_cache(maxsize=4)  # consecutive steps share an epoch, and shuffling takes longer than drawing a batch
def _subject_order(num_subjects: int, P: int, seed: int, epoch: int) -> np.ndarray:
    """One epoch of the stream: a permutation whose start repeats no subject of the batch that it completes.

    Within the first P places those that the batch already has move to the end. So from 2 P subjects on an
    epoch's last places are as shuffled, and no other epoch is needed to repair the next; below that, all
    since one that began with a batch are: fewer than P, and short.
    """
    begin = epoch - epoch % (P // gcd(num_subjects, P))
    if num_subjects >= 2 * P:
        begin = max(begin, epoch - 1)
    order = np.empty(0, np.int64)
    for number in range(begin, epoch + 1):
        taken = number * num_subjects % P  # places of the shared batch that belong to the epoch before
        before = order[len(order) - taken :]
        order = np.random.default_rng([_SUBJECTS, seed, number]).permutation(num_subjects)
        repeats = np.isin(order[:P], before)
        order[:P] = np.concatenate([order[:P][~repeats], order[:P][repeats]])
    order.flags.writeable = False
    return order


def choose_frames(num_frames: np.ndarray, frames: int, frames_skip: int, generator: np.random.Generator) -> np.ndarray:
    """`fixed_ordered` of OpenGait: which `frames` frames of each sequence, int64 [n, frames].

    num_frames: how many each has, int [n].

    A random window of frames + frames_skip, the sequence repeated first when it is shorter; from the window
    `frames` sorted, without replacement.
    """
    window = frames + frames_skip
    repeats = -(-window // num_frames)
    starts = generator.integers(num_frames * repeats - window + 1)
    if frames_skip:
        weights = generator.random((len(num_frames), window))
        within = np.sort(np.argpartition(weights, frames - 1)[:, :frames])
    else:
        within = np.arange(frames)[None]
    return (starts[:, None] + within) % num_frames[:, None]


def runs(chosen: np.ndarray) -> list[list[tuple[int, int, int]]]:
    """Chosen frames, int [n, frames] -> of each sequence (start, stop, first): frames `first` and on go to places
    `start` to `stop`.

    Frames that follow one another are copied as they lie; gathered one by one they would take half as long again.
    """
    rows, starts = np.nonzero(np.diff(chosen, axis=1, prepend=-2) != 1)
    stops = np.append(starts[1:], 0)
    stops[stops == 0] = chosen.shape[1]  # a row's first run starts at 0: the one before ends its row
    found: list[list[tuple[int, int, int]]] = [[] for _ in chosen]
    for row, *run in zip(*(each.tolist() for each in (rows, starts, stops, chosen[rows, starts])), strict=True):
        found[row].append(tuple(run))
    return found


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
        self.shard_set, self.split = shard_set, split
        self.P, self.K = subjects_per_batch, sequences_per_subject
        self.frames, self.frames_skip = frames, frames_skip
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._check()
        self.rank_batch_size = self.P * self.K // world_size

    def _check(self) -> None:
        sizes = {"batch.subjects": self.P, "batch.sequences": self.K, "batch.frames": self.frames}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, it is {value}.")
        for name, value in {"frames_skip": self.frames_skip, "seed": self.seed}.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, it is {value}.")
        if self.num_classes < self.P:
            raise ValueError(
                f"batch.subjects is {self.P}, split {self.split!r} of {self.shard_set.url} has "
                f"{self.num_classes} subjects: set batch.subjects to {self.num_classes} or less."
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}, it must be from 0 to {self.world_size - 1}.")
        if self.P * self.K % self.world_size:
            raise ValueError(
                f"batch.subjects {self.P} x batch.sequences {self.K} = {self.P * self.K} sequences cannot be "
                f"shared evenly by {self.world_size} processes: change one of the three so that it divides."
            )

    @cached_property
    def table(self) -> SubjectTable:
        return SubjectTable.of(self.shard_set.index, self.split)

    def __getstate__(self) -> dict[str, Any]:
        # A loader worker makes its own from the mapped index: 10 million rows are 80 MB to pickle.
        return {name: value for name, value in self.__dict__.items() if name != "table"}

    @property
    def num_classes(self) -> int:
        """Subjects of the split."""
        return len(self.table.subjects)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        if step < 0:
            raise IndexError(f"steps start at 0, asked for {step}.")
        if torch.utils.data.get_worker_info() is not None:
            leave_with_parent()  # torch's own watch is on the fork server
        rows, labels = draw(self.table, self.P, self.K, self.seed, step)
        # Drawn for the whole batch, then sliced: ranks must agree on it.
        chosen = choose_frames(
            self.shard_set.num_frames[rows],
            self.frames,
            self.frames_skip,
            np.random.default_rng([_FRAMES, self.seed, step]),
        )
        mine = slice(self.rank * self.rank_batch_size, (self.rank + 1) * self.rank_batch_size)
        rows, labels, chosen = rows[mine], labels[mine], chosen[mine]
        silhouettes = _empty(len(rows), self.frames, self.shard_set.height, NETWORK_WIDTH)
        lines, pieces = _lines(silhouettes.numpy()), runs(chosen)
        for place, sequence in self.shard_set.each(rows):
            narrow, target = _lines(cut(sequence)), lines[place]
            for start, stop, first in pieces[place]:
                target[start:stop] = narrow[first : first + stop - start]
            del sequence, narrow  # their memory is the next one's
        return {
            "silhouettes": silhouettes,
            "labels": torch.from_numpy(labels.astype(np.int64)),
            "rows": torch.from_numpy(rows),
        }


def _lines(silhouettes: np.ndarray) -> np.ndarray:
    """uint8 [..., height, 44] -> a view [..., height] whose elements are lines of pixels: copied in two thirds of the
    time.
    """
    return silhouettes.view(_LINE)[..., 0]


def _empty(*shape: int) -> torch.Tensor:
    """uint8, in a loader worker in shared memory: the worker would copy the batch there otherwise."""
    if torch.utils.data.get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, np.uint8))  # numpy asks for huge pages: a tenth of the faults
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
