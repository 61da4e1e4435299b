"""The classifier cut over ranks = the classifier whole: loss, every gradient, and an update."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model import HSTL
from pipeline.model.sharded_classifier import ShardedClassifier, bounds
from pipeline.objective import batch_losses
from pipeline.recipe import Loss
from tests.processes import average, run

CLASSES = 7
LOSS = Loss(margin=0.2, scale=16.0, smoothing=0.1)


@given(st.integers(1, 500), st.integers(1, 64))
def test_every_class_has_one_rank_and_ranks_are_even(num_classes: int, world_size: int) -> None:
    edges = bounds(num_classes, world_size)
    assert [c for first, last in edges for c in range(first, last)] == list(range(num_classes))
    sizes = [last - first for first, last in edges]
    assert max(sizes) - min(sizes) <= 1


def one_step(dtype: torch.dtype, sharded: bool, smoothing: float) -> dict[str, torch.Tensor]:
    """Losses and gradients of one step on this rank's slice of a fixed batch of twelve; the classifier's as a whole."""
    world_size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    generator = torch.Generator().manual_seed(3)
    silhouettes = torch.rand(12, 6, 64, 44, generator=generator).round().to(dtype).chunk(world_size)[rank]
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 5, 5, 6, 6]).chunk(world_size)[rank]
    torch.manual_seed(0)
    network = HSTL("demo", CLASSES).to(dtype).train()
    classifier = ShardedClassifier(network, rank, world_size) if sharded else None
    terms = batch_losses(network(silhouettes), labels, LOSS.model_copy(update={"smoothing": smoothing}), classifier)
    terms["loss"].backward()
    result = {name: value.detach() for name, value in terms.items()}
    result |= {name: parameter.grad for name, parameter in network.named_parameters()}
    average(result.values())
    if classifier is not None:  # nobody averages this one
        pieces: list[torch.Tensor | None] = [classifier.weight.grad] * world_size
        if world_size > 1:
            dist.all_gather_object(pieces, classifier.weight.grad)
        result["classifier.weight"] = torch.cat(pieces, dim=2)
    return result


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_in_one_process_cutting_changes_nothing(smoothing: float) -> None:
    whole, cut = (one_step(torch.float64, sharded, smoothing) for sharded in (False, True))
    assert whole.keys() == cut.keys()
    for name, expected in whole.items():
        torch.testing.assert_close(cut[name], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("world_size", "dtype", "tolerance"),
    [(2, torch.float32, 1e-5), (3, torch.float64, 1e-11), (4, torch.float64, 1e-11)],
)
def test_ranks_with_their_own_classes_equal_one_with_all(
    tmp_path: Path, world_size: int, dtype: torch.dtype, tolerance: float
) -> None:
    alone = one_step(dtype, False, 0.1)
    for together in run(one_step, world_size, tmp_path, dtype, True, 0.1):
        assert together.keys() == alone.keys()
        for name, expected in alone.items():
            torch.testing.assert_close(
                together[name], expected, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_more_ranks_than_classes(tmp_path: Path) -> None:
    def edges(rank: int) -> int:
        network = HSTL("demo", 2)
        return ShardedClassifier(network, rank, 3).weight.shape[2]

    assert [edges(rank) for rank in range(3)] == [0, 1, 1]


def test_bf16_stays_near_fp32() -> None:
    torch.manual_seed(0)
    losses = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        network = HSTL("demo", CLASSES, precision=precision)  # type: ignore[arg-type]
        classifier = ShardedClassifier(network, 0, 1)
        embeddings = torch.randn(4, network.variant.parts, network.variant.channels, requires_grad=True)
        loss = classifier(embeddings, torch.tensor([0, 1, 2, 3]), 1.0, 0.0)
        loss.backward()
        assert classifier.weight.grad is not None and classifier.weight.grad.dtype == torch.float32
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
