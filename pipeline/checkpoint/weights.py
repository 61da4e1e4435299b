"""Weights of a network: our safetensors, and the `.pt` files of the release."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.model import HSTL, VARIANTS
from pipeline.model.hub import metadata
from pipeline.model.released import from_released

FILE = "model.safetensors"
MARKER = "COMPLETE"


@dataclass(frozen=True)
class Weights:
    """Tensors of a network, and what they belong to."""

    path: Path
    tensors: dict[str, Tensor]
    released: bool
    """Whether the names are the release's (`arme1.0.conv3d.weight`) or ours."""
    variant: str | None
    """None in a released file, which does not say."""
    num_classes: int
    step: int | None
    """Training step, where the file says."""


def save_weights(path: Path, model: HSTL, tensors: dict[str, Tensor], step: int | None = None) -> None:
    """Writes tensors of `model` as safetensors, with variant, classes and step in the metadata."""
    written = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(written, path, metadata(model.variant.name, model.num_classes, step))


def locate(path: str | Path) -> Path:
    """The weights file meant by a file, a checkpoint's or pretrained folder, or a run's (newest complete checkpoint).

    Raises FileNotFoundError with what was looked for.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint {path}; give a weights file, a checkpoint's folder or a run's folder")
    if (path / FILE).is_file():
        # A folder of save_pretrained has a configuration instead of our marker.
        if not (path / MARKER).is_file() and not (path / "config.json").is_file():
            raise FileNotFoundError(f"checkpoint {path} was never completed (no {MARKER}); take an earlier one")
        return path / FILE
    complete = sorted(path.glob(f"checkpoints/step-*/{MARKER}"))
    if not complete:
        raise FileNotFoundError(f"{path} holds neither {FILE} nor a complete checkpoint; train first")
    return complete[-1].parent / FILE


def read_weights(path: str | Path) -> Weights:
    """Reads ours or a released file (told apart by content), a checkpoint's folder or a run's.

    Nothing in a file is executed: safetensors, or torch's `weights_only`. Raises ValueError on another format.
    """
    file = locate(path)
    with file.open("rb") as head:
        zipped = head.read(2) == b"PK"
    return _read_released(file) if zipped else _read_ours(file)


def to_network(weights: Weights, variant: str | None = None) -> HSTL:
    """The network the weights belong to, loaded, in evaluation mode; `variant` is needed for a released file."""
    name = weights.variant or variant
    if name is None:
        raise ValueError(f"{weights.path} is a released file and does not say its variant; give one of {[*VARIANTS]}")
    network = HSTL(name, weights.num_classes)
    _fill(network, weights)
    return network.eval()


def load_weights(model: HSTL, path: str | Path) -> None:
    """Loads our weights or a released file into `model`.

    Raises ValueError, saying which, on another variant, class count or part count.
    """
    _fill(model, read_weights(path))


def _fill(model: HSTL, weights: Weights) -> None:
    tensors = weights.tensors
    try:
        if weights.released:
            tensors = from_released(tensors, model.state_dict(), model.variant)
        else:
            _check_header(model, weights)
        model.load_state_dict(tensors)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{weights.path}: {error}") from None


def _check_header(model: HSTL, weights: Weights) -> None:
    if weights.variant != model.variant.name:
        raise ValueError(
            f"weights of variant {weights.variant!r} do not fit a network of variant {model.variant.name!r}"
        )
    if weights.num_classes != model.num_classes:
        raise ValueError(
            f"weights trained on {weights.num_classes} subjects do not fit a network of {model.num_classes} classes; "
            f"build it with num_classes={weights.num_classes}"
        )


def _read_ours(file: Path) -> Weights:
    try:
        with safe_open(file, framework="pt") as content:
            said = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no iterator
    except SafetensorError as error:
        raise ValueError(f"{file} is neither safetensors nor a torch file, or is damaged: {error}") from None
    if said.get("format") != "hstl-1":
        raise ValueError(f"{file} is safetensors, but not of an HSTL network (metadata {said}); convert it first")
    step = said.get("step")
    return Weights(
        path=file,
        tensors=tensors,
        released=False,
        variant=said["variant"],
        num_classes=int(said["num_classes"]),
        step=None if step is None else int(step),
    )


def _read_released(file: Path) -> Weights:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{file} cannot be read as weights alone: {error}") from None
    tensors = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or "Head1.fc_bin" not in tensors:
        raise ValueError(f"{file} holds no HSTL network: a released file has an entry 'model' with 'Head1.fc_bin'")
    return Weights(
        path=file,
        tensors=tensors,
        released=True,
        variant=None,
        num_classes=tensors["Head1.fc_bin"].shape[-1],
        step=content.get("iteration"),
    )
