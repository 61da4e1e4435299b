"""Who is this? One probe against a gallery: the nearest sequences and people, with distances and pictures."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

import shards
from pipeline import kept, results, world
from pipeline.embed import Work, embed, frames_at_once, network_embedder
from pipeline.metrics.distances import pairs
from pipeline.model.hstl import Precision
from shards import silhouettes

if TYPE_CHECKING:
    from shards import ShardSet

CACHE_VARIABLE = "HSTL_EMBEDDINGS"
"""Folder where embeddings of galleries are kept between searches."""


@dataclass(frozen=True)
class Found:
    """One gallery sequence, or the nearest one of a subject."""

    rank: int
    subject: str
    condition: str
    view: str
    key: str
    row: int
    """Of the gallery's index."""
    distance: float


@dataclass(frozen=True)
class Answer:
    """What a search came to. `print` it with rich for the table."""

    probe: str
    probe_frames: int
    gallery: str
    fingerprint: str
    gallery_sequences: int
    gallery_subjects: int
    checkpoint: str
    sequences: list[Found]
    """The nearest, nearest first."""
    subjects: list[Found]
    """The nearest sequence of each subject, nearest first."""
    remarks: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return asdict(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table

        yield (
            f"probe {self.probe}: {self.probe_frames} frames, against {self.gallery_sequences:,} sequences "
            f"of {self.gallery_subjects:,} people"
        )
        for title, found in (("nearest people", self.subjects), ("nearest sequences", self.sequences)):
            table = Table(title=title, title_justify="left")
            for column, side in (("", "right"), ("subject", "left"), ("sequence", "left"), ("distance", "right")):
                table.add_column(column, justify=side)  # type: ignore[arg-type]
            for one in found:
                table.add_row(str(one.rank), one.subject, one.key, f"{one.distance:.4f}")
            yield table
        yield from self.remarks


def identify(
    probe: str,
    gallery: str,
    checkpoint: Path,
    *,
    variant: str | None = None,
    split: str = "test",
    top: int = 10,
    workers: int = 0,
    cache: Path | None = None,
) -> tuple[Answer, np.ndarray, "ShardSet"]:
    """The answer, the probe's silhouettes (uint8 [frames, 64, 64 or 44]) and the opened gallery, for pictures.

    `probe`: a folder of PNG frames, or the key of a sequence of the gallery's data set, which is then left out of the
    gallery. `split`: test, train or all. `variant` is needed for a released file. Embeddings of the gallery are kept
    in `cache` (else HSTL_EMBEDDINGS, the checkpoint's run, the user's cache folder): a second search is quick.
    Raises ValueError or FileNotFoundError on what cannot be searched.
    """
    from pipeline import checkpoint as checkpoints

    shard_set = shards.open(gallery)
    rows = _gallery_rows(shard_set, split)
    frames, own_row, remarks = read_probe(probe, shard_set)
    weights = checkpoints.read_weights(checkpoint)
    network = checkpoints.to_network(weights, variant)
    network.precision = _precision(weights.path)
    accelerator = world.start()
    most_frames = frames_at_once(accelerator.device)
    embedder = network_embedder(network.to(accelerator.device), most_frames)
    sha256 = results.sha256(weights.path)
    identity = f"{sha256} {network.variant.name} {network.precision}"
    folder = _folder(cache, weights.path)
    work = Work.at(folder, shard_set, rows, identity, most_frames)
    with kept.in_use(folder):
        if not work.whole.is_file():
            kept.note(work.folder, sha256)
        known = embed(work, embedder, accelerator, workers, "gallery")
    assert known is not None, "identify runs in one process"
    silhouettes_in = torch.from_numpy(np.ascontiguousarray(silhouettes.cut(frames)))[None]
    asked = embedder(silhouettes_in.to(accelerator.device)).float().cpu().numpy()
    order, distances = nearest(asked[0], known)
    ranked = [(int(rows[i]), float(distances[i])) for i in order.tolist() if rows[i] != own_row]
    sequences, subjects = _rank(ranked, shard_set, top)
    names = shard_set.index["subject"].take([row for row, _ in ranked]).to_pylist()
    answer = Answer(
        probe=probe,
        probe_frames=len(frames),
        gallery=shard_set.url,
        fingerprint=shard_set.fingerprint,
        gallery_sequences=len(ranked),
        gallery_subjects=len(set(names)),
        checkpoint=str(weights.path),
        sequences=sequences,
        subjects=subjects,
        remarks=[*remarks, "The nearest is not proof: whoever is not in the gallery has a nearest person in it, too."],
    )
    return answer, frames, shard_set


def read_probe(probe: str, shard_set: "ShardSet") -> tuple[np.ndarray, int | None, list[str]]:
    """Silhouettes uint8 [frames, 64, 64], the row of the data set or None, and remarks.

    Raises ValueError for a folder without a usable frame, or what is neither folder nor key.
    """
    folder = Path(probe)
    if not folder.is_dir():
        from shards.show import find_row

        try:
            row = find_row(shard_set, probe)
        except ValueError as error:
            raise ValueError(f"probe {probe!r} is no folder of PNG frames, and as a key: {error}") from None
        return shard_set.read([row])[0], row, []
    kept, skipped = [], Counter[str]()
    for path in sorted(folder.glob("*.png")):
        frame, reason = silhouettes.read_frame(path)
        normalised = None if frame is None else silhouettes.normalise_frame(frame)
        if normalised is not None:
            kept.append(normalised)
        else:
            skipped[reason if frame is None else silhouettes.empty_reason(frame)] += 1
    said = "; ".join(f"{num} left out: {reason}" for reason, num in skipped.items())
    if not kept:
        raise ValueError(
            f"{probe} holds no usable frame ({said or 'no file *.png'}): give the folder of one walk's silhouettes, "
            f"white on black"
        )
    return np.stack(kept), None, [f"frames: {said}"] if said else []


def nearest(asked: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order, int64 [n], and distances, fp32 [n], of `known` [n, parts, channels] from `asked` [parts, channels].

    Equal distances stand in the order of `known`.
    """
    distances = np.empty(len(known), np.float32)
    step = 1024
    for start in range(0, len(known), step):
        piece = np.concatenate([asked[None], known[start : start + step]])
        others = np.arange(1, len(piece))
        distances[start : start + step] = pairs(piece, np.zeros_like(others), others).numpy()
    return np.argsort(distances, kind="stable"), distances


def write_page(path: Path, answer: Answer, probe: np.ndarray, shard_set: "ShardSet") -> Path:
    """One HTML file: the probe beside the nearest people and sequences, walking."""
    from pipeline.report.page import render
    from pipeline.report.pictures import sprite

    shown = {found.row for found in (*answer.subjects, *answer.sequences)}
    rows = sorted(shown)
    sprites = {row: sprite(sequence) for row, sequence in zip(rows, shard_set.read(rows), strict=True)}
    farthest = max((found.distance for found in (*answer.subjects, *answer.sequences)), default=1.0)
    text = render("identify.html.j2", answer=answer, probe=sprite(probe), sprites=sprites, farthest=farthest or 1.0)
    partial = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def _rank(ranked: list[tuple[int, float]], shard_set: "ShardSet", top: int) -> tuple[list[Found], list[Found]]:
    """The `top` nearest sequences, and the nearest one of each of the `top` nearest subjects."""
    names = shard_set.index["subject"].take([row for row, _ in ranked]).to_pylist()
    first_of: dict[str, tuple[int, float]] = {}
    for name, one in zip(names, ranked, strict=True):
        first_of.setdefault(name, one)

    def describe(chosen: list[tuple[int, float]]) -> list[Found]:
        table = shard_set.index.take([row for row, _ in chosen]).to_pylist()
        return [
            Found(number, entry["subject"], entry["condition"], entry["view"], entry["key"], row, distance)
            for number, (entry, (row, distance)) in enumerate(zip(table, chosen, strict=True), 1)
        ]

    return describe(ranked[:top]), describe(list(first_of.values())[:top])


def _gallery_rows(shard_set: "ShardSet", split: str) -> np.ndarray:
    splits = shard_set.index["split"].to_numpy()
    rows = np.arange(len(splits)) if split == "all" else np.flatnonzero(splits == split)
    if not len(rows):
        counts = ", ".join(f"{name} {num}" for name, num in Counter(splits.tolist()).items())
        raise ValueError(f"{shard_set.url} has no sequences of split {split!r} (it has {counts}): choose --split")
    return rows


def _run_of(weights: Path) -> Path | None:
    run = weights.parent.parent.parent
    return run if run.joinpath("recipe.yaml").is_file() else None


def _precision(weights: Path) -> Precision:
    """What the run was last evaluated at, so that its embeddings serve here, too; fp32 where nothing says."""
    run = _run_of(weights)
    if run is None or not run.joinpath("evaluation", results.FILE).is_file():
        return "fp32"
    return cast(Precision, results.read(run)["recipe"]["evaluate"]["precision"])


def _folder(cache: Path | None, weights: Path) -> Path:
    named = cache or os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    if (run := _run_of(weights)) is not None:
        return run / "evaluation" / "embeddings"  # evaluating the run leaves the very same there
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hstl" / "embeddings"
