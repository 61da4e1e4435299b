"""The classifier cut by classes over the ranks, for data sets of many subjects (GREW: 256 of 279 M parameters).

Averaging gradients sends every parameter twice around; a rank that alone holds its classes' columns need not send
them at all. What is exchanged instead is small: embeddings, which the triplet loss gathers anyway, and three numbers
a sequence and part. The same idea as partial fully-connected layers in face recognition (An et al., 2021), exact here.
"""

import itertools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.model.hstl import HSTL


def bounds(num_classes: int, world_size: int) -> list[tuple[int, int]]:
    """First class and the one after the last of each rank; sizes differ by one at most."""
    edges = [num_classes * rank // world_size for rank in range(world_size + 1)]
    return list(itertools.pairwise(edges))


class Elsewhere(nn.Module):
    """Stands where the classifier was: logits of no classes, `[n, parts, channels] -> [n, parts, 0]`."""

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings[..., :0]


class ShardedClassifier(nn.Module):
    """This rank's classes: `weight [parts, channels, last - first]`, cut out of a network's classifier.

    Belongs neither to DDP nor to DeepSpeed: its gradient is the whole batch's as it is, its update the rank's own.
    """

    def __init__(self, network: HSTL, rank: int, world_size: int) -> None:
        """Takes the classifier out of `network`, which gives no logits from then on."""
        super().__init__()
        self.num_classes, self.precision = network.num_classes, network.precision
        self.first, self.last = bounds(network.num_classes, world_size)[rank]
        self.weight = nn.Parameter(network.classifier.weight.detach()[:, :, self.first : self.last].clone())
        network.classifier = Elsewhere()  # type: ignore[assignment]

    def forward(self, embeddings: Tensor, labels: Tensor, scale: float, smoothing: float) -> Tensor:
        """Cross-entropy of the global batch, the same on every rank.

        `embeddings [n, parts, channels]` and `labels int64 [n]` of all ranks, gathered.
        """
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        # Gathering sums gradients over ranks, training averages them: right for what every rank computes whole. Here
        # each computes its classes' share, so the sum is the gradient, and the average must be undone.
        embeddings = _GradientTimes.apply(embeddings, world_size)
        with torch.autocast(embeddings.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = torch.bmm(embeddings.transpose(0, 1), self.weight)
        with torch.autocast(embeddings.device.type, enabled=False):
            wide = logits if logits.dtype == torch.float64 else logits.float()
            return _CrossEntropy.apply(wide * scale, labels, self.first, self.num_classes, smoothing)


class _GradientTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class _CrossEntropy(torch.autograd.Function):
    """Mean over parts and sequences from a share of the classes; the gradient is made with the value."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, first: int, num_classes: int, smoothing: float) -> Tensor:
        parts, n, classes = logits.shape
        highest = logits.amax(dim=2, keepdim=True) if classes else logits.new_full((parts, n, 1), -torch.inf)
        _all_reduce(highest, "MAX")
        here = (labels >= first) & (labels < first + classes)
        own = (labels - first).clamp(0, max(classes - 1, 0)).expand(parts, n)[..., None]
        chosen = logits.gather(2, own) * here[:, None] if classes else torch.zeros_like(highest)
        shares = (logits - highest).exp_()
        sums = torch.cat([shares.sum(2, keepdim=True), chosen, logits.sum(2, keepdim=True)], dim=2)
        _all_reduce(sums, "SUM")
        total, target, everything = sums.split(1, dim=2)
        loss = total.log() + highest - (1 - smoothing) * target - smoothing * everything / num_classes
        gradient = shares.div_(total).sub_(smoothing / num_classes)
        if classes:
            gradient.scatter_add_(2, own, (here[:, None].to(gradient.dtype) * (smoothing - 1)).expand(parts, n, 1))
        ctx.save_for_backward(gradient.div_(parts * n))
        return loss.mean()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.saved_tensors[0] * outer[0], None, None, None, None


def _all_reduce(tensor: Tensor, operation: str) -> None:
    if dist.is_initialized():
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
