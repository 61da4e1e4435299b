"""Where a result comes from: versions of what computed it, and the state of its source."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def record() -> dict[str, Any]:
    """`versions` and `source`; what the first call found in a process is what later ones give."""
    return {"versions": versions(), "source": source()}


@cache
def versions() -> dict[str, str | None]:
    """Versions of what computes, by name; None for what runs without being installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("hstl", "torch", "accelerate", "deepspeed", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@cache
def source() -> dict[str, Any] | None:
    """Commit of this package's git checkout, and whether its files differ from it; None where it is no checkout."""
    here = Path(__file__).parents[1]
    try:
        commit = _git(here, "rev-parse", "HEAD")
        changed = bool(_git(here, "status", "--porcelain", "--", "pipeline", "shards"))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": changed}


def _git(folder: Path, *arguments: str) -> str:
    # The index is left alone: several processes may ask at once.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
