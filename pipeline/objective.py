"""What training minimises: the two losses of the release on the global batch."""

from torch import Tensor

from pipeline import losses
from pipeline.model import HSTLOutput
from pipeline.model.global_batch import gather
from pipeline.recipe import Loss


def batch_losses(output: HSTLOutput, labels: Tensor, loss: Loss) -> dict[str, Tensor]:
    """Losses of the global batch from one process's part of it: scalars loss, triplet, cross_entropy.

    Triplets are over the embeddings of all processes. The cross-entropy is over this process's sequences: its mean
    over processes, which averaging the gradients takes, is the mean over the batch.
    """
    triplet = losses.triplet(gather(output.embeddings), gather(labels), loss.margin)
    cross_entropy = losses.cross_entropy(output.logits, labels, loss.scale, loss.smoothing)
    total = loss.triplet_weight * triplet + loss.cross_entropy_weight * cross_entropy
    return {"loss": total, "triplet": triplet.detach(), "cross_entropy": cross_entropy.detach()}
