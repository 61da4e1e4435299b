"""What a benchmark's own server scores: for each probe video, the subjects of its 20 nearest gallery sequences.

GREW takes a CSV, `videoId,rank1,...,rank20` with subject numbers as integers, as `submission.csv` in a zip file. As in
the field, a rank is a gallery sequence: a subject with two of them may stand there twice.
"""

import csv
import io
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch

from pipeline.metrics import ranks
from pipeline.metrics.distances import Metric, blocks
from pipeline.metrics.protocols import Submission, load, rows_of

ARCHIVE = "submission.zip"
MEMBER = "submission.csv"
NUM_RANKS = 20
HEADER = ["videoId", *(f"rank{k}" for k in range(1, NUM_RANKS + 1))]
_MOST_FAULTS = 20

Ranked = dict[str, list[int]]
"""Probe video -> subject numbers, nearest first."""


def rank(
    embeddings: np.ndarray,
    subjects: Sequence[str],
    conditions: Sequence[str],
    views: Sequence[str],
    rules: Submission,
    distance: Metric = "euclidean",
    device: str | torch.device = "cpu",
) -> Ranked:
    """The 20 nearest gallery sequences of each probe; none where the data hold no such probe.

    A probe's video is its view. Raises ValueError where the gallery has under 20 sequences, a subject is no number, or
    two probes have one name.
    """
    gallery, probes = (rows_of(rule, subjects, conditions, views) for rule in (rules.gallery, rules.probes))
    if not len(probes):
        return {}
    if len(gallery) < NUM_RANKS:
        raise ValueError(f"a submission ranks {NUM_RANKS} gallery sequences, the data hold {len(gallery)}")
    if words := [subjects[row] for row in gallery.tolist() if not subjects[row].isdigit()]:
        raise ValueError(f"a submission names subjects by number, and gallery subject {words[0]!r} is none")
    videos = [views[row] for row in probes.tolist()]
    if len(set(videos)) < len(videos):
        twice = next(video for video in videos if videos.count(video) > 1)
        raise ValueError(f"probe video {twice!r} is there twice, and a submission has a line a video")
    numbers = np.array([int(subjects[row]) for row in gallery.tolist()])
    pieces = blocks(embeddings, probes, gallery, device, metric=distance)
    nearest = ranks.nearest_of_blocks(pieces, NUM_RANKS)[1].numpy()
    return dict(zip(videos, numbers[nearest].tolist(), strict=True))


def write(path: Path, ranked: Ranked) -> Path:
    """The zip file of a submission; the same content gives the same bytes."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADER)
    table.writerows([video, *ranked[video]] for video in sorted(ranked))
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        member = zipfile.ZipInfo(MEMBER, (1980, 1, 1, 0, 0, 0))
        archive.writestr(member, text.getvalue(), zipfile.ZIP_DEFLATED)
    partial.replace(path)
    return path


def faults(path: Path, videos: Collection[str] | None = None, subjects: Collection[int] | None = None) -> list[str]:
    """What is wrong with a submission's zip or CSV file, a sentence each, at most 20; none: it can be sent.

    `videos` and `subjects`: the benchmark's probes and gallery subjects, where the data are at hand. Raises
    FileNotFoundError.
    """
    found: list[str] = []
    text = _content(path, found)
    if text is None:
        return found
    lines = list(csv.reader(io.StringIO(text)))
    if not lines or lines[0] != HEADER:
        found.append(f"line 1 must be {','.join(HEADER)!r}, it is {','.join(lines[0]) if lines else 'not there'!r}")
    known = None if subjects is None else set(subjects)
    seen: set[str] = set()
    for number, line in enumerate(lines[1:], 2):
        found += [f"line {number}: {fault}" for fault in _line_faults(line, seen, known)]
        seen.add(line[0] if line else "")
    if videos is not None:
        for what, odd in (("missing", set(videos) - seen), ("no probe of the data", seen - set(videos))):
            if odd:
                found.append(f"{len(odd)} videos are {what}, the first is {min(odd)!r}")
    if len(found) > _MOST_FAULTS:
        found[_MOST_FAULTS:] = [f"and {len(found) - _MOST_FAULTS} more"]
    return found


def known_names(url: str) -> tuple[set[str], set[int]]:
    """Probe videos and gallery subjects of GREW's packed test split. Raises ValueError where there is neither."""
    import shards

    shard_set = shards.open(url)
    table = shard_set.index.filter(pc.equal(shard_set.index["split"], "test"))
    subjects, conditions, views = (table[column].to_pylist() for column in ("subject", "condition", "view"))
    rules = load("grew").submission
    assert rules is not None, "grew's rules say what its server asks about"
    gallery, probes = (rows_of(rule, subjects, conditions, views) for rule in (rules.gallery, rules.probes))
    if not len(gallery) or not len(probes):
        raise ValueError(f"{url} holds {len(gallery)} gallery and {len(probes)} probe sequences of GREW's: pack test/")
    return {views[row] for row in probes.tolist()}, {int(subjects[row]) for row in gallery.tolist()}


def _content(path: Path, found: list[str]) -> str | None:
    if not path.is_file():
        raise FileNotFoundError(f"no submission {path}; evaluating by protocol grew writes one into RUN/evaluation")
    try:
        if path.suffix != ".zip":
            return path.read_text(encoding="utf-8")
        with zipfile.ZipFile(path) as archive:
            if archive.namelist() != [MEMBER]:
                found.append(f"the zip must hold {MEMBER} alone, it holds {', '.join(archive.namelist()) or 'nothing'}")
                return None
            return archive.read(MEMBER).decode("utf-8")
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        found.append(f"{path.name} cannot be read: {error}")
        return None


def _line_faults(line: list[str], seen: set[str], subjects: set[int] | None) -> list[str]:
    if len(line) != len(HEADER):
        return [f"{len(line)} fields instead of {len(HEADER)}"]
    found = [f"video {line[0]!r} stands twice"] if line[0] in seen else []
    if not line[0]:
        found.append("no video")
    words = [field for field in line[1:] if not (field.isascii() and field.isdigit())]
    if words:
        found.append(f"{words[0]!r} is no subject number (an integer without sign or spaces)")
    elif subjects is not None and (strange := [field for field in line[1:] if int(field) not in subjects]):
        found.append(f"subject {strange[0]} is not in the gallery")
    return found
