"""A classifier written by some ranks and read by others: the same weights, the same updates from there on."""

from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import classifier as files
from pipeline.model import HSTL
from pipeline.model.sharded_classifier import ShardedClassifier
from pipeline.recipe import Optimizer
from pipeline.trained import build_optimizer

CLASSES = 11


def make(rank: int, ranks: int, kind: str) -> tuple[ShardedClassifier, torch.optim.Optimizer]:
    torch.manual_seed(0)
    made = ShardedClassifier(HSTL("demo", CLASSES), rank, ranks)
    momentum = 0.9 if kind == "sgd" else 0.0
    return made, build_optimizer(made, Optimizer(kind=kind, lr=0.1, momentum=momentum))  # type: ignore[arg-type]


def update(classifier: ShardedClassifier, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One step by made-up gradients, which for a class do not depend on who holds it."""
    generator = torch.Generator().manual_seed(step)
    whole = torch.randn(*classifier.weight.shape[:2], CLASSES, generator=generator)
    classifier.weight.grad = whole[:, :, classifier.first : classifier.last].clone()
    optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 3), (3, 2), (13, 2), (2, 13)])
def test_any_number_of_ranks_goes_on_from_any_other(tmp_path: Path, kind: str, before: int, after: int) -> None:
    expected, optimizer = make(0, 1, kind)
    for step in range(4):
        update(expected, optimizer, step)
    for rank in range(before):
        share, own = make(rank, before, kind)
        update(share, own, 0)
        update(share, own, 1)
        files.write(tmp_path, share, own, rank, before)
    for rank in range(after):
        share, own = make(rank, after, kind)
        files.read(tmp_path, share, own)
        update(share, own, 2)
        update(share, own, 3)
        assert torch.equal(share.weight, expected.weight[:, :, share.first : share.last])


def test_the_whole_weight_is_joined_in_order_of_classes(tmp_path: Path) -> None:
    whole, _ = make(0, 1, "sgd")
    for rank in range(4):
        files.write(tmp_path, *make(rank, 4, "sgd"), rank, 4)
    assert torch.equal(files.joined(tmp_path, CLASSES), whole.weight)


def test_missing_classes_are_an_error(tmp_path: Path) -> None:
    files.write(tmp_path, *make(0, 2, "sgd"), 0, 2)
    with pytest.raises(ValueError, match=r"holds classes up to 5 only; 11 are needed"):
        files.read(tmp_path, *make(0, 1, "sgd"))
    with pytest.raises(ValueError, match=r"classes up to 5 of 11"):
        files.joined(tmp_path, CLASSES)
