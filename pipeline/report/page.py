"""RUN/report.html: one file that shows what a run came to, and needs nothing else to be read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jinja2
import numpy as np
import yaml

from pipeline.metrics.published import Published, published
from pipeline.metrics.verdict import verdict
from pipeline.report.charts import Line, chart, thinned
from pipeline.report.pictures import sprite
from pipeline.report.table import percent
from pipeline.results import notes as results_notes
from pipeline.results import read as read_results

CURVES = {"loss": "loss", "triplet": "triplet loss", "cross_entropy": "cross-entropy", "lr": "learning rate"}


class Silhouettes(Protocol):
    """The part of a shard set that the page needs."""

    @property
    def index(self) -> Any: ...

    @property
    def fingerprint(self) -> str: ...

    def read(self, rows: Sequence[int], /) -> list[np.ndarray]: ...


def write_report(run: Path, shard_set: Silhouettes | None = None) -> Path:
    """Write RUN/report.html from evaluation/results.json, metrics.jsonl and recipe.yaml; return its path.

    `shard_set` (`shards.open`) gives the silhouettes of the hardest probes. What is not there is said so on
    the page; the verdict is drawn from the figures again.
    FileNotFoundError: no results.json. ValueError: a results.json that is not one of ours.
    """
    run = Path(run)
    results = read_results(run)
    steps, notes = _steps(run / "metrics.jsonl")
    cases, case_notes = _cases(results, shard_set)
    recipe = run / "recipe.yaml"
    text = (
        recipe.read_text(encoding="utf-8")
        if recipe.is_file()
        else yaml.safe_dump(results.get("recipe", {}), sort_keys=False, allow_unicode=True)
    )
    page = render(
        "page.html.j2",
        results=results,
        main=results["methods"][0],
        data=results.get("data", {}),
        verdict=verdict(results["methods"]),
        comparison=_comparison(results, published(results)),
        identical=_identical(results),
        maps=[_maps(method) for method in results["methods"] if "by_view" in method["metrics"]],
        matches=_matches(results["methods"]),
        lengths=_lengths(results["methods"]),
        absent_views=results["methods"][0].get("breakdown", {}).get("by_missing_views", []),
        confused=_confused(results["methods"][0]),
        results_notes=results_notes(results),
        curves=_curves(steps),
        training_note=notes,
        cases=cases,
        case_note=case_notes,
        missing=results["methods"][0]["metrics"].get("missing", []),
        recipe=text,
    )
    path = run / "report.html"
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)
    return path


def render(template: str, **values: Any) -> str:
    """A page of this package, whole: what the values hold is escaped, and a name the template misses is an error."""
    return _environment().get_template(template).render(**values)


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = percent
    return made


def _steps(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Logged steps in order, the last word on each, and a note where there are none."""
    if not path.is_file():
        return [], "There is no metrics.jsonl in the run folder, so there are no training curves."
    steps = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # a run that was killed may leave half a line
        if isinstance(entry, dict) and "step" in entry:
            steps[entry["step"]] = entry
    return [steps[step] for step in sorted(steps)], "" if steps else "metrics.jsonl holds no step yet."


