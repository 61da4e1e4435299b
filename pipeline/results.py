"""results.json: what an evaluation came to, with all that is needed to believe it or to repeat it."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.metrics import verdict
from pipeline.metrics.protocols import Protocol
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipeline.checkpoint import Weights
    from shards import ShardSet

FORMAT = 1
FILE = "results.json"


def gather(
    recipe: Recipe,
    rules: Protocol,
    shard_set: "ShardSet",
    rows: np.ndarray,
    weights: "Weights",
    entries: list[dict[str, Any]],
    accelerator: "Accelerator",
) -> dict[str, Any]:
    """The whole of results.json, from the entries of the methods, the trained network's first."""
    from pipeline import provenance

    trained_on = _trained_on(weights.path)
    data = _describe_data(shard_set, rows, recipe.evaluate.frames_limit)
    if trained_on is not None:
        data["other_than_trained_on"] = trained_on["fingerprint"] != shard_set.fingerprint
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "protocol": rules.name,
        "rules": rules.model_dump(mode="json", exclude_defaults=True),
        "recipe": recipe.model_dump(mode="json"),
        "data": data,
        "checkpoint": {
            "path": str(weights.path),
            "step": weights.step,
            "sha256": sha256(weights.path),
            "trained_on": trained_on,
        },
        "versions": provenance.versions(),
        "machine": {"device": _device(accelerator), "processes": accelerator.num_processes},
        "methods": entries,
        "verdict": verdict(entries).text,
    }


def sha256(path: Path) -> str:
    """Of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(run: Path, written: dict[str, Any]) -> Path:
    """RUN/evaluation/results.json, and the same under a name of its own that no other evaluation overwrites."""
    folder = run / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    data, digest = written["data"], written["checkpoint"]["sha256"]
    own = f"results-{written['protocol']}-{data['name']}-{data['fingerprint'][:8]}-{digest[:8]}.json"
    for path in (folder / own.replace("/", "_"), folder / FILE):
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(written, indent=1), encoding="utf-8")
        partial.replace(path)
    return folder / FILE


def read(path: Path) -> dict[str, Any]:
    """Results of a run's folder, or of a file. Raises FileNotFoundError, or ValueError for what is none of ours."""
    if path.is_dir():
        path = path / "evaluation" / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: evaluate the run first, "
            f"`accelerate launch -m pipeline.evaluate RECIPE --checkpoint RUN`"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): evaluate the run again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not found.get("methods"):
        raise ValueError(
            f"{path} is not a results file of format {FORMAT} with a method at least: evaluate the run again"
        )
    return found


def show(written: dict[str, Any], page: Path) -> None:
    """The table on screen, what is missing, the verdict, and where the page is."""
    from rich.console import Console

    from pipeline.report import table

    console = Console()
    console.print(table(written))
    metrics = written["methods"][0]["metrics"]
    for line in ([metrics["note"]] if "note" in metrics else []) + notes(written):
        console.print(f"note: {line}", soft_wrap=True, markup=False)
    for line in metrics["missing"]:
        console.print(f"missing: {line}", soft_wrap=True, markup=False)
    console.print(written["verdict"], soft_wrap=True, markup=False)
    console.print(f"report: {page}", soft_wrap=True, markup=False)


def notes(written: dict[str, Any]) -> list[str]:
    """What a reader must know of this evaluation beside its figures, a sentence each."""
    found, data = [], written.get("data", {})
    trained_on = written.get("checkpoint", {}).get("trained_on")
    if data.get("other_than_trained_on") and trained_on:
        found.append(
            f"Across data sets: trained on {trained_on['url']} (fingerprint {trained_on['fingerprint'][:12]}), "
            f"tested on {data['name']} ({data['fingerprint'][:12]})."
        )
    if limit := data.get("frames_limit"):
        found.append(
            f"Not exact: {limit['sequences_cut']:,} of {data['test_sequences']:,} sequences were cut to their "
            f"{limit['frames']} middle frames (--frames-limit)."
        )
    distance = written.get("recipe", {}).get("evaluate", {}).get("distance", "euclidean")
    if distance != "euclidean":
        found.append(f"Distances are {distance}; published figures are Euclidean.")
    return found


def _describe_data(shard_set: "ShardSet", rows: np.ndarray, frames_limit: int | None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "url": shard_set.url,
        "name": shard_set.name,
        "fingerprint": shard_set.fingerprint,
        "test_subjects": len(shard_set.index["subject"].take(rows.tolist()).unique()),
        "test_sequences": len(rows),
    }
    if frames_limit is not None:
        frames = shard_set.index["frames"].take(rows.tolist()).to_numpy()
        described["frames_limit"] = {"frames": frames_limit, "sequences_cut": int((frames > frames_limit).sum())}
    return described


def _trained_on(weights: Path) -> dict[str, Any] | None:
    """The data a checkpoint of ours says it was trained on; None for weights that do not say."""
    description = weights.parent / "training.json"
    if not description.is_file():
        return None
    said = json.loads(description.read_text(encoding="utf-8"))
    return {"url": said["recipe"]["data"], "recipe": said["recipe"]["name"], "fingerprint": said["fingerprint"]}


def _device(accelerator: "Accelerator") -> str:
    import torch

    device = accelerator.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
