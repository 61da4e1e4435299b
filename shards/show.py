"""What a data set holds, as numbers and as pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

from shards.store import ShardSet
from shards.store import open as open_shards

LENGTH_BINS = (1, 10, 20, 30, 60, 90, 120, 180)  # frames; a bin ends before the next one starts

_GAP = 4  # pixels between tiles
_GREY = 96  # between tiles: neither silhouette nor background


@dataclass(frozen=True)
class DataSetSummary:
    """Counts of a data set. `print` it with rich for tables; `dataclasses.asdict` for JSON.

    splits: split -> {subjects, sequences, frames}. conditions, views: split -> value -> sequences.
    lengths: split -> sequences in each bin of LENGTH_BINS.
    """

    url: str
    name: str
    fingerprint: str
    num_bytes: int
    num_shards: int
    splits: dict[str, dict[str, int]]
    conditions: dict[str, dict[str, int]]
    views: dict[str, dict[str, int]]
    lengths: dict[str, list[int]]

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield (
            f"{self.name} at {self.url}: {self.num_shards} shards, {self.num_bytes / 1e6:,.1f} MB\n"
            f"fingerprint {self.fingerprint}"
        )
        splits = list(self.splits)
        counts = {
            what: {split: self.splits[split][what] for split in splits} for what in ("subjects", "sequences", "frames")
        }
        yield _counts_table("", counts, splits)
        yield _counts_table("condition", _by_value(self.conditions), splits)
        yield _counts_table("view", _by_value(self.views), splits)
        lengths = {name: {s: self.lengths[s][i] for s in splits} for i, name in enumerate(_bin_names())}
        yield _counts_table("frames", lengths, splits)


def describe(url: str | Path) -> DataSetSummary:
    """Counts of the data set at `url`, from its index alone. Raises as `shards.open`."""
    shard_set = open_shards(url)
    index = shard_set.index
    names = sorted(index["split"].unique().to_pylist(), reverse=True)  # train before test
    parts = {split: index.filter(pc.equal(index["split"], split)) for split in names}
    return DataSetSummary(
        url=str(url),
        name=shard_set.name,
        fingerprint=shard_set.fingerprint,
        num_bytes=sum(shard.bytes for shard in shard_set.manifest.shards),
        num_shards=len(shard_set.manifest.shards),
        splits={
            split: {
                "subjects": len(part["subject"].unique()),
                "sequences": part.num_rows,
                "frames": pc.sum(part["frames"]).as_py(),
            }
            for split, part in parts.items()
        },
        conditions={split: _count(part["condition"]) for split, part in parts.items()},
        views={split: _count(part["view"]) for split, part in parts.items()},
        lengths={split: _histogram(part["frames"].to_numpy()) for split, part in parts.items()},
    )


def find_row(shard_set: ShardSet, key: str) -> int:
    """The row of the sequence `key`. Raises ValueError naming a few keys that start alike."""
    keys = shard_set.index["key"]
    row = pc.index(keys, key).as_py()
    if row >= 0:
        return row
    alike = keys.filter(pc.starts_with(keys, key.split("-")[0])).slice(0, 3).to_pylist()
    some = ", ".join(alike or keys.slice(0, 3).to_pylist())
    raise ValueError(f"{shard_set.url} has no sequence {key!r}; its keys look like {some}.")


def contact_sheet(
    url: str | Path, to: str | Path, keys: Sequence[str] = (), num_sequences: int = 12, num_frames: int = 16
) -> Path:
    """Write a PNG of silhouettes and return its path.

    One key: every frame of that sequence, `num_frames` a row. Several: a row each, `num_frames` frames spread
    evenly over the sequence. None: `num_sequences` sequences spread evenly over the index. Raises ValueError
    for an unknown key or a file name that is no .png.
    """
    path = Path(to)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} is no .png file name.")
    shard_set = open_shards(url)
    if keys:
        rows = [find_row(shard_set, key) for key in keys]
    else:
        rows = np.unique(np.linspace(0, len(shard_set) - 1, num_sequences).astype(int)).tolist()
    sequences = shard_set.read(rows)
    sheet = tile(sequences[0], num_frames) if len(keys) == 1 else _rows(sequences, num_frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), sheet):
        raise OSError(f"{path} could not be written.")
    return path


def tile(frames: np.ndarray, num_columns: int) -> np.ndarray:
    """uint8 [frames, height, width] -> one picture, uint8 [rows * (height + gap) + gap, ...], filled row by
    row.
    """
    num_frames, height, width = frames.shape
    num_rows = -(-num_frames // num_columns)
    sheet = np.full((num_rows * (height + _GAP) + _GAP, num_columns * (width + _GAP) + _GAP), _GREY, np.uint8)
    for i, frame in enumerate(frames):
        row, column = divmod(i, num_columns)
        top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def _rows(sequences: Sequence[np.ndarray], num_frames: int) -> np.ndarray:
    """Every sequence in a row of its own, all rows equally long: a short sequence shows some frames twice."""
    spread = [sequence[np.linspace(0, len(sequence) - 1, num_frames).round().astype(int)] for sequence in sequences]
    return tile(np.concatenate(spread), num_frames)


def _count(column: pa.ChunkedArray) -> dict[str, int]:
    counted = column.value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in sorted(counted, key=lambda entry: entry["values"])}


def _histogram(lengths: np.ndarray) -> list[int]:
    bins = np.searchsorted(LENGTH_BINS, lengths, side="right") - 1
    return np.bincount(bins, minlength=len(LENGTH_BINS)).tolist()


def _bin_names() -> list[str]:
    ends = [f"{low}-{high - 1}" for low, high in pairwise(LENGTH_BINS)]
    return [*ends, f"{LENGTH_BINS[-1]} or more"]


def _by_value(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    values = sorted({value for by_value in counts.values() for value in by_value})
    return {value: {split: by_value.get(value, 0) for split, by_value in counts.items()} for value in values}


def _counts_table(title: str, counts: dict[str, dict[str, int]], splits: list[str]) -> Table:
    table = Table(title, *splits)
    for name, by_split in counts.items():
        table.add_row(name, *(f"{by_split[split]:,}" for split in splits))
    return table
