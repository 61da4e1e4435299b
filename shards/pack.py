"""Raw frames -> shards, index, and `shards.json` as the commit.

A pack that was killed and is run again keeps the finished shards whose plan is still the same. The last act
writes the index, then `shards.json`.
"""

import errno
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from shards import crew, destination, index
from shards.allot import ShardPlan, allot
from shards.partition import SPLITS, Partition
from shards.partition import load as load_partition
from shards.sequence import COMPRESSION_LEVEL, LEVELS
from shards.silhouettes import HEIGHT, WIDTH
from shards.skips import Skips
from shards.sources import RawSequence, find_layout
from shards.tar import FinishedShard, write_shard

DEFAULT_SHARD_MB = 32  # small enough that a node's cache fills evenly and eight workers share CASIA-B

REPORT_NAME = "pack-report.json"

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class PackStoppedError(OSError):
    """The disk is full, the network is gone, or a right is missing. The message says what is kept."""


@dataclass
class PackSummary:
    """What a pack did. `print` it with rich for the tables."""

    name: str
    to: str
    partition: str
    level: int  # of compression
    fingerprint: str
    num_shards: int
    num_shards_kept: int  # of them, finished by an earlier run
    num_bytes: int
    splits: dict[str, dict[str, int]]  # split -> subjects, sequences, frames
    seconds: float
    num_raw_frames: int  # read in this run; of pickles, as many as their size suggests
    skips: Skips = field(default_factory=Skips)

    @property
    def frames_per_second(self) -> float:
        return self.num_raw_frames / self.seconds if self.seconds > 0 else 0.0

    def report(self) -> dict[str, Any]:
        """What goes into `pack-report.json`: nothing that differs between two packs of the same source."""
        return {
            "name": self.name,
            "partition": self.partition,
            "level": self.level,
            "fingerprint": self.fingerprint,
            "shards": self.num_shards,
            "bytes": self.num_bytes,
            "splits": self.splits,
            "skipped": self.skips.to_json(),
        }

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        kept = f", {self.num_shards_kept} of them kept from an earlier run" if self.num_shards_kept else ""
        yield (
            f"{self.name} packed into {self.to}: {self.num_shards} shards{kept}, "
            f"{self.num_bytes / 1e6:,.1f} MB, {self.seconds:,.1f} s, {self.frames_per_second:,.0f} frames/s\n"
            f"fingerprint {self.fingerprint}"
        )
        packed = Table("split", "subjects", "sequences", "frames", title="packed")
        for split, counts in self.splits.items():
            packed.add_row(split, *(f"{counts[what]:,}" for what in ("subjects", "sequences", "frames")))
        yield packed
        if self.skips:
            skipped = Table("why", "count", "such as", title="left out or altered")
            for reason, count, examples in self.skips:
                skipped.add_row(reason, f"{count:,}", examples[0])
            yield skipped


def pack(
    layout: str,
    source: str | Path,
    to: str | Path,
    partition: str | Path | None = None,
    workers: int | None = None,
    shard_size_mb: float = DEFAULT_SHARD_MB,
    progress: bool = True,
    level: int = COMPRESSION_LEVEL,
) -> PackSummary:
    """Pack the raw frames under `source` into `to`, a local folder or an s3://, gs:// or az:// URL. Same
    source and level, same bytes, whatever `workers` and `to` are.

    partition: a built-in name, a YAML file or OpenGait's JSON; the layout's own unless given. workers:
    processes; as many as there are cores unless given. shard_size_mb: about how large a shard becomes, in MB.
    level: of libdeflate, 1 (fast) to 12 (small).

    Raises ValueError for an unknown layout, partition, level or a source of another layout, FileNotFoundError for a
    missing source, FileExistsError when `to` is a data set already or holds other things, PackStoppedError
    when disk or network give out.
    """
    started = time.perf_counter()
    source, goal = Path(source), destination.at(to)
    chosen = find_layout(layout)
    if partition is None and chosen.partition is None:
        raise ValueError(f"layout {layout} brings no partition of its own: name one by --partition NAME|FILE.")
    subjects = load_partition(partition or str(chosen.partition))
    # Not the layout's: other people in CASIA-B's layout are not CASIA-B.
    name = Path(subjects.name).stem.lower()
    num_workers = crew.num_workers(workers)
    if shard_size_mb <= 0:
        raise ValueError(f"shard size must be above 0 MB, it is {shard_size_mb}.")
    if level not in LEVELS:
        raise ValueError(f"level must be {LEVELS[0]} to {LEVELS[-1]}, it is {level}.")
    goal.refuse_occupied()  # before the source is listed, which may take minutes
    with _progress(progress) as bar:
        plans, skips = _plan(chosen.name, source, subjects, int(shard_size_mb * 1e6), level, bar)
    with goal.held():
        finished = goal.recall(plans)
        num_kept = len(finished)
        missing = [plan for plan in plans if plan.name not in finished]
        try:
            with _progress(progress) as bar:
                _make(missing, _Job(layout, source, goal), num_workers, finished, bar)
            for plan in plans:
                skips.merge(finished[plan.name].skips)
            in_order = [finished[plan.name] for plan in plans]
            summary = _commit(in_order, name, subjects.name, level, goal, skips)
        except OSError as error:
            raise _stopped(error, goal.url, len(finished), len(plans)) from error
    summary.num_shards_kept = num_kept
    summary.num_raw_frames = sum(sequence.num_raw_frames for plan in missing for sequence in plan.sequences)
    summary.seconds = time.perf_counter() - started
    return summary


