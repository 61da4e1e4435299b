import io
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline import metrics_log
from pipeline.cli import app
from pipeline.run_state import Process, RunState
from pipeline.runs import find, list_runs, show

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def make(run: Path, age: timedelta | None = None, steps: int = 200, **state: Any) -> Path:
    """A run at step 120; `age` since its record was written, None for a run without one."""
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(f"name: demo\nfrom: [a later version]\ntrain: {{steps: {steps}}}\n")
    lines = ({"step": step, "loss": 12 / step, "sequences_per_s": step / 2} for step in range(20, 121, 20))
    (run / metrics_log.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(run / metrics_log.FILE, ((NOW - timedelta(days=9)).timestamp(),) * 2)
    os.utime(run / "recipe.yaml", ((NOW - timedelta(days=10)).timestamp(),) * 2)
    if age is not None:
        values = {"state": "running", "step": 127, "steps": steps, "holder": "h", **Process.current().model_dump()}
        times = {"started": NOW - age, "updated": NOW - age}
        (run / "state.json").write_text(RunState.model_validate({**values, **times, **state}).model_dump_json())
    return run


def evaluate(run: Path, **headline: float | None) -> None:
    (run / "evaluation").mkdir()
    results = {"format": 1, "protocol": "casia-b", "methods": [{"name": "HSTL", "metrics": {"headline": headline}}]}
    (run / "evaluation" / "results.json").write_text(json.dumps(results))


def shown(runs: list, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in show(runs, NOW, width):
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_listed_of_a_run(tmp_path: Path) -> None:
    evaluate(make(tmp_path / "demo" / "first", timedelta(seconds=5)), NM=84.5, BG=None)
    (run,) = list_runs([tmp_path], NOW)
    assert (run.name, run.recipe, run.state, run.step, run.steps) == ("demo/first", "demo", "running", 127, 200)
    assert (run.loss, run.sequences_per_s, run.updated) == (0.1, 60.0, NOW - timedelta(seconds=5))
    assert (run.protocol, run.headline, run.faults) == ("casia-b", {"NM": 84.5, "BG": None}, [])


def test_a_run_without_a_record_is_known_by_its_metrics(tmp_path: Path) -> None:
    (run,) = list_runs([make(tmp_path / "old")], NOW)
    assert (run.state, run.step, run.steps, run.updated) == ("not recorded", 120, 200, NOW - timedelta(days=9))
    assert run.name == str(tmp_path / "old")


def test_states_as_they_are_known_here(tmp_path: Path) -> None:
    make(tmp_path / "killed", timedelta(hours=1), pid=2**22 + 1)
    make(tmp_path / "far", timedelta(hours=2), machine="another", host="node9")
    make(tmp_path / "failed", timedelta(hours=3), state="failed", reason="FloatingPointError: nan")
    runs = list_runs([tmp_path], NOW)
    states = ["dead", "running, last sign of life 2 h ago", "failed"]
    assert [(run.name, run.state) for run in runs] == list(zip(["killed", "far", "failed"], states, strict=True))
    text = " ".join(shown(runs, 140).split())
    assert "running? last sign of life 2 h ago" in text and "failed: failed: FloatingPointError: nan" in text


def test_the_newest_run_comes_first_and_none_twice(tmp_path: Path) -> None:
    for name, days in (("a", 2), ("b", 1), ("c", 3)):
        make(tmp_path / "runs" / name, timedelta(days=days), state="finished")
    assert [run.name for run in list_runs([tmp_path, tmp_path / "runs"], NOW)] == ["b", "a", "c"]


def test_runs_are_found_at_any_depth_and_not_in_one_another(tmp_path: Path) -> None:
    outer = make(tmp_path / "x" / "y" / "outer")
    make(outer / "checkpoints" / "copy")
    make(tmp_path / ".trash" / "old")
    scratch = make(tmp_path.with_name(f"{tmp_path.name}-scratch"))
    (tmp_path / "linked").symlink_to(scratch)
    (tmp_path / "x" / "loop").symlink_to(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "metrics.jsonl").touch()
    assert sorted(find(tmp_path)) == [tmp_path / "linked", outer]


@pytest.mark.parametrize("file", ["state.json", "metrics.jsonl", "recipe.yaml", "evaluation/results.json"])
@pytest.mark.parametrize("content", ['{"step": \n', "[3]\n", "\n", "\x00\x00\n", '"text"\n'])
def test_a_damaged_file_is_named_and_the_others_are_listed(tmp_path: Path, file: str, content: str) -> None:
    evaluate(make(tmp_path / "bad", timedelta(days=1)), mean=1.0)
    evaluate(make(tmp_path / "good", timedelta(days=2), state="finished"), mean=50.0)
    (tmp_path / "bad" / file).write_text(content)
    runs = {run.name: run for run in list_runs([tmp_path], NOW)}
    assert runs["good"].headline == {"mean": 50.0} and runs["good"].faults == []
    (fault,) = runs["bad"].faults
    assert str(tmp_path / "bad" / file) in fault
    assert f"damaged: {fault}" in shown(list(runs.values()), 1000)


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "run")
    assert metrics_log.last(run) == metrics_log.read(run)[-1]
    with (run / metrics_log.FILE).open("r+b") as file:
        file.write(b"\xff")  # what is not read is not missed
        file.seek(1 << 30)
        file.write(b'\n{"step": 5, "loss": 1, "sequences_per_s": 2}\n{"step": 6, "lo')
    assert metrics_log.last(run) == {"step": 5, "loss": 1, "sequences_per_s": 2}


@pytest.mark.parametrize("content", ["", '{"step": 1'])
def test_a_log_without_a_whole_line_has_no_last_one(tmp_path: Path, content: str) -> None:
    assert metrics_log.last(tmp_path) is None
    (tmp_path / metrics_log.FILE).write_text(content)
    assert metrics_log.last(tmp_path) is None


@pytest.mark.parametrize("width", [60, 80, 109, 110, 160])
def test_the_list_fits_its_terminal_and_cuts_nothing(tmp_path: Path, width: int) -> None:
    name = "a-name-of-some-length-for-a-run/20260101-000000"
    evaluate(make(tmp_path / name, timedelta(minutes=3), machine="z"), NM=84.55, CL=33.3, mean=58.9)
    text = shown(list_runs([tmp_path], NOW), width)
    assert max(len(line) for line in text.splitlines()) <= width and "…" not in text
    for word in ("127/200", "0.100", "60", "running?", "84.5", "33.3", "58.9", "demo"):
        assert word in text


def test_by_command_line(tmp_path: Path) -> None:
    make(tmp_path / "demo" / "first", timedelta(0), state="finished")
    result = CliRunner().invoke(app, ["runs", str(tmp_path), "--json"])
    (run,) = json.loads(result.stdout)
    assert (run["name"], run["state"], run["updated"]) == ("demo/first", "finished", "2026-01-02T00:00:00+00:00")
    assert "demo/first" in " ".join(CliRunner().invoke(app, ["runs", str(tmp_path)]).output.split())


def test_folders_without_runs_and_folders_that_are_not_there(tmp_path: Path) -> None:
    empty = CliRunner().invoke(app, ["runs", str(tmp_path)])
    assert empty.exit_code == 0 and "recipe.yaml" in empty.output
    missing = CliRunner().invoke(app, ["runs", str(tmp_path / "nowhere")])
    assert missing.exit_code == 2 and "nowhere" in " ".join(missing.output.split()) and "hstl runs" in missing.output
