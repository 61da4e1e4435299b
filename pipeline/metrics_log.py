"""metrics.jsonl: one JSON object a line, always written, and kept free of steps that a resumed run does anew."""

import json
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends lines to `RUN/metrics.jsonl`; each is on disk when `write` returns."""

    def __init__(self, run: Path, start_step: int) -> None:
        self.path = run / "metrics.jsonl"
        kept = [line for line in read(run) if line["step"] <= start_step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(self.path)

    def write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read(run: Path) -> list[dict[str, Any]]:
    """The lines of a run, oldest first; a last line cut by a kill is left out."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
