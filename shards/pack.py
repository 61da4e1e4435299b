"""Raw frames -> shards, index, and `shards.json` as the commit.

While packing, `TO/.packing/` holds the tars being written and a record of each finished one. A pack that was
killed and is run again keeps the finished shards whose plan is still the same. The last act writes the index,
then `shards.json`.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from shards import index
from shards.allot import ShardPlan, allot
from shards.partition import Partition
from shards.partition import load as load_partition
from shards.silhouettes import HEIGHT, WIDTH
from shards.skips import Skips
from shards.sources import RawSequence, find_layout
from shards.store import local_folder
from shards.tar import FinishedShard, write_shard

DEFAULT_SHARD_MB = 32  # small enough that a node's cache fills evenly and eight workers share CASIA-B

REPORT_NAME = "pack-report.json"
_WORKSHOP = ".packing"
_POLL_SECONDS = 0.2

# Counters shared with the workers: sequences done, raw frames done.
_progress_counters: Any = None


@dataclass
class PackSummary:
    """What a pack did. `print` it with rich for the tables."""

    name: str
    to: str
    partition: str
    fingerprint: str
    num_shards: int
    num_shards_kept: int  # of them, finished by an earlier run
    num_bytes: int
    splits: dict[str, dict[str, int]]  # split -> subjects, sequences, frames
    seconds: float
    num_raw_frames: int  # read in this run
    skips: Skips = field(default_factory=Skips)

    @property
    def frames_per_second(self) -> float:
        return self.num_raw_frames / self.seconds if self.seconds > 0 else 0.0

    def report(self) -> dict[str, Any]:
        """What goes into `pack-report.json`: nothing that differs between two packs of the same source."""
        return {
            "name": self.name,
            "partition": self.partition,
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
            skipped = Table("why", "count", "such as", title="skipped")
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
) -> PackSummary:
    """Pack the raw frames under `source` into the folder `to`. Same source, same bytes, whatever `workers`
    is.

    partition: a built-in name or a YAML file; the layout's own unless given. workers: processes; as many as
    there are cores unless given. shard_size_mb: about how large a shard becomes, in MB.

    Raises ValueError for an unknown layout, partition or a source of another layout, FileNotFoundError for a
    missing source, FileExistsError when `to` is a data set already or holds other things.
    """
    started = time.perf_counter()
    source, folder = Path(source), local_folder(to)
    chosen = find_layout(layout)
    if partition is None and chosen.partition is None:
        raise ValueError(
            f"layout {layout} brings no partition of its own: name one by --partition NAME|FILE."
        )
    subjects = load_partition(partition or str(chosen.partition))
    num_workers = _num_workers(workers)
    if shard_size_mb <= 0:
        raise ValueError(f"shard size must be above 0 MB, it is {shard_size_mb}.")
    _refuse_occupied(folder)  # before the source is listed, which may take minutes
    with _progress(progress) as bar:
        plans, skips = _plan(chosen.name, source, subjects, int(shard_size_mb * 1e6), bar)
    with _workshop(folder) as workshop, _progress(progress) as bar:
        kept = {plan.name: done for plan in plans if (done := _recall(plan, folder, workshop)) is not None}
        missing = [plan for plan in plans if plan.name not in kept]
        made = _make(missing, layout, source, folder, workshop, num_workers, bar)
        finished = [kept.get(plan.name) or made[plan.name] for plan in plans]
        for shard in finished:
            skips.merge(shard.skips)
        summary = _commit(finished, layout, subjects.name, folder, skips)
    summary.num_shards_kept = len(kept)
    summary.num_raw_frames = sum(sequence.num_raw_frames for plan in missing for sequence in plan.sequences)
    summary.seconds = time.perf_counter() - started
    return summary


def _num_workers(workers: int | None) -> int:
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if workers < 1:
        raise ValueError(f"workers must be at least 1, it is {workers}.")
    return workers


def _plan(
    layout: str, source: Path, partition: Partition, shard_bytes: int, bar: Progress
) -> tuple[list[ShardPlan], Skips]:
    skips = Skips()
    task = bar.add_task("listing", total=None, rate="")

    def counted() -> Iterator[RawSequence]:
        for sequence in find_layout(layout).discover(source, skips):
            bar.advance(task)
            yield sequence

    plans = allot(counted(), partition, layout, shard_bytes, skips)
    bar.remove_task(task)
    return plans, skips


def _refuse_occupied(folder: Path) -> None:
    """Raises FileExistsError when `folder` is a data set, or holds other things than an unfinished pack."""
    if (folder / index.MANIFEST_NAME).exists():
        raise FileExistsError(
            f"{folder} is a data set already ({index.MANIFEST_NAME} is there): "
            f"pack into another folder, or delete this one first."
        )
    if folder.exists() and not (folder / _WORKSHOP).exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} holds other things than an unfinished pack: pack into a new or empty folder."
        )


@contextmanager
def _workshop(folder: Path) -> Iterator[Path]:
    """`folder/.packing`, held by this process alone; gone once the pack has committed."""
    workshop = folder / _WORKSHOP
    workshop.mkdir(parents=True, exist_ok=True)
    with (workshop / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(
                f"another process is packing into {folder} right now: wait for it."
            ) from None
        _refuse_occupied(folder)  # again: another pack may have committed since
        for torn in workshop.glob("*.part"):
            torn.unlink()
        yield workshop
        shutil.rmtree(workshop)


def _recall(plan: ShardPlan, folder: Path, workshop: Path) -> FinishedShard | None:
    """The shard an earlier run finished by the same plan, if it is still there whole."""
    try:
        done = FinishedShard.from_json((workshop / f"{plan.name}.json").read_bytes())
        if done.digest != plan.digest:
            return None
        with (folder / plan.name).open("rb") as tar:  # another plan's shard may lie there under the same name
            return done if hashlib.file_digest(tar, "sha256").hexdigest() == done.sha256 else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _make_one(
    plan: ShardPlan,
    layout: str,
    source: Path,
    folder: Path,
    workshop: Path,
    on_sequence: Callable[[int], None],
) -> FinishedShard:
    temporary = workshop / f"{plan.name}.{os.getpid()}.part"
    finished = write_shard(plan, layout, source, temporary, on_sequence)
    index.write_durably(workshop / f"{plan.name}.json", finished.to_json())
    temporary.replace(folder / plan.name)
    return finished


def _make(
    plans: list[ShardPlan],
    layout: str,
    source: Path,
    folder: Path,
    workshop: Path,
    num_workers: int,
    bar: Progress,
) -> dict[str, FinishedShard]:
    """Make the shards, whole shards in parallel: their order in the result and their bytes do not depend on
    it.
    """
    num_sequences = sum(len(plan.sequences) for plan in plans)
    task = bar.add_task("packing", total=num_sequences, rate="")
    started = time.perf_counter()

    def show(sequences: int, frames: int) -> None:
        rate = frames / max(time.perf_counter() - started, 1e-9)
        bar.update(task, completed=sequences, rate=f"{rate:,.0f} frames/s")

    if num_workers == 1 or len(plans) <= 1:
        return _make_here(plans, layout, source, folder, workshop, show)
    # fork would copy whatever threads and handles the caller has; forkserver is also the rule for loader
    # workers.
    context = multiprocessing.get_context("forkserver")
    counters = context.Array("q", 2)
    pool = ProcessPoolExecutor(min(num_workers, len(plans)), context, _start_worker, (counters,))
    try:
        # Long shards first would be faster by a little; in order, a killed pack has its finished shards at
        # the front.
        futures = [pool.submit(_work, plan, layout, source, folder, workshop) for plan in plans]
        made = _collect(futures, lambda: show(*counters[:]))
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a packing worker died, most likely for want of memory: run the same command again with fewer "
            "--workers; finished shards are kept."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    show(*counters[:])
    return made


def _make_here(
    plans: list[ShardPlan],
    layout: str,
    source: Path,
    folder: Path,
    workshop: Path,
    show: Callable[[int, int], None],
) -> dict[str, FinishedShard]:
    done = [0, 0]

    def on_sequence(num_raw_frames: int) -> None:
        done[0] += 1
        done[1] += num_raw_frames
        show(*done)

    return {plan.name: _make_one(plan, layout, source, folder, workshop, on_sequence) for plan in plans}


def _collect(futures: list[Future[FinishedShard]], show: Callable[[], None]) -> dict[str, FinishedShard]:
    made: dict[str, FinishedShard] = {}
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            finished = future.result()
            made[finished.name] = finished
        show()
    return made


def _start_worker(counters: Any) -> None:
    global _progress_counters
    _progress_counters = counters
    cv2.setNumThreads(0)  # the processes are the parallelism
    # A pool's workers outlive a killed parent, waiting for ever; this ends them.
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(plan: ShardPlan, layout: str, source: Path, folder: Path, workshop: Path) -> FinishedShard:
    return _make_one(plan, layout, source, folder, workshop, _count_shared)


def _count_shared(num_raw_frames: int) -> None:
    with _progress_counters.get_lock():
        _progress_counters[0] += 1
        _progress_counters[1] += num_raw_frames


def _commit(
    finished: list[FinishedShard], layout: str, partition: str, folder: Path, skips: Skips
) -> PackSummary:
    """Write the index, the report, and last `shards.json`. A shard left without a sequence is taken away."""
    rows = [row for shard in finished for row in shard.rows]
    if not rows:
        raise ValueError(f"no sequence has a usable frame: {skips}.")
    encoded = index.encode_index(rows)
    shards = tuple(index.Shard(s.name, s.num_bytes, s.sha256, len(s.rows)) for s in finished if s.rows)
    manifest = index.Manifest(layout, HEIGHT, WIDTH, shards, index.fingerprint(encoded))
    wanted = {shard.name for shard in shards}
    for stale in (*folder.glob("train-*.tar"), *folder.glob("test-*.tar")):
        if stale.name not in wanted:  # an earlier, killed run had other shards
            stale.unlink()
    summary = PackSummary(
        name=layout,
        to=str(folder),
        partition=partition,
        fingerprint=manifest.index_sha256,
        num_shards=len(shards),
        num_shards_kept=0,
        num_bytes=sum(shard.bytes for shard in shards),
        splits=_count_splits(rows),
        seconds=0.0,
        num_raw_frames=0,
        skips=skips,
    )
    index.write_durably(folder / index.INDEX_NAME, encoded)
    index.write_durably(folder / REPORT_NAME, (json.dumps(summary.report(), indent=1) + "\n").encode())
    index.write_durably(folder / index.MANIFEST_NAME, manifest.to_json())
    return summary


def _count_splits(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    subjects: dict[str, set[str]] = {}
    for row in rows:
        split = counts.setdefault(row["split"], {"subjects": 0, "sequences": 0, "frames": 0})
        split["sequences"] += 1
        split["frames"] += row["frames"]
        subjects.setdefault(row["split"], set()).add(row["subject"])
    for name, members in subjects.items():
        counts[name]["subjects"] = len(members)
    return counts


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
