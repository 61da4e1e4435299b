"""Whether training was worth it: does the network beat itself untrained, and nearest gait energy images?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """`passed` is None where there is nothing to compare."""

    passed: bool | None
    text: str


def score(metrics: dict[str, Any]) -> float | None:
    """The one number of an `evaluate` result, percent: the mean of its groups, or its first figure."""
    headline = metrics["headline"]
    return headline["mean"] if "mean" in headline else next(iter(headline.values()))


def verdict(methods: Sequence[dict[str, Any]]) -> Verdict:
    """Of the methods of results.json: {name, kind: "trained" | "untrained" | "gei", metrics}."""
    scores = {method["kind"]: score(method["metrics"]) for method in methods}
    names = {method["kind"]: method["name"] for method in methods}
    trained = scores.pop("trained", None)
    rivals = {kind: rate for kind, rate in scores.items() if rate is not None}
    if trained is None or not rivals:
        return Verdict(
            None,
            "There is nothing to compare: a trained network and a baseline, each with a result, are needed.",
        )
    ahead = [f"{names[kind]} ({rate:.1f} %)" for kind, rate in rivals.items() if rate >= trained]
    beaten = [f"{names[kind]} ({rate:.1f} %)" for kind, rate in rivals.items() if rate < trained]
    if ahead:
        return Verdict(False, f"Failed: the trained network ({trained:.1f} %) does not beat {' nor '.join(ahead)}.")
    behind = _behind(methods)
    but = f", but is behind one of them on {', '.join(behind)}" if behind else ""
    return Verdict(True, f"The trained network ({trained:.1f} %) beats {' and '.join(beaten)}{but}.")


def _behind(methods: Sequence[dict[str, Any]]) -> list[str]:
    """Figures of the headline in which a baseline is ahead of the trained network."""
    trained = next(method for method in methods if method["kind"] == "trained")["metrics"]["headline"]
    rivals = [method["metrics"]["headline"] for method in methods if method["kind"] != "trained"]
    return [
        name
        for name, rate in trained.items()
        if rate is not None and any((rival.get(name) or 0) > rate for rival in rivals)
    ]
