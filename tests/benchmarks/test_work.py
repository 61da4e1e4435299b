"""The bound is counted right: published figures, and a count of what torch really runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.work import multiplications, step_bytes, step_operations
from pipeline.model import HSTL, VARIANTS, fast


@pytest.mark.parametrize(
    ("name", "classes", "giga"), [("casia-b", 74, 25.8), ("oumvlp", 5153, 29.4), ("gait3d", 3000, 29.4)]
)
def test_published_multiplications_a_sequence(name: str, classes: int, giga: float) -> None:
    assert multiplications(VARIANTS[name], 30, classes) / 1e9 == pytest.approx(giga, rel=0.01)


def test_casia_bs_90000_steps_are_the_operations_its_recipe_states() -> None:
    assert 90_000 * step_operations(VARIANTS["casia-b"], 30, 74, 64) == pytest.approx(0.89e18, rel=0.01)


def test_the_count_is_what_torch_runs() -> None:
    network = HSTL("demo", 7).eval()
    # The count looks into convolutions, not into ours of fewer products.
    with fast.without("winograd"), torch.no_grad(), FlopCounterMode(display=False) as counted:
        network(torch.zeros(1, 9, 64, 44))
    assert counted.get_total_flops() / 2 == pytest.approx(multiplications(VARIANTS["demo"], 9, 7), rel=0.02)


def test_bytes_of_a_step_grow_with_values_and_parameters() -> None:
    of = [step_bytes(VARIANTS["casia-b"], 30, n, parameters, 2) for n, parameters in ((1, 0), (2, 0), (1, 10))]
    assert of[1] == 2 * of[0] and of[2] - of[0] == 280
