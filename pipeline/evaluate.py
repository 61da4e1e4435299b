"""Evaluation by a benchmark's protocol; `accelerate launch -m pipeline.evaluate RECIPE --checkpoint DIR|FILE` runs it."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import shards
from pipeline import world
from pipeline.baselines import gei
from pipeline.embed import Embedder, Work, embed
from pipeline.metrics import evaluate as measure
from pipeline.metrics import hardest, verdict
from pipeline.model import HSTL
from pipeline.recipe import Recipe, load
from pipeline.train import open_run, parse

if TYPE_CHECKING:
    from shards import ShardSet

HARDEST = 12
"""Probes the report shows beside what they were taken for."""


def evaluate(recipe: Recipe, checkpoint: Path, run: Path | None = None) -> Path | None:
    """Embeds the test split, applies the recipe's protocol, writes RUN/evaluation/results.json and RUN/report.html.

    The run is `run`, else the recipe's, else the one the checkpoint lies in, else a new one. Returns its folder on
    the main process, None on others. Raises ValueError or FileNotFoundError on what cannot be evaluated.
    """
    from pipeline import checkpoint as checkpoints
    from pipeline.report import table, write_report

    shard_set = shards.open(recipe.data)
    rows = test_rows(shard_set)
    weights = checkpoints.read_weights(checkpoint)
    accelerator = world.start()
    run = Path(world.agree(accelerator, lambda: str(run or _run_of(weights.path, recipe))))

    def network(trained: bool) -> HSTL:
        torch.manual_seed(recipe.seed)  # untrained: the weights that training with this seed starts from
        if trained:
            made = checkpoints.to_network(weights, recipe.network.variant)
        else:
            made = HSTL(weights.variant or recipe.network.variant, weights.num_classes)
        made.precision = recipe.train.precision
        return made.to(accelerator.device).eval()

    digest = hashlib.sha256(weights.path.read_bytes()).hexdigest()
    age = "" if weights.step is None else f", trained {weights.step:,} steps"
    methods = [("trained", f"HSTL{age}", digest)]
    methods += [
        (kind, _NAMES[kind], f"{recipe.seed} {network_name(weights, recipe)}") for kind in recipe.evaluate.baselines
    ]
    results = []
    for kind, name, identity in methods:
        embedder = _silhouette_embedder() if kind == "gei" else network_embedder(network(kind == "trained"))
        work = Work.at(
            run / "evaluation" / "embeddings", shard_set, rows, f"{kind} {identity} {recipe.train.precision}"
        )
        embeddings = embed(work, embedder, accelerator, recipe.train.workers, name)
        if embeddings is not None:
            results.append(_assess(kind, name, embeddings, shard_set, rows, recipe, accelerator.device))
    if not accelerator.is_main_process:
        return None
    written = {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "protocol": recipe.evaluate.protocol,
        "recipe": recipe.model_dump(mode="json"),
        "data": _describe_data(shard_set, rows),
        "checkpoint": {"path": str(weights.path), "step": weights.step, "sha256": digest},
        "versions": checkpoints.versions(),
        "methods": results,
        "verdict": verdict(results).text,
    }
    _write(run / "evaluation" / "results.json", written)
    _show(table(written), results, written["verdict"], write_report(run, shard_set))
    return run


_NAMES = {"untrained": "HSTL, untrained", "gei": "nearest gait energy image"}


def network_name(weights: Any, recipe: Recipe) -> str:
    """Variant and classes: what the untrained network depends on, beside the seed."""
    return f"{weights.variant or recipe.network.variant} {weights.num_classes}"


def test_rows(shard_set: "ShardSet") -> np.ndarray:
    """Rows of the test split, int64; raises ValueError where there is none."""
    rows = np.flatnonzero(shard_set.index["split"].to_numpy() == "test")
    if not len(rows):
        raise ValueError(f"{shard_set.url} has no test sequences; pack it with a partition that names test subjects")
    return rows


def network_embedder(network: HSTL) -> Embedder:
    """The network as uint8 silhouettes -> embeddings."""

    def embedder(silhouettes: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network.embed(silhouettes.float() / 255)

    return embedder


def _silhouette_embedder() -> Embedder:
    def embedder(silhouettes: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.stack([gei(sequence) for sequence in silhouettes.cpu().numpy()]))

    return embedder


def _assess(
    kind: str,
    name: str,
    embeddings: np.ndarray,
    shard_set: "ShardSet",
    rows: np.ndarray,
    recipe: Recipe,
    device: torch.device,
) -> dict[str, Any]:
    """One method's entry of results.json."""
    columns = [shard_set.index[c].take(rows.tolist()).to_pylist() for c in ("subject", "condition", "view")]
    metrics = measure(embeddings, *columns, recipe.evaluate.protocol, device=device)
    worst: list[dict[str, Any]] = []
    if kind == "trained":
        worst = hardest(embeddings, *columns, recipe.evaluate.protocol, HARDEST, device=device)
        for case in worst:
            case.update({place: int(rows[case[place]]) for place in ("probe", "taken_for", "right")})
    return {"name": name, "kind": kind, "metrics": metrics, "hardest": worst}


def _describe_data(shard_set: "ShardSet", rows: np.ndarray) -> dict[str, Any]:
    subjects = shard_set.index["subject"].take(rows.tolist()).unique()
    return {
        "url": shard_set.url,
        "name": shard_set.name,
        "fingerprint": shard_set.fingerprint,
        "test_subjects": len(subjects),
        "test_sequences": len(rows),
    }


def _run_of(weights: Path, recipe: Recipe) -> Path:
    if recipe.run is None and (home := weights.parent.parent.parent / "recipe.yaml").is_file():
        return home.parent
    return open_run(recipe)


def _write(path: Path, results: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1))
    partial.replace(path)


def _show(table: Any, results: list[dict[str, Any]], verdict: str, page: Path) -> None:
    from rich.console import Console

    console = Console()
    console.print(table)
    for line in results[0]["metrics"]["missing"]:
        console.print(f"missing: {line}", soft_wrap=True, markup=False)
    console.print(verdict, soft_wrap=True, markup=False)
    console.print(f"report: {page}", soft_wrap=True, markup=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m pipeline.evaluate`; exits 2 with a message on mistakes of the user's."""
    checkpoint = {
        "name": "--checkpoint",
        "type": Path,
        "required": True,
        "help": "a run's or a checkpoint's folder, safetensors, or a released .pt",
    }
    arguments = parse(argv, "Evaluate HSTL by a benchmark's protocol.", checkpoint)
    try:
        evaluate(load(arguments.recipe, arguments.overrides), arguments.checkpoint)
    except world.USER_MISTAKES as error:
        world.leave_with(error)


if __name__ == "__main__":
    main()
