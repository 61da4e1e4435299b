"""Runs beside one another and beside the published figures: differences, and which of them mean anything."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline import results
from pipeline.metrics.published import published
from pipeline.report.table import percent

Figures = dict[str, float | None]


@dataclass(frozen=True)
class Row:
    """One line of a comparison, rates in percent."""

    name: str
    headline: Figures
    against_published: Figures | None = None
    """Less the first published method's; None where the two are not comparable."""
    against_first: Figures | None = None
    """Less the first run's of the table; None for itself, and where the two are not comparable."""


@dataclass(frozen=True)
class Comparison:
    """The runs of one protocol. `print` it with rich for the table."""

    protocol: str
    columns: list[str]
    published: list[Row]
    runs: list[Row]
    remarks: list[str] = field(default_factory=list)
    """What is comparable with what, and why not, a sentence a run."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return asdict(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        table = Table(title=f"protocol {self.protocol}", title_justify="left")
        table.add_column("(%)", overflow="fold")
        for column in self.columns:
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.published:
            table.add_row(f"published: {row.name}", *(percent(row.headline.get(c)) for c in self.columns))
        table.add_section()
        for row in self.runs:
            table.add_row(row.name.replace("[", r"\["), *(self._cell(row, c) for c in self.columns))
        yield table
        if any(row.against_published or row.against_first for row in self.runs):
            reference = self.published[0].name if self.published else "none"
            yield f"p: less published {reference}; r: less the first run. Points."
        yield from self.remarks

    @staticmethod
    def _cell(row: Row, column: str) -> str:
        marks = [
            f"{mark} {rates[column]:+.1f}"
            for mark, rates in (("p", row.against_published), ("r", row.against_first))
            if rates is not None and rates.get(column) is not None
        ]
        return percent(row.headline.get(column)) + (f" ({', '.join(marks)})" if marks else "")


def compare(paths: Sequence[Path]) -> list[Comparison]:
    """One comparison a protocol, in the order given; `paths` are folders of runs or results files.

    Raises FileNotFoundError or ValueError for what holds no results.
    """
    by_protocol: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in paths:
        found = results.read(Path(path))
        by_protocol.setdefault(found["protocol"], []).append((Path(path), found))
    return [_compare(protocol, runs) for protocol, runs in by_protocol.items()]


def _compare(protocol: str, runs: list[tuple[Path, dict[str, Any]]]) -> Comparison:
    first_path, first = runs[0]
    figures = published(first)
    reference = next(iter(figures.methods.values()), None)
    rows, remarks = [], []
    for path, found in runs:
        headline = found["methods"][0]["metrics"]["headline"]
        beside = published(found)
        unlike = "" if found is first else _unlike(found, first)
        rows.append(
            Row(
                name=f"{path}: {found['methods'][0]['name']}",
                headline=headline,
                against_published=_less(headline, reference) if beside.comparable and reference else None,
                against_first=None
                if found is first or unlike
                else _less(headline, first["methods"][0]["metrics"]["headline"]),
            )
        )
        remarks.append(f"{path}: {beside.reason}")
        remarks += [f"{path}: {note}" for note in results.notes(found)]
        if unlike:
            remarks.append(f"{path}: not comparable with {first_path}: {unlike}.")
    return Comparison(
        protocol=protocol,
        columns=list(first["methods"][0]["metrics"]["headline"]),
        published=[Row(name, dict(rates)) for name, rates in figures.methods.items()],
        runs=rows,
        remarks=remarks,
    )


def _unlike(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Why two results of one protocol's name cannot be set against each other; empty where they can."""
    reasons = []
    if one["data"]["fingerprint"] != other["data"]["fingerprint"]:
        reasons.append(
            f"other data ({one['data']['name']} {one['data']['fingerprint'][:12]}, "
            f"{other['data']['name']} {other['data']['fingerprint'][:12]})"
        )
    if one.get("rules") != other.get("rules"):
        reasons.append("other rules under the same protocol name")
    if one["data"].get("frames_limit") != other["data"].get("frames_limit"):
        reasons.append("another frames limit")
    return "; ".join(reasons)


def _less(rates: Mapping[str, float | None], reference: Mapping[str, float | None]) -> Figures:
    return {
        name: None if rate is None or (other := reference.get(name)) is None else rate - other
        for name, rate in rates.items()
    }
