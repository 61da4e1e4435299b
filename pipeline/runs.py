"""Every run under some folders at a glance, from a few small reads each."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline import metrics_log, results, run_state
from pipeline.report.table import percent
from pipeline.run_state import Process, duration

COLUMNS = (("run", "recipe"), ("state", "updated"), ("step",), ("loss", "sequences/s"), ("rank-1 (%)",))
"""In a narrow terminal, those of a group stand one above the other."""
NARROW = 110
COLOURS = {"running": "green", "interrupted": "yellow", "failed": "bold red", "dead": "bold red"}
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError)
"""What reading a damaged file may raise."""


@dataclass(frozen=True)
class Run:
    """One line of the list."""

    path: str
    name: str
    """The path from the folder it was found under."""
    recipe: str | None
    state: str
    """finished, interrupted, failed, dead or running, with the last sign of life; "not recorded" without state.json."""
    reason: str | None
    """Why it was interrupted or failed."""
    step: int | None
    steps: int | None
    loss: float | None
    """Mean over the newest line of metrics.jsonl."""
    sequences_per_s: float | None
    updated: datetime
    protocol: str | None
    headline: dict[str, float | None] | None
    """Of the trained network's evaluation, percent."""
    faults: list[str]
    """Files that could not be read, and why."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {**asdict(self), "updated": self.updated.isoformat(timespec="seconds")}


def list_runs(folders: Sequence[Path], now: datetime) -> list[Run]:
    """All runs under the folders, themselves included, the newest first. Raises FileNotFoundError: no such folder."""
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; name those that hold runs: hstl runs FOLDER ...")
    me = Process.current()
    found = {path.resolve(): _summarise(path, folder, me, now) for folder in folders for path in find(folder)}
    return sorted(found.values(), key=lambda run: run.updated, reverse=True)


def find(folder: Path) -> Iterator[Path]:
    """Folders with a recipe.yaml, `folder` included; what lies in a run is not searched, links are followed once."""
    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        status = Path(path).stat()
        known = (status.st_dev, status.st_ino) in seen
        seen.add((status.st_dev, status.st_ino))
        is_run = "recipe.yaml" in files
        folders[:] = [] if known or is_run else sorted(name for name in folders if not name.startswith("."))
        if is_run and not known:
            yield Path(path)


def show(runs: Sequence[Run], now: datetime, width: int) -> Iterator[RenderableType]:
    """The list for a terminal of `width` columns; under it why runs failed, and which files are damaged."""
    groups = COLUMNS if width < NARROW else [(column,) for group in COLUMNS for column in group]
    table = Table(box=box.HORIZONTALS if width < NARROW else box.SIMPLE_HEAD, show_lines=width < NARROW)
    for group in groups:
        right = group[0] in ("step", "loss", "sequences/s")
        table.add_column("\n".join(group), justify="right" if right else "left", overflow="fold")
    for run in runs:
        cells = _cells(run, now)
        table.add_row(*(Text("\n").join(cells[column] for column in group) for group in groups))
    yield table
    yield from (Text(f"{run.name}: {run.state}: {run.reason}") for run in runs if run.reason)
    yield from (Text(f"damaged: {fault}", "red") for run in runs for fault in run.faults)


def _cells(run: Run, now: datetime) -> dict[str, Text]:
    rates = (run.headline or {}).items()
    state, silence, _ = run.state.partition(", last sign of life")
    ago = f"{duration((now - run.updated).total_seconds())} ago"
    return {
        "run": Text(run.name),
        "recipe": Text(run.recipe or "–", "dim"),
        "state": Text(f"{state}?" if silence else state, COLOURS.get(state, "")),
        "updated": Text(f"last sign of life {ago}" if silence else ago, "dim"),
        "step": Text(f"{'–' if run.step is None else run.step}/{run.steps or '–'}"),
        "loss": Text("–" if run.loss is None else f"{run.loss:.3f}"),
        "sequences/s": Text("–" if run.sequences_per_s is None else f"{run.sequences_per_s:.0f}"),
        "rank-1 (%)": Text(", ".join(f"{name} {percent(rate)}" for name, rate in rates if rate is not None) or "–"),
    }


def _summarise(run: Path, folder: Path, me: Process, now: datetime) -> Run:
    faults: list[str] = []

    def attempt(path: Path, read: Callable[[], Any]) -> Any:
        try:
            return read() if path.exists() else None
        except UNREADABLE as error:
            text = " ".join(str(error).split()) or type(error).__name__
            faults.append(text if str(path) in text else f"{path}: {text}")
            return None

    evaluated = run / "evaluation" / results.FILE
    recipe, steps = attempt(run / "recipe.yaml", lambda: _recipe(run / "recipe.yaml")) or (None, None)
    state = attempt(run / run_state.FILE, lambda: run_state.read(run))
    step, loss, rate = attempt(run / metrics_log.FILE, lambda: _newest(run)) or (None, None, None)
    protocol, headline = attempt(evaluated, lambda: _headline(evaluated)) or (None, None)
    return Run(
        path=str(run),
        name=str(run) if run == folder else str(run.relative_to(folder)),
        recipe=recipe,
        state=run_state.in_words(state, me, now) if state else "not recorded",
        reason=state.reason if state else None,
        step=state.step if state else step,
        steps=state.steps if state else steps,
        loss=loss,
        sequences_per_s=rate,
        updated=state.updated if state else _written(run),
        protocol=protocol,
        headline=headline,
        faults=faults,
    )


def _recipe(path: Path) -> tuple[str, int]:
    # Not by recipe.load: a run of an older version is listed, too.
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return str(values["name"]), int(values["train"]["steps"])


def _newest(run: Path) -> tuple[int, float, float] | None:
    line = metrics_log.last(run)
    return None if line is None else (int(line["step"]), float(line["loss"]), float(line["sequences_per_s"]))


def _headline(path: Path) -> tuple[str, dict[str, float | None]]:
    found = results.read(path)
    headline = found["methods"][0]["metrics"]["headline"]
    return found["protocol"], {name: None if rate is None else float(rate) for name, rate in headline.items()}


def _written(run: Path) -> datetime:
    """When a run without a record was last written to."""
    files = [path for name in ("recipe.yaml", metrics_log.FILE) if (path := run / name).exists()]
    return datetime.fromtimestamp(max((path.stat().st_mtime for path in files), default=0), UTC)
