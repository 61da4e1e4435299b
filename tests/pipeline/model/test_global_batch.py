"""N ranks = 1 rank: losses, every gradient, running statistics."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.model import HSTL
from pipeline.model.global_batch import gather
from pipeline.objective import batch_losses
from pipeline.recipe import Loss
from tests.processes import average, run

Result = dict[str, torch.Tensor]


def one_step(dtype: torch.dtype, micro_batch: int | None) -> Result:
    """Loss, averaged gradients and statistics of one step on this rank's slice of a fixed batch of eight."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    generator = torch.Generator().manual_seed(3)
    silhouettes = torch.rand(8, 6, 64, 44, generator=generator).round().to(dtype).chunk(world)[rank]
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]).chunk(world)[rank]
    torch.manual_seed(0)
    model = HSTL("demo", 4, micro_batch=micro_batch).to(dtype).train()
    terms = batch_losses(model(silhouettes), labels, Loss(margin=0.2, scale=16.0, smoothing=0.1))
    terms["loss"].backward()
    result = {name: value.detach() for name, value in terms.items()}
    result |= {name: parameter.grad for name, parameter in model.named_parameters()}
    average(result.values())
    return result | dict(model.named_buffers())


@pytest.mark.parametrize(
    ("world_size", "dtype", "tolerance"),
    [(2, torch.float32, 1e-5), (2, torch.float64, 1e-12), (4, torch.float64, 1e-12)],
)
def test_ranks_together_equal_one(tmp_path: Path, world_size: int, dtype: torch.dtype, tolerance: float) -> None:
    alone = one_step(dtype, None)
    for together in run(one_step, world_size, tmp_path, dtype, None):
        assert together.keys() == alone.keys()
        for name, expected in alone.items():
            torch.testing.assert_close(
                together[name], expected, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_micro_batch_across_ranks_equals_one(tmp_path: Path) -> None:
    alone = one_step(torch.float64, None)
    for together in run(one_step, 2, tmp_path, torch.float64, 1):
        for name, expected in alone.items():
            torch.testing.assert_close(together[name], expected, rtol=1e-9, atol=1e-12)


def gather_weighted() -> tuple[torch.Tensor, torch.Tensor]:
    rank = dist.get_rank()
    local = torch.full((2, 3), float(rank), requires_grad=True)
    whole = gather(local)
    (whole * torch.arange(whole.numel()).reshape(whole.shape)).sum().backward()
    return whole.detach(), local.grad


def test_gather_stacks_in_rank_order_and_returns_the_sum_of_gradients(tmp_path: Path) -> None:
    for rank, (whole, gradient) in enumerate(run(gather_weighted, 3, tmp_path)):
        assert whole[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
        assert gradient.flatten().tolist() == [3.0 * (6 * rank + i) for i in range(6)]


def test_alone_gather_is_the_tensor_itself() -> None:
    local = torch.ones(2, 3)
    assert gather(local) is local
