"""Runs every benchmark in turn: `make bench`. Each is a command of its own, too: `python -m benchmarks.NAME`."""

import subprocess
import sys
from pathlib import Path

for file in sorted(Path(__file__).parent.glob("*.py")):
    if not file.stem.startswith("_"):
        print(f"\n== {file.stem} ==", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{file.stem}"], check=False)
