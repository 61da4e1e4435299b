"""A sharded classifier on disk: each rank's columns with their optimizer's state, joined again for any number of ranks.

state/classifier-00000-of-00002.safetensors    weight, and what the optimizer keeps for it, of one range of classes
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.model.sharded_classifier import ShardedClassifier

WEIGHT = "weight"


def write(folder: Path, classifier: ShardedClassifier, optimizer: torch.optim.Optimizer, rank: int, ranks: int) -> None:
    """Writes this rank's file."""
    state = optimizer.state[classifier.weight]
    tensors = {WEIGHT: classifier.weight.detach(), **{k: v for k, v in state.items() if isinstance(v, Tensor)}}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    said = {"first": str(classifier.first), "last": str(classifier.last)}
    save_file(tensors, folder / f"classifier-{rank:05d}-of-{ranks:05d}.safetensors", said)


def read(folder: Path, classifier: ShardedClassifier, optimizer: torch.optim.Optimizer) -> None:
    """Fills this rank's classes from the files of however many ranks. Raises ValueError where classes are missing."""
    if classifier.first == classifier.last:
        return  # more ranks than classes: nothing is this one's
    pieces: dict[str, list[Tensor]] = {}
    covered = classifier.first
    for path, first, last in _files(folder):
        start, end = max(first, classifier.first), min(last, classifier.last)
        if start >= end:
            continue
        with safe_open(path, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 - no iterator
                stored = content.get_slice(name)
                per_class = len(stored.get_shape()) > 0  # a count of steps has no classes
                piece = stored[:, :, start - first : end - first] if per_class else content.get_tensor(name)
                pieces.setdefault(name, []).append(piece)
        covered = max(covered, end)
    if covered < classifier.last:
        raise ValueError(f"{folder} holds classes up to {covered} only; {classifier.last} are needed")
    joined = {name: torch.cat(found, dim=2) if found[0].ndim else found[0] for name, found in pieces.items()}
    with torch.no_grad():
        classifier.weight.copy_(joined.pop(WEIGHT))
    device = classifier.weight.device
    # Counts of steps stay on the CPU, where torch's optimizers keep them.
    optimizer.state[classifier.weight] = {k: v.to(device) if v.ndim else v for k, v in joined.items()}


def joined(folder: Path, num_classes: int) -> Tensor:
    """The whole classifier's weight, `[parts, channels, classes]`, from the files of all ranks.

    Raises ValueError where their ranges do not join up to all classes.
    """
    pieces, covered = [], 0
    for path, first, last in _files(folder):
        if first != covered:
            break
        with safe_open(path, framework="pt") as content:
            pieces.append(content.get_tensor(WEIGHT))
        covered = last
    if covered != num_classes:
        raise ValueError(f"{folder} holds classes up to {covered} of {num_classes}; a process's file is not to be seen")
    return torch.cat(pieces, dim=2)


def _files(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """Each file with its range of classes, in order of classes."""
    for path in sorted(folder.glob("classifier-*-of-*.safetensors")):
        with safe_open(path, framework="pt") as content:
            said = content.metadata()
        yield path, int(said["first"]), int(said["last"])
