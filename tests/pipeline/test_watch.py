import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import world
from pipeline.metrics_log import read
from pipeline.recipe import load
from pipeline.watch import Watch, peak_memory
from tests.processes import run as run_processes

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
SLACK = 32 * 2**20
"""The kernel counts pages a processor at a time."""
SHARD_SET: Any = SimpleNamespace(statistics={"requests": 3})


def watch(run: Path, log_every: int, losses: list[float], accelerator: Any = None) -> None:
    recipe = load(DEMO, ["train.trackers=[]", f"train.log_every={log_every}", f"train.steps={len(losses)}"])
    with Watch(accelerator or world.start(), recipe, run, 0, SHARD_SET) as watching:
        for step, loss in enumerate(losses, 1):
            with watching.waiting():
                pass
            terms = {name: torch.tensor(loss) for name in ("loss", "triplet", "cross_entropy")}
            watching.step_done(step, terms, 0.001)
        with watching.saving():
            pass


def test_lines_hold_means_speed_and_memory(tmp_path: Path) -> None:
    watch(tmp_path, 2, [3.0, 1.0, 7.0])
    first, last = read(tmp_path)
    assert (first["step"], first["steps"], first["loss"]) == (2, 2, 2.0)
    assert (last["step"], last["steps"], last["loss"], last["lr"]) == (3, 1, 7.0, 0.001)
    assert first["sequences_per_s"] == pytest.approx(first["steps_per_s"] * 8 * 4)
    assert 0 <= first["data_wait"] <= 1 and last["store"] == {"requests": 3}
    assert 10 * 2**20 < first["memory_bytes"] < peak_memory(torch.device("cpu")) + SLACK


def test_a_log_without_a_terminal_has_a_line_a_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    watch(tmp_path, 1, [3.0, 2.0])
    first, last = capfd.readouterr().err.strip().splitlines()
    assert re.fullmatch(
        r"step 1/2  loss 3\.000 \(triplet 3\.000, cross-entropy 3\.000\)  lr 1e-03  [\d.]+ steps/s  "
        r"\d+ sequences/s  waiting for data \d+%  memory [\d.]+ GiB",
        first,
    )
    assert last.startswith("step 2/2")


def test_a_narrow_terminal_shows_all_of_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "60"), ("LINES", "30"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    watch(tmp_path, 1, [3.0])
    text = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", " ", capfd.readouterr().err).split())
    for part in ("train", "1/1", "loss 3.000", "cross-entropy 3.000", "lr 1e-03", "steps/s", "sequences/s", "GiB"):
        assert part in text
    assert "waiting for data" in text and "…" not in text


def test_a_peak_stays_when_the_memory_is_given_back() -> None:
    device = torch.device("cpu")
    block = np.ones(256 * 2**20, np.uint8)
    with_block = peak_memory(device)
    del block
    assert peak_memory(device) > with_block - SLACK
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident = 1024 * int(status["VmRSS"].split()[0])
    assert with_block > resident + 256 * 2**20 - SLACK


def _two_ranks(run: str) -> tuple[int, list[dict[str, Any]]]:
    import os

    rank = int(os.environ["RANK"])
    os.environ["ACCELERATE_USE_CPU"] = "true"
    block = np.ones((1 + 200 * rank) * 2**20, np.uint8)
    accelerator = world.start()
    accelerator.state.destroy_process_group = lambda: None  # the caller's
    watch(Path(run), 1, [1.0 + 2 * rank], accelerator)
    return peak_memory(torch.device("cpu")) + 0 * int(block[0]), read(Path(run))


def test_lines_hold_the_mean_loss_and_the_most_memory_of_all_ranks(tmp_path: Path) -> None:
    (small, lines), (large, _) = run_processes(_two_ranks, 2, tmp_path, str(tmp_path))
    (line,) = lines
    assert line["loss"] == 2.0
    assert small + 100 * 2**20 < line["memory_bytes"] < large + SLACK
