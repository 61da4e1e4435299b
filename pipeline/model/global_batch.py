"""The one place where the network meets other ranks.

Statistics and triplets are taken over the sequences of all ranks. Every rank adds what it holds and sees the
whole; gradients flow back to the rank a tensor came from. With the usual averaging of gradients over ranks
(DDP and ZeRO alike) the result equals one process with the whole batch, with no factor of the world size.
"""

from typing import Any

import torch
import torch.distributed as dist


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: torch.Tensor) -> torch.Tensor:
        ctx.rows = local.shape[0]
        pieces = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, local.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        # all_reduce and a slice, not reduce_scatter: gloo has the former for every dtype.
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        start = dist.get_rank() * ctx.rows
        return whole[start : start + ctx.rows]


def gather(local: torch.Tensor) -> torch.Tensor:
    """Stacks a tensor of every rank along dimension 0, in rank order, differentiably; `[n, ...] -> [world * n, ...]`.

    Every rank must bring the same shape. Without a process group the tensor comes back as it is.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return local
    return _Gather.apply(local)