def _curves(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    charts = []
    for key, label in CURVES.items():
        points = [
            (float(max(1, step["step"])), float(step[key]))
            for step in steps
            if isinstance(step.get(key), int | float) and np.isfinite(step[key])
        ]
        if points:
            made = chart([Line(label, thinned(points))], "step (logarithmic)", label, x_log=True)
            charts.append({"label": label, "chart": made, "last": f"{points[-1][1]:.4g}"})
    return charts


def _comparison(results: dict[str, Any], figures: Published) -> dict[str, Any]:
    rows = [
        {"name": method["name"], "kind": method["kind"], "headline": method["metrics"]["headline"]}
        for method in results["methods"]
    ]
    columns = list(rows[0]["headline"])
    best = {
        c: max((row["headline"][c] for row in rows if row["headline"][c] is not None), default=None) for c in columns
    }
    return {
        "columns": columns,
        "rows": rows,
        "best": best,
        "published": [{"name": name, "headline": row} for name, row in figures.methods.items()],
        "comparable": figures.comparable,
        "reason": figures.reason,
        "counts": results["methods"][0]["metrics"].get("counts", {}),
    }


def _identical(results: dict[str, Any]) -> list[dict[str, Any]]:
    key = "headline_including_identical_view"
    return [{"name": m["name"], "headline": m["metrics"][key]} for m in results["methods"] if key in m["metrics"]]


def _maps(method: dict[str, Any]) -> dict[str, Any]:
    """Heat maps of one method on one scale: from the ten below its lowest cell to 100."""
    groups = {group: cells for group, cells in method["metrics"]["by_view"].items() if cells["probe_views"]}
    rates = [rate for cells in groups.values() for row in cells["rank1"] for rate in row if rate is not None]
    low = min(90.0, 10 * (min(rates, default=0) // 10))
    made = []
    for group, cells in groups.items():
        rows = []
        for view, row in zip(cells["probe_views"], cells["rank1"], strict=True):
            apart = [r for r, other in zip(row, cells["gallery_views"], strict=True) if r is not None and other != view]
            shades = [
                {
                    "rate": rate,
                    "share": 0 if rate is None else round((rate - low) / (100 - low), 3),
                    "identical": other == view,
                    "gallery": other,
                }
                for rate, other in zip(row, cells["gallery_views"], strict=True)
            ]
            rows.append({"view": view, "cells": shades, "mean": float(np.mean(apart)) if apart else None})
        made.append({"group": group, "gallery_views": cells["gallery_views"], "rows": rows})
    return {"name": method["name"], "low": low, "groups": made}


def _matches(methods: list[dict[str, Any]]) -> dict[str, Any]:
    """CMC of every method, a chart a group of probes."""
    charts = []
    for group in methods[0]["metrics"].get("cmc", {}):
        lines = [
            Line(
                method["name"],
                [(rank, rate) for rank, rate in enumerate(curve, 1) if rate is not None],
                style,
            )
            for style, method in enumerate(methods)
            if (curve := method["metrics"]["cmc"].get(group))
        ]
        if any(line.points for line in lines):
            low = 10 * (min(y for line in lines for _, y in line.points) // 10)
            limits = (min(low, 90.0), 100.0)
            made = chart(lines, "rank k", "recognised within rank k (%)", y_limits=limits)
            charts.append({"group": group, "chart": made})
    return {"charts": charts, "names": [method["name"] for method in methods]}


def _lengths(methods: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Rank-1 over sequence length, a line a method, and how many probes the points stand for; None without lengths."""
    lines = [
        Line(
            method["name"],
            [((b["from"] + b["to"]) / 2, b["rank1"]) for b in method.get("breakdown", {}).get("by_length", [])],
            style,
        )
        for style, method in enumerate(methods)
    ]
    ranges = methods[0].get("breakdown", {}).get("by_length", [])
    if not ranges:
        return None
    made = chart(lines, "frames (middle of a range)", "rank-1 (%)", y_limits=(0.0, 100.0), dots=True)
    return {"chart": made, "ranges": ranges, "names": [method["name"] for method in methods]}


def _confused(method: dict[str, Any]) -> list[dict[str, Any]]:
    """Pairs of people, with the share of the subject's probes that were taken for the other."""
    pairs = method.get("breakdown", {}).get("confused", [])
    return [{**pair, "share": pair["num_probes"] / pair["of"]} for pair in pairs]


def _cases(results: dict[str, Any], shard_set: Silhouettes | None) -> tuple[list[dict[str, Any]], str]:
    """The hardest probes of the first method, with pictures, and a note where there are none."""
    hardest = [case for method in results["methods"][:1] for case in method.get("hardest", [])]
    if not hardest:
        return [], "No probe was taken for somebody else, or none was recorded."
    if shard_set is None:
        return (
            [],
            "The silhouettes were not at hand when this page was made, so the hardest probes are not shown.",
        )
    if shard_set.fingerprint != results.get("data", {}).get("fingerprint"):
        return [], (
            f"The data set at hand ({shard_set.fingerprint}) is not the one that was evaluated, "
            "so the hardest probes are not shown."
        )
    roles = ("probe", "taken_for", "right")
    rows = [case[role] for case in hardest for role in roles]
    described = shard_set.index.take(rows).to_pylist()
    pictures = [sprite(silhouettes) for silhouettes in shard_set.read(rows)]
    shown = [{**row, "sprite": picture} for row, picture in zip(described, pictures, strict=True)]
    cases = []
    for i, case in enumerate(hardest):
        sides = dict(zip(roles, shown[3 * i : 3 * i + 3], strict=True))
        excess = 100 * (case["distance_right"] / case["distance_taken"] - 1) if case["distance_taken"] else None
        cases.append(
            {
                **sides,
                "distance_taken": case["distance_taken"],
                "distance_right": case["distance_right"],
                "excess": excess,
            }
        )
    return cases, ""
