"""Runs beside one another and beside what is published, and no difference where there is nothing to compare."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.compare import compare


def write(path: Path, nm: float, *, recipe: str = "casia-b", protocol: str = "casia-b", **data: object) -> Path:
    described = {"name": "casia-b", "fingerprint": "a" * 64, "test_subjects": 50, "test_sequences": 5485, **data}
    headline = {"NM": nm, "BG": None, "CL": 80.0, "mean": (nm + 80) / 2}
    found = {
        "format": 1,
        "protocol": protocol,
        "rules": {"name": protocol},
        "recipe": {"name": recipe},
        "data": described,
        "methods": [{"name": "HSTL", "kind": "trained", "metrics": {"headline": headline}}],
    }
    (path / "evaluation").mkdir(parents=True)
    (path / "evaluation" / "results.json").write_text(json.dumps(found))
    return path


def test_differences_to_the_published_and_to_the_first_run(tmp_path):
    one, other = write(tmp_path / "one", 98.0), write(tmp_path / "other", 97.0)
    (found,) = compare([one, other / "evaluation" / "results.json"])
    assert found.columns == ["NM", "BG", "CL", "mean"]
    assert found.published[0].name == "HSTL (ICCV 2023)"
    first, second = found.runs
    assert first.against_published == pytest.approx({"NM": -0.1, "BG": None, "CL": -8.9, "mean": -5.3}, nan_ok=False)
    assert first.against_first is None
    assert second.against_first == {"NM": -1.0, "BG": None, "CL": 0.0, "mean": -0.5}
    assert "Data set, test subjects and protocol are the benchmark's." in found.remarks[0]


@pytest.mark.parametrize(
    ("difference", "reason"),
    [
        ({"recipe": "demo"}, None),
        ({"fingerprint": "b" * 64}, "other data"),
        ({"frames_limit": {"frames": 9, "sequences_cut": 0}}, "another frames limit"),
        ({"test_subjects": 12}, None),
    ],
)
def test_what_is_not_comparable_gets_no_difference_and_a_reason(tmp_path, difference, reason):
    runs = [write(tmp_path / "one", 98.0), write(tmp_path / "two", 97.0, **difference)]
    (found,) = compare(runs)
    second = found.runs[1]
    assert (second.against_first is None) == (reason is not None)
    if reason:
        assert any(f"two: not comparable with {runs[0]}: {reason}" in remark for remark in found.remarks)
    else:
        assert second.against_published is None
        assert any("two: Not comparable with published figures" in remark for remark in found.remarks)


def test_other_protocols_stand_apart(tmp_path):
    found = compare([write(tmp_path / "one", 98.0), write(tmp_path / "two", 97.0, protocol="mine")])
    assert [one.protocol for one in found] == ["casia-b", "mine"]
    assert found[1].published == []
    assert json.loads(json.dumps(found[1].to_dict()))["runs"][0]["headline"]["NM"] == 97.0


def test_on_screen(tmp_path):
    runs = [write(tmp_path / "one", 98.0), write(tmp_path / "two", 97.0)]
    console = Console(file=StringIO(), width=200)
    console.print(compare(runs)[0])
    text = console.file.getvalue()
    assert "published: HSTL (ICCV 2023)" in text
    assert "98.0 (p -0.1)" in text
    assert "97.0 (p -1.1, r -1.0)" in text


def test_by_command_line(tmp_path):
    run = write(tmp_path / "one", 98.0)
    result = CliRunner().invoke(app, ["compare", str(run), "--json", str(tmp_path / "c.json")])
    assert result.exit_code == 0
    assert json.loads((tmp_path / "c.json").read_text())[0]["runs"][0]["headline"]["NM"] == 98.0
    result = CliRunner().invoke(app, ["compare", str(tmp_path)])
    assert result.exit_code == 2
    assert "results.json does not exist" in " ".join(result.output.split())
