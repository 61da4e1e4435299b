"""A tiny data set made and packed by the real commands, and a way to run whole commands."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from shards.walkers import write
from tests.processes import free_port

ROOT = Path(__file__).parents[2]

Launch = Callable[..., subprocess.CompletedProcess[str]]


def launch_environment(**variables: str) -> dict[str, str]:
    """This process's environment without what Accelerate left in it: the launch file alone decides."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    return {**kept, "OMP_NUM_THREADS": "1", **variables}


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people seen from three sides, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("walkers of") / "raw"
    write(folder, 6, frames=(12, 15), views=("000", "054", "090"), progress=False)
    return folder


@pytest.fixture(scope="session")
def packed(raw: Path) -> Path:
    """The six packed: four train, two test."""
    (raw.parent / "partition.yaml").write_text("train: [001..004]\ntest: [005, 006]\n")
    to = raw.parent / "shards"
    command = ["pack", "--layout", "casia-b", "--source", raw, "--to", to, "--partition", raw.parent / "partition.yaml"]
    result = CliRunner().invoke(app, [*map(str, command), "--quiet"])
    assert result.exit_code == 0, result.output
    return to


@pytest.fixture(scope="session")
def launch() -> Launch:
    """`accelerate launch` with a file of accelerate_configs/, from the repository's root."""

    def run(
        config: str,
        module: str,
        *arguments: object,
        env: dict[str, str] | None = None,
        processes: int | None = None,
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
        command += ["--config_file", f"accelerate_configs/{config}.yaml", "--main_process_port", str(free_port())]
        command += [] if processes is None else ["--num_processes", str(processes)]
        command += ["-m", module, *map(str, arguments)]
        environment = launch_environment(**(env or {}))
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=280)

    return run
