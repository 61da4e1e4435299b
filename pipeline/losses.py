"""The two losses of the release, over the whole batch given; both compute in fp32."""

import torch
import torch.nn.functional as F
from torch import Tensor


def part_distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances within each part: `[n, parts, channels] -> fp32 (or fp64) [parts, n, n]`.

    A distance of zero (a sequence repeated in the batch) has gradient zero; the square root's own would be NaN.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        x = embeddings.transpose(0, 1)
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        norms = x.square().sum(dim=2)
        squared = norms[:, :, None] + norms[:, None, :] - 2 * torch.bmm(x, x.transpose(1, 2))
        apart = (squared > 0) & ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        return torch.where(apart, squared, 1.0).sqrt() * apart


def triplet(embeddings: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Batch-all triplet loss: mean over the non-zero triplets of a part, then over parts; a scalar.

    `embeddings [n, parts, channels]`, `labels int64 [n]`. As in the release a sequence is its own positive, too,
    at distance 0. A part without a non-zero triplet counts 0, so a batch with one subject only gives 0.

    No triplet is ever built: an anchor's negatives are sorted once, and each positive finds in them, by bisection,
    how many it violates and their sum. Memory is a few times the `[parts, n, n]` distances.
    """
    distances = part_distances(embeddings)
    same = labels[:, None] == labels[None, :]
    negatives = distances.masked_fill(same, torch.inf).sort(dim=2).values
    sums = F.pad(negatives.masked_fill(negatives.isinf(), 0.0).cumsum(dim=2), (1, 0))
    limits = distances + margin
    violated = torch.searchsorted(negatives.detach(), limits.detach().contiguous())
    hinges = (violated * limits - sums.gather(2, violated)) * same
    nonzero = (violated * same).sum(dim=(1, 2))
    return (hinges.sum(dim=(1, 2)) / nonzero.clamp(min=1)).mean()


def cross_entropy(logits: Tensor, labels: Tensor, scale: float = 1.0, smoothing: float = 0.0) -> Tensor:
    """Part-wise cross-entropy: mean over parts and sequences; a scalar.

    `logits [n, parts, classes]` are multiplied by `scale`; `labels int64 [n]`; `smoothing` is label smoothing.
    """
    with torch.autocast(logits.device.type, enabled=False):
        n, parts, _ = logits.shape
        scaled = logits.flatten(0, 1).float() * scale if logits.dtype != torch.float64 else logits.flatten(0, 1) * scale
        return F.cross_entropy(scaled, labels[:, None].expand(n, parts).flatten(), label_smoothing=smoothing)
