"""Kept embeddings: superseded ones go, all others stay, and nothing goes while anybody is at work."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import kept

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Embeddings of two checkpoints, of a baseline, of nobody knows what; and a user's own things."""
    for name, checkpoint in {"a" * 16: "old", "b" * 16: "new", "c" * 16: None, "d" * 16: "unnoted"}.items():
        work = tmp_path / name
        kept.note(work, checkpoint)
        (work / "all.npy").write_bytes(b"12345678")
    (tmp_path / ("d" * 16) / kept.NOTE).unlink()
    (tmp_path / "mine").mkdir()
    (tmp_path / ("e" * 16)).touch()
    return tmp_path


def letters(folder: Path) -> set[str]:
    return {path.name[0] for path in folder.iterdir() if path.name != kept.LOCK}


def test_only_what_other_checkpoints_left_is_deleted(folder):
    size = (folder / ("a" * 16) / kept.NOTE).stat().st_size
    assert kept.delete_superseded(folder, "new", set()) == (2, 8 + size + 8)
    assert letters(folder) == {"b", "c", "m", "e"}
    assert kept.delete_superseded(folder, "new", set()) == (0, 0)


def test_what_was_just_used_stays_whoever_made_it(folder):
    kept.delete_superseded(folder, "new", {folder / ("a" * 16), folder / ("d" * 16)})
    assert letters(folder) == {"a", "b", "c", "d", "m", "e"}


def test_nothing_is_deleted_while_another_process_works_there_and_all_after_it_was_killed(folder):
    program = f"""
from pathlib import Path
from pipeline import kept
with kept.in_use(Path({str(folder)!r})):
    print("in", flush=True)
    input()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"in\n"
        with kept.in_use(folder):  # several may
            assert kept.delete_superseded(folder, "new", set()) == (0, 0)
        assert kept.delete_superseded(folder, "new", set()) == (0, 0)
        assert letters(folder) == {"a", "b", "c", "d", "m", "e"}
        other.kill()
    assert kept.delete_superseded(folder, "new", set())[0] == 2


def test_a_place_without_locks_is_used_and_never_cleared(folder, monkeypatch):
    def refuse(descriptor, kind):
        raise OSError("locks are not known here")

    monkeypatch.setattr(kept.fcntl, "flock", refuse)
    with kept.in_use(folder):
        pass
    assert kept.delete_superseded(folder, "new", set()) == (0, 0)


def test_a_place_that_cannot_be_written_is_used_and_never_cleared(tmp_path):
    (tmp_path / "file").touch()
    with kept.in_use(tmp_path / "file" / "embeddings"):
        pass
    assert kept.delete_superseded(tmp_path / "file" / "embeddings", "new", set()) == (0, 0)
