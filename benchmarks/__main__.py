"""Runs the benchmarks that need nothing but this repository: `make bench`. Exits 1 if any of them fails.

Each is a command of its own, with options: `python -m benchmarks.NAME --help`. Left out here for their length are
`stream`, `read start` and `read index`; `precision` joins in where `make demo` has left its shards.
"""

import subprocess
import sys
from pathlib import Path

COMMANDS = ["evaluation", "pack", "read rate", "memory --sequences 16"]

if __name__ == "__main__":
    if Path("demo/shards/shards.json").is_file():
        COMMANDS.append("precision --seeds 1")
    failed = []
    for command in COMMANDS:
        print(f"\n== {command} ==", flush=True)
        name, *options = command.split()
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False).returncode:
            failed.append(command)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