def _plan(
    layout: str, source: Path, partition: Partition, shard_bytes: int, level: int, bar: Progress
) -> tuple[list[ShardPlan], Skips]:
    skips = Skips()
    task = bar.add_task("listing", total=None, rate="")

    def counted() -> Iterator[RawSequence]:
        for sequence in find_layout(layout).discover(source, skips):
            bar.advance(task)
            yield sequence

    plans = allot(counted(), partition, layout, shard_bytes, skips, level)
    bar.remove_task(task)
    return plans, skips


@dataclass(frozen=True)
class _Job:
    """Makes a shard by its plan, here or in another process."""

    layout: str
    source: Path
    goal: destination.Destination

    def __call__(self, plan: ShardPlan, count: crew.Count) -> FinishedShard:
        return self.goal.make(
            plan.name, lambda file: write_shard(plan, self.layout, self.source, file, partial(count, 1))
        )


def _make(plans: list[ShardPlan], job: _Job, num_workers: int, made: dict[str, FinishedShard], bar: Progress) -> None:
    """Make the shards, whole shards in parallel, and put them into `made` as they come."""
    task = bar.add_task("packing", total=sum(len(plan.sequences) for plan in plans), rate="")
    started = time.perf_counter()

    def show(num_sequences: int, num_frames: int) -> None:
        rate = num_frames / max(time.perf_counter() - started, 1e-9)
        bar.update(task, completed=num_sequences, rate=f"{rate:,.0f} frames/s")

    crew.run(plans, job, num_workers, lambda finished: made.update({finished.name: finished}), show)


def _stopped(error: OSError, to: str, num_finished: int, num_shards: int) -> PackStoppedError:
    """Why, what is kept, and what to do."""
    if error.errno in _NO_SPACE:
        place = f" ({error.filename})" if error.filename else ""
        why, remedy = f"the disk is full{place}", "free some space (also in TMPDIR when packing to a bucket)"
    elif error.errno == errno.EFBIG:
        why, remedy = "a file may not grow any larger here", "raise the limit (ulimit -f)"
    elif isinstance(error, ConnectionError):
        why, remedy = str(error).rstrip("."), "wait for the network"
    else:
        why, remedy = str(error).rstrip("."), "correct this"
    stopped = PackStoppedError(
        f"packing into {to} stopped: {why}. {num_finished} of {num_shards} shards are finished and kept: "
        f"{remedy}, then run the same command again."
    )
    stopped.errno = error.errno
    return stopped


def _commit(
    finished: list[FinishedShard], name: str, partition: str, level: int, goal: destination.Destination, skips: Skips
) -> PackSummary:
    """Write the index, the report, and last `shards.json`. A shard left without a sequence is taken away."""
    table = pa.concat_tables([shard.rows for shard in finished])
    if table.num_rows == 0:
        raise ValueError(f"no sequence has a usable frame: {skips}.")
    encoded = index.encode_index(table)
    shards = tuple(
        index.Shard(shard.name, shard.num_bytes, shard.sha256, shard.rows.num_rows)
        for shard in finished
        if shard.rows.num_rows
    )
    manifest = index.Manifest(name, HEIGHT, WIDTH, shards, index.fingerprint(encoded))
    summary = PackSummary(
        name=name,
        to=goal.url,
        partition=partition,
        level=level,
        fingerprint=manifest.index_sha256,
        num_shards=len(shards),
        num_shards_kept=0,
        num_bytes=sum(shard.bytes for shard in shards),
        splits=_count_splits(table),
        seconds=0.0,
        num_raw_frames=0,
        skips=skips,
    )
    report = (json.dumps(summary.report(), indent=1) + "\n").encode()
    goal.commit(
        {shard.name for shard in shards},
        {index.INDEX_NAME: encoded, REPORT_NAME: report, index.MANIFEST_NAME: manifest.to_json()},
    )
    return summary


def _count_splits(table: pa.Table) -> dict[str, dict[str, int]]:
    counted = table.group_by("split").aggregate([("subject", "count_distinct"), ("key", "count"), ("frames", "sum")])
    counts = {
        row["split"]: {
            "subjects": row["subject_count_distinct"],
            "sequences": row["key_count"],
            "frames": row["frames_sum"],
        }
        for row in counted.to_pylist()
    }
    return {split: counts[split] for split in SPLITS if split in counts}


def _progress(enabled: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sequences  {task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not enabled,
        transient=True,
    )
