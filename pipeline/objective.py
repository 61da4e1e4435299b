"""What training minimises: the two losses of the release on the global batch."""

from torch import Tensor

from pipeline import losses
from pipeline.model import HSTLOutput
from pipeline.model.global_batch import gather
from pipeline.model.sharded_classifier import ShardedClassifier
from pipeline.recipe import Loss


def batch_losses(
    output: HSTLOutput, labels: Tensor, loss: Loss, classifier: ShardedClassifier | None = None
) -> dict[str, Tensor]:
    """Losses of the global batch from one process's part of it: scalars loss, triplet, cross_entropy.

    Triplets are over the embeddings of all processes. The cross-entropy is over this process's sequences: its mean
    over processes, which averaging the gradients takes, is the mean over the batch. With a sharded `classifier` it is
    over all sequences, and the same on every process.
    """
    embeddings, everyones = gather(output.embeddings), gather(labels)
    triplet = losses.triplet(embeddings, everyones, loss.margin)
    if classifier is None:
        cross_entropy = losses.cross_entropy(output.logits, labels, loss.scale, loss.smoothing)
    else:
        cross_entropy = classifier(embeddings, everyones, loss.scale, loss.smoothing)
    total = loss.triplet_weight * triplet + loss.cross_entropy_weight * cross_entropy
    return {"loss": total, "triplet": triplet.detach(), "cross_entropy": cross_entropy.detach()}
