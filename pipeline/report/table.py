"""The comparison of methods on screen, laid out as in the papers."""

from typing import Any

from rich.table import Table


def percent(rate: float | None) -> str:
    """A rate for print: one decimal, a dash where nothing was measured."""
    return "–" if rate is None else f"{rate:.1f}"


def table(results: dict[str, Any]) -> Table:
    """A row a method, a column a figure of its headline, percent, the best bold. `results`: results.json."""
    across = "headline_including_identical_view" in results["methods"][0]["metrics"]
    rows = [method["metrics"]["headline"] for method in results["methods"]]
    columns = list(rows[0])
    made = Table(title=f"{results['data']['name']} by {results['protocol']}", title_justify="left")
    if across:
        made.caption, made.caption_justify = "identical views left out", "left"
    made.add_column("rank-1 (%)" if "mean" in columns else "(%)")
    for column in columns:
        made.add_column(column, justify="right")
    best = {column: max((row[column] for row in rows if row[column] is not None), default=None) for column in columns}
    for method, row in zip(results["methods"], rows, strict=True):
        cells = [
            f"[bold]{percent(row[column])}[/bold]"
            if row[column] is not None and row[column] == best[column]
            else percent(row[column])
            for column in columns
        ]
        made.add_row(method["name"].replace("[", r"\["), *cells)
    return made
