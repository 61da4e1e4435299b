"""Runs the benchmarks that need nothing but this repository: `make bench`. Exits 1 if any of them fails.

The parts that time training and embedding go into one table, and into benchmarks/results/ as dated JSON, Markdown and
a picture. The commands after them print for themselves. Each is a command of its own, with options: `python -m
benchmarks.NAME --help`. Left out here for their length are `stream`, `read start` and `read index`; `precision` joins
in where `make demo` has left its shards.
"""

import argparse
import json
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import growth
from benchmarks.measure import machine

RESULTS = Path(__file__).parent / "results"
DEMO = Path("demo/shards")
PARTS = {
    "step": "step --paths --repeats 3",
    "embedding": "embedding --repeats 3",
    "whole": f"whole --data {DEMO}" if (DEMO / "shards.json").is_file() else "whole",
    "growth": "growth",
}
COMMANDS = ["evaluation", "pack", "read rate", "memory --sequences 16", "zero"]


def run(command: str) -> dict[str, Any] | None:
    """Figures that a part prints as JSON; None where it failed."""
    name, *options = command.split()
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def rows(figures: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Every number under its dotted place, for a table."""
    found = []
    for name, value in figures.items():
        place = f"{above} · {name}" if above else name
        if isinstance(value, dict) and set(value) == {"clock", "cpu"}:
            found.append((place, f"{value['clock']:.3g} ({value['cpu']:.3g} by CPU seconds)"))
        elif isinstance(value, dict):
            found += rows(value, place)
        elif isinstance(value, list):
            found += [(place, ", ".join(f"{key} {number:.4g}" for key, number in point.items())) for point in value]
        else:
            found.append((place, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return found


def write(figures: dict[str, Any], to: Path, command: str) -> list[Path]:
    """JSON, Markdown and picture of one run."""
    stem = to / f"{date.today()}-speed"
    written = [stem.with_suffix(".json"), stem.with_suffix(".md")]
    written[0].write_text(json.dumps(figures, indent=1) + "\n")
    lines = [f"# Speed, {date.today()}", "", f"`{command}`", "", "| | |", "|---|---|"]
    lines += [f"| {place} | {value} |" for place, value in rows(figures)]
    if "growth" in figures:
        written.append(stem.with_suffix(".png"))
        growth.picture(figures["growth"], written[-1])
        lines += ["", f"![Growth]({written[-1].name})"]
    written[1].write_text("\n".join(lines) + "\n")
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all, and the rest, if none")
    parser.add_argument("--to", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; choose of {', '.join(PARTS)}")
    began = time.perf_counter()
    figures: dict[str, Any] = {"machine": machine()}
    failed = []
    for part in arguments.parts or PARTS:
        print(f"== {part} ==", file=sys.stderr, flush=True)
        if (found := run(PARTS[part])) is None:
            failed.append(part)
        else:
            figures[part] = found
    figures["seconds in all"] = time.perf_counter() - began
    table = Table("what", "figure", title="Speed")
    for row in rows(figures):
        table.add_row(*row)
    Console(width=150).print(table)
    for path in write(figures, arguments.to, " ".join(["python -m benchmarks", *arguments.parts])):
        print(f"written: {path}")
    if not arguments.parts:
        for command in [*COMMANDS, *(["precision --seeds 1"] if (DEMO / "shards.json").is_file() else [])]:
            print(f"\n== {command} ==", flush=True)
            name, *options = command.split()
            if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False).returncode:
                failed.append(command)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
