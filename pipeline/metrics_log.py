"""metrics.jsonl: one JSON object a line, always written, and kept free of steps that a resumed run does anew."""

import json
import os
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"
TAIL_BYTES = 1 << 16
"""Longer than any line."""


class MetricsLog:
    """Appends lines to `RUN/metrics.jsonl`; each is on disk when `write` returns."""

    def __init__(self, run: Path, start_step: int) -> None:
        self.path = run / FILE
        kept = [line for line in read(run) if line["step"] <= start_step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(self.path)

    def write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read(run: Path) -> list[dict[str, Any]]:
    """The lines of a run, oldest first; a last line cut by a kill is left out."""
    path = run / FILE
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last(run: Path) -> dict[str, Any] | None:
    """The newest whole line of a run, found from the end of the file, which may be long; None where there is none."""
    path = run / FILE
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
        whole = file.read().split(b"\n")[:-1]
    return json.loads(whole[-1]) if whole else None
