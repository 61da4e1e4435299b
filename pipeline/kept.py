"""Embeddings kept between evaluations: what each folder was made by, and which an evaluation may delete.

A folder of kept embeddings holds one folder a piece of work (`embed.Work`), each with a note of the checkpoint that
made it. An evaluation that succeeded deletes those of other checkpoints. Whoever works there holds a lock that all
share; deleting takes it alone, and so never happens while another evaluation or search goes on.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOTE = "made-by.json"
LOCK = "in-use"
_WORK = re.compile(r"[0-9a-f]{16}")


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Nobody deletes embeddings under `folder` in this block. Waits while somebody is deleting.

    Somebody else's folder that may only be read, and a file system without locks, are used without one: then
    nothing can be deleted there, either.
    """
    descriptor = _open(folder)
    try:
        if descriptor is not None:
            _lock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def note(work: Path, checkpoint: str | None) -> None:
    """Write into the folder of a piece of work which checkpoint (sha256 of its weights) it needs; None: none."""
    work.mkdir(parents=True, exist_ok=True)
    partial = work / f"{NOTE}.partial"
    partial.write_text(json.dumps({"checkpoint": checkpoint}) + "\n")
    partial.replace(work / NOTE)


def delete_superseded(folder: Path, checkpoint: str, used: set[Path]) -> tuple[int, int]:
    """Delete what other checkpoints than this one, or nobody knows which, left under `folder`; how many, and bytes.

    Kept are `used` and what needs no checkpoint or this one: other data sets, other galleries, baselines. Nothing is
    deleted while anybody else holds `in_use`; the next evaluation will.
    """
    descriptor = _open(folder)
    if descriptor is None:
        return 0, 0
    try:
        if not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return 0, 0
        found = [path for path in folder.iterdir() if _WORK.fullmatch(path.name) and path.is_dir()]
        superseded = [path for path in found if path not in used and _checkpoint_of(path) not in (None, checkpoint)]
        num_bytes = sum(file.stat().st_size for path in superseded for file in path.iterdir())
        for path in superseded:
            shutil.rmtree(path, ignore_errors=True)
        return len(superseded), num_bytes
    finally:
        os.close(descriptor)


def _checkpoint_of(work: Path) -> str | None:
    try:
        return json.loads(work.joinpath(NOTE).read_text())["checkpoint"]
    except (FileNotFoundError, ValueError, KeyError):
        return "unknown"  # made before there were notes


def _open(folder: Path) -> int | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return None


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind)
    except OSError:
        return False
    return True
