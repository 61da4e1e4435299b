"""Which sequence goes into which shard: pure, decided before a single frame is read."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from shards.partition import SPLITS, Partition
from shards.sequence import COMPRESSION_LEVEL, make_key
from shards.skips import Skips
from shards.sources import RawSequence

SHUFFLE_SEED = 0

# Measured on walking people 64 x 64 pixels take about 330 bytes. A sequence's two tar headers, its JSON and
# the padding to 512 take about 2,300 more.
BYTES_PER_FRAME = 330
BYTES_PER_SEQUENCE = 2_300

# A subject stands whole in a shard unless that shard became larger than this many others.
_LARGEST = 4

# Part of every shard's digest: raise it when the same raw frames would give other bytes.
_RECIPE = 1


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be: file name, split, sequences in order, how hard they are compressed.

    `digest` changes whenever one of these does.
    """

    name: str
    split: str
    sequences: tuple[RawSequence, ...]
    level: int
    digest: str


def allot(
    sequences: Iterable[RawSequence],
    partition: Partition,
    layout: str,
    shard_bytes: int,
    skips: Skips,
    level: int = COMPRESSION_LEVEL,
) -> list[ShardPlan]:
    """Sequences in any order -> shards of about `shard_bytes` at the usual level, train before test.

    Subjects are shuffled once by a fixed seed and stand whole in one shard, so any run of shards is a fair
    sample; within a subject sequences go by condition and view. A subject of more than `shard_bytes` has a
    shard of its own; one of more than four times that (such as GREW's 24,000 probes, which count as one)
    goes on over several. Raises ValueError for a key that comes twice, and when no subject is in the
    partition.
    """
    by_subject: dict[str, list[RawSequence]] = {}
    keys: dict[str, str] = {}
    for sequence in sequences:
        key = make_key(sequence.subject, sequence.condition, sequence.view)
        if (other := keys.setdefault(key, sequence.path)) != sequence.path:
            raise ValueError(f"{other} and {sequence.path} both have the key {key!r}: rename one of them.")
        by_subject.setdefault(sequence.subject, []).append(sequence)
    plans = []
    for split in SPLITS:
        subjects = sorted(subject for subject in by_subject if partition.split_of(subject) == split)
        order = np.random.default_rng(SHUFFLE_SEED).permutation(len(subjects))
        shuffled = [by_subject[subjects[i]] for i in order]
        for number, content in enumerate(_fill(shuffled, shard_bytes)):
            name = f"{split}-{number:06d}.tar"
            plans.append(ShardPlan(name, split, content, level, _digest(layout, name, content, level)))
    if not plans:
        some = ", ".join(sorted(by_subject)[:3])
        raise ValueError(
            f"none of the {len(by_subject)} subjects found (such as {some}) is in partition {partition.name}"
            f": name another by --partition."
        )
    for subject in sorted(by_subject):
        if partition.split_of(subject) is None:
            reason = f"sequence of a subject in neither train nor test of partition {partition.name}"
            skips.add(reason, subject, len(by_subject[subject]))
    return plans


def _fill(subjects: list[list[RawSequence]], shard_bytes: int) -> Iterable[tuple[RawSequence, ...]]:
    """Contents of shards, from the sequences of each subject."""
    whole: list[list[RawSequence]] = []  # what must stay together
    for sequences in subjects:
        ordered = sorted(sequences)
        large = sum(map(_weight, ordered)) > _LARGEST * shard_bytes
        whole.extend([[sequence] for sequence in ordered] if large else [ordered])
    content: list[RawSequence] = []
    filled = 0
    for sequences in whole:
        weight = sum(map(_weight, sequences))
        if content and filled + weight > shard_bytes:
            yield tuple(content)
            content, filled = [], 0
        content.extend(sequences)
        filled += weight
    if content:
        yield tuple(content)


def _weight(sequence: RawSequence) -> int:
    """Bytes in a tar, about."""
    return BYTES_PER_FRAME * sequence.num_raw_frames + BYTES_PER_SEQUENCE


def _digest(layout: str, name: str, sequences: tuple[RawSequence, ...], level: int) -> str:
    return hashlib.sha256(json.dumps([_RECIPE, layout, name, sequences, level]).encode()).hexdigest()
