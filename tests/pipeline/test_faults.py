import pytest
import torch
from torch import nn

from pipeline.faults import is_out_of_memory, out_of_memory_explained
from pipeline.recipe import Recipe, load
from pipeline.trained import GradientCheck
from tests.pipeline.test_train import DEMO


def test_gradients_that_are_not_finite_are_named() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    check = GradientCheck(network)
    network(torch.ones(3, 2)).sum().backward()
    assert not check.broken() and check.names() == []
    (network(torch.ones(3, 2)).sum() * torch.inf).backward()
    assert check.broken()
    assert sorted(check.names()) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    network[0](torch.ones(3, 2)).sum().backward()
    network[1](torch.ones(3, 2)).sum().backward()
    assert not check.broken()  # what is asked is the last backward pass


def test_one_element_is_enough() -> None:
    layer = nn.Linear(1000, 1000)
    check = GradientCheck(layer)
    x = torch.ones(1, 1000)
    x[0, 7] = torch.nan
    layer(x).sum().backward()
    assert check.names() == ["weight"]


def recipe(**train: object) -> Recipe:
    return load(DEMO, [f"train.{name}={value}" for name, value in train.items()])


@pytest.mark.parametrize(
    ("micro_batch", "remedy"),
    [("null", r"32 of them convolved at once; set train\.micro_batch=16"), ("1", "1 of them .* launch more processes")],
)
def test_out_of_memory_says_at_what_and_what_helps(micro_batch: str, remedy: str) -> None:
    with (
        pytest.raises(MemoryError, match=f"out of memory on rank 3, with 32 sequences of .* {remedy}"),
        out_of_memory_explained(recipe(micro_batch=micro_batch), 32, 3),
    ):
        torch.empty(1 << 60)  # a real refusal of torch's allocator


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_explained(recipe(), 32, 0):
        raise RuntimeError("shapes do not match")
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
