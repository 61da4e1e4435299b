"""What the benchmarks say is what they counted."""

import pytest
import torch

from benchmarks.__main__ import rows
from benchmarks.growth import kept_bytes, picture, projection
from benchmarks.measure import Times, alternate, ratio
from pipeline.model import HSTL


def test_memory_kept_grows_with_the_batch_and_not_with_micro_batches() -> None:
    torch.manual_seed(0)
    walks = torch.randint(0, 2, (4, 6, 64, 44), dtype=torch.uint8)
    network = HSTL("demo", 5)
    one, four = kept_bytes(network, walks[:1]), kept_bytes(network, walks)
    assert 3 * one < four < 4.1 * one  # weights laid out anew are kept once, whatever the batch
    network.micro_batch = 1
    assert kept_bytes(network, walks) < four / 4


def test_projection_is_compute_and_bytes_over_the_stated_assumptions() -> None:
    assumed = {"peak": 100.0, "share": 0.5, "inside": 100.0, "between": 10.0, "sequences": 32.0, "hidden": 0.0}
    points = {point["GPUs"]: point for point in projection("casia-b", 74, assumed)}
    assert list(points) == [1, 8, 16, 32, 64, 128, 256, 512]
    assert points[1]["of it exchange"] == 0
    assert points[1]["seconds a step"] == pytest.approx(32 * 25.8e9 * 6 / 50e12, rel=0.01)
    assert points[16]["of it exchange"] == pytest.approx(2 * 15 / 16 * 4 * 4.75e6 / 10e9, rel=0.01)
    assert points[512]["sequences/s"] < 512 * points[1]["sequences/s"]


def test_functions_take_turns_and_ratios_are_of_pairs() -> None:
    calls: list[str] = []
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3 and len(times["a"].wall) == 2
    assert ratio(Times([2.0, 9.0, 4.0], [1.0, 1.0, 1.0]), Times([1.0, 3.0, 1.0], [1.0, 2.0, 0.5])) == {
        "clock": 3.0,
        "cpu": 1.0,
    }


def test_rows_hold_every_figure_under_its_place() -> None:
    figures = {"step": {"bf16": {"clock": 2.5, "cpu": 2.4}, "batch": "2 x 2"}, "growth": [{"frames": 9, "MB": 1.5}]}
    assert rows(figures) == [
        ("step · bf16", "2.5 (2.4 by CPU seconds)"),
        ("step · batch", "2 x 2"),
        ("growth", "frames 9, MB 1.5"),
    ]


def test_a_picture_is_drawn(tmp_path) -> None:
    sizes = {"sequences/s": 1.0, "MB kept": 1.0, "MB of parameters": 1.0}
    found = {what: [{what: 1, **sizes}, {what: 2, **sizes}] for what in ("sequences", "frames", "width", "classes")}
    found["processes"] = [{"processes": 1, "sequences/s": 1.0}]
    found |= {"projection, not measured": {"assumed": {}, "x": projection("demo", 5)}, "variant": "demo"}
    picture({**found, "machine": {"cores": 2}}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
