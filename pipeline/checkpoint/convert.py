"""Weights into other forms: the release's files and back, ONNX, a folder for the hub."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.checkpoint.weights import read_weights, save_weights, to_network
from pipeline.model import HSTL
from pipeline.model.released import to_released
from pipeline.model.variants import ROWS


def convert(source: str | Path, to: Path, variant: str) -> HSTL:
    """Rewrites weights as `to` says by its ending: `.pt` as the release has them, `.safetensors` as ours.

    `variant` is what a released file is of, which it does not say. Returns the network. Raises ValueError on another
    ending or network, FileExistsError where `to` exists.
    """
    if to.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"{to}: the ending says what to write; use .pt (as released) or .safetensors (ours)")
    _refuse_existing(to)
    weights = read_weights(source)
    if weights.variant not in (None, variant):
        raise ValueError(
            f"{weights.path} is of variant {weights.variant!r}, the recipe's is {variant!r}; give its own recipe"
        )
    network = to_network(weights, variant)
    partial = to.with_name(f".{to.name}.partial")
    if to.suffix == ".pt":
        released = to_released(network.state_dict(), network.variant)
        torch.save({"model": released, "iteration": weights.step or 0}, partial)
    else:
        save_weights(partial, network, network.state_dict(), weights.step)
    partial.replace(to)
    return network


class _Embed(nn.Module):
    def __init__(self, network: HSTL) -> None:
        super().__init__()
        self.network = network

    def forward(self, silhouettes: Tensor) -> Tensor:
        return self.network.embed(silhouettes)


def export_onnx(network: HSTL, to: Path) -> None:
    """Writes the embedding network as ONNX: `silhouettes` float [n, frames, 64, 44] -> `embeddings` [n, parts, c].

    n and frames are free; frames must be at least 3 (repeat shorter walks, as `HSTL` does). Needs the extra `onnx`.
    """
    _refuse_existing(to)
    partial = to.with_name(f".{to.name}.partial")
    example = torch.zeros(2, 9, ROWS, 44)
    n, frames = torch.export.Dim("n", min=1), torch.export.Dim("frames", min=3)
    torch.onnx.export(
        _Embed(network.eval()),
        (example,),
        partial,
        input_names=["silhouettes"],
        output_names=["embeddings"],
        dynamic_shapes=({0: n, 1: frames},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    partial.replace(to)


def export_pretrained(network: HSTL, to: Path, run: Path | None = None) -> None:
    """Writes a folder for `HSTL.from_pretrained`, with a card that states data, recipe and metrics of the run."""
    _refuse_existing(to)
    network.save_pretrained(to, model_card_kwargs={"facts": _facts(run)} if run else {})


def _facts(run: Path) -> dict[str, Any]:
    results = run / "evaluation" / "results.json"
    if not results.is_file():
        raise FileNotFoundError(f"{results} is missing, so the card cannot state metrics; run pipeline.evaluate first")
    said = json.loads(results.read_text())
    recipe, data = said["recipe"], said["data"]
    headline = said["methods"][0]["metrics"]["headline"]
    batch, optimizer = recipe["batch"], recipe["optimizer"]
    return {
        "data": f"{data['name']} (fingerprint {data['fingerprint'][:16]})",
        "recipe": f"{recipe['name']}: {said['checkpoint']['step']} steps, P x K = {batch['subjects']} x "
        f"{batch['sequences']}, {batch['frames']} frames, {optimizer['kind']} {optimizer['lr']}",
        "protocol": f"{said['protocol']}, {data['test_subjects']} test subjects, {data['test_sequences']} sequences",
        **{name: "not measured" if rate is None else f"{rate:.1f} %" for name, rate in headline.items()},
    }


def _refuse_existing(to: Path) -> None:
    if to.exists():
        raise FileExistsError(f"{to} exists; name another file, or remove it first")
