"""Line charts, worked out here and drawn by the page as inline SVG in its own colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 350, 10, 182  # the plotting area
MAX_POINTS = 240


@dataclass(frozen=True)
class Line:
    """One line of a chart; `style` picks colour and dashes (classes line-0, line-1, .. of the page)."""

    label: str
    points: Sequence[tuple[float, float]]
    style: int = 0


@dataclass(frozen=True)
class Chart:
    """A chart in the units of its view box; `lines` are (label, style, points), the first drawn last."""

    x_label: str
    summary: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[tuple[str, int, list[tuple[float, float]]]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    bottom: int = BOTTOM
    dots: bool = False
    """Whether every point is marked."""


def chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    x_log: bool = False,
    y_limits: tuple[float, float] | None = None,
    dots: bool = False,
) -> Chart:
    """`lines`, with at least one point in all, on shared axes with four or so ticks each; `dots` mark the points."""
    lines = [line for line in lines if line.points]
    x_low, x_high = _limits([x for line in lines for x, _ in line.points])
    y_low, y_high = y_limits or _limits([y for line in lines for _, y in line.points])

    def across(x: float) -> float:
        share = math.log(x / x_low) / math.log(x_high / x_low) if x_log else (x - x_low) / (x_high - x_low)
        return round(LEFT + share * (RIGHT - LEFT), 1)

    def down(y: float) -> float:
        return round(TOP + (y_high - y) / (y_high - y_low) * (BOTTOM - TOP), 1)

    ends = [
        f"{line.label} from {line.points[0][1]:.4g} at {line.points[0][0]:g} "
        f"to {line.points[-1][1]:.4g} at {line.points[-1][0]:g}"
        for line in lines
    ]
    x_ticks = _log_ticks(x_low, x_high) if x_log else _ticks(x_low, x_high, 5)
    return Chart(
        x_label=x_label,
        dots=dots,
        summary=f"{y_label} by {x_label}: {'; '.join(ends)}",
        x_ticks=[(across(x), _text(x)) for x in x_ticks],
        y_ticks=[(down(y), _text(y)) for y in _ticks(y_low, y_high, 4)],
        lines=[(line.label, line.style, [(across(x), down(y)) for x, y in line.points]) for line in lines[::-1]],
    )


def thinned(points: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means of x > 0 and y over bins of equal width in log x."""
    if len(points) <= most:
        return list(points)
    x, y = np.array(points, dtype=np.float64).T
    edges = np.geomspace(x.min(), x.max(), most + 1)
    bins = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, most - 1)
    count = np.bincount(bins, minlength=most)
    used = count > 0
    x_mean, y_mean = (np.bincount(bins, values, most)[used] / count[used] for values in (x, y))
    return list(zip(x_mean.tolist(), y_mean.tolist(), strict=True))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.0 if high > low else abs(low) / 2 or 1.0  # a line that stands still needs room around it
    return low - room, high + room


def _ticks(low: float, high: float, num: int) -> list[float]:
    """Round numbers between the limits, about `num` of them."""
    rough = (high - low) / num
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 3000 else (1, 3) if high / low > 30 else (1, 2, 5)
    return [f * 10.0**d for d in decades for f in factors if low * 0.999 <= f * 10.0**d <= high * 1.001]


def _text(value: float) -> str:
    if value and not 1e-2 <= abs(value) < 1e6:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value / 1000:g}k" if abs(value) >= 10_000 and value % 1000 == 0 else f"{value:.6g}"
