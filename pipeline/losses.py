"""The two losses of the release, over the whole batch given; both compute in fp32."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PARTS_AT_ONCE = 8
"""Parts whose distances are held at once: bounds memory, and keeps a GPU's kernels large."""


def triplet(embeddings: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Batch-all triplet loss: mean over the non-zero triplets of a part, then over parts; a scalar.

    `embeddings [n, parts, channels]`, `labels int64 [n]`. As in the release a sequence is its own positive, too,
    at distance 0. A part without a non-zero triplet counts 0, so a batch of one subject gives 0. A distance of zero (a
    sequence repeated in the batch) has gradient zero, where the square root's own is infinite.

    No triplet is ever built: an anchor's negatives are sorted once, and each positive finds in them, by bisection,
    how many it violates and their sum. Value and gradient are made together, a few parts at a time, so memory
    stays near that of the embeddings.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        if embeddings.dtype in (torch.float16, torch.bfloat16):
            embeddings = embeddings.float()
        return _BatchAll.apply(embeddings.transpose(0, 1), labels, margin)


class _BatchAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, labels: Tensor, margin: float) -> Tensor:
        same = labels[:, None] == labels[None, :]
        losses, gradients = [], []
        for parts in embeddings.split(PARTS_AT_ONCE):
            distances = part_distances(parts)
            loss, slopes = _hinges(distances, same, margin)
            pulls = torch.where(distances > 0, slopes / distances, 0.0)
            pulls += pulls.transpose(1, 2).clone()
            losses.append(loss)
            gradients.append(pulls.sum(dim=2, keepdim=True) * parts - torch.bmm(pulls, parts))
        ctx.save_for_backward(torch.cat(gradients) / len(embeddings))
        return torch.cat(losses).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * outer[0], None, None


def part_distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances within each part, `[parts, n, channels] -> [parts, n, n]`; exactly 0 on the diagonal."""
    norms = embeddings.square().sum(dim=2)
    squared = norms[:, :, None] + norms[:, None, :] - 2 * torch.bmm(embeddings, embeddings.transpose(1, 2))
    squared.diagonal(dim1=1, dim2=2).zero_()
    return squared.clamp_(min=0).sqrt_()


def _hinges(distances: Tensor, same: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Mean of the non-zero hinges a part, `[parts]`, and its derivative by each distance, `[parts, n, n]`."""
    limits = distances + margin
    negatives = distances.masked_fill(same, torch.inf).sort(dim=2).values
    violated = torch.searchsorted(negatives, limits) * same
    sums = F.pad(negatives.masked_fill_(negatives.isinf(), 0.0).cumsum(dim=2), (1, 0)).gather(2, violated)
    positives = limits.masked_fill(~same, -torch.inf).sort(dim=2).values
    violating = (len(same) - torch.searchsorted(positives, distances, right=True)) * ~same
    nonzero = violated.sum(dim=(1, 2)).clamp(min=1)
    loss = (violated * limits - sums).sum(dim=(1, 2)) / nonzero
    return loss, (violated - violating) / nonzero[:, None, None]


def cross_entropy(logits: Tensor, labels: Tensor, scale: float = 1.0, smoothing: float = 0.0) -> Tensor:
    """Part-wise cross-entropy: mean over parts and sequences; a scalar.

    `logits [n, parts, classes]` are multiplied by `scale`; `labels int64 [n]`; `smoothing` is label smoothing.
    """
    with torch.autocast(logits.device.type, enabled=False):
        n, parts, _ = logits.shape
        scaled = logits.flatten(0, 1).float() * scale if logits.dtype != torch.float64 else logits.flatten(0, 1) * scale
        return F.cross_entropy(scaled, labels[:, None].expand(n, parts).flatten(), label_smoothing=smoothing)
