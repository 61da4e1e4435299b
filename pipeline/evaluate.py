"""Evaluation by a benchmark's protocol: `accelerate launch -m pipeline.evaluate RECIPE --checkpoint DIR|FILE`."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import shards
from pipeline import kept, results, world
from pipeline.embed import Embedder, Work, embed, frames_at_once, network_embedder, silhouette_embedder
from pipeline.metrics import assess, protocols
from pipeline.model import HSTL
from pipeline.progress import progress
from pipeline.recipe import Recipe, load
from pipeline.train import open_run, parse

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipeline.checkpoint import Weights
    from shards import ShardSet

HARDEST = 12
"""Probes the report shows beside what they were taken for."""

NAMES = {"untrained": "HSTL, untrained", "gei": "nearest gait energy image"}


@dataclass(frozen=True)
class Method:
    """Something that makes embeddings."""

    kind: str
    """trained, untrained or gei."""
    name: str
    identity: str
    """What its embeddings depend on beside the data."""
    checkpoint: str | None = None
    """sha256 of the weights, where it depends on them."""


def evaluate(recipe: Recipe, checkpoint: Path, run: Path | None = None, keep_embeddings: bool = False) -> Path | None:
    """Embeds the test split, applies the recipe's protocol, writes RUN/evaluation/results.json and RUN/report.html.

    The run is `run`, else the recipe's, else the one the checkpoint lies in, else a new one. Returns its folder on
    the main process, None on others. Embeddings that other checkpoints left in the run are deleted at the end unless
    `keep_embeddings`. Raises ValueError or FileNotFoundError on what cannot be evaluated, before anything is embedded.
    """
    from pipeline import checkpoint as checkpoints
    from pipeline.report import write_report

    shard_set = shards.open(recipe.data)
    sequences = TestSequences.of(shard_set)
    rules, probes = protocols.load(recipe.evaluate.protocol), listed_probes(recipe)
    protocols.split(rules, *sequences.names, probes)
    weights = checkpoints.read_weights(checkpoint)
    accelerator = world.start()
    run = Path(world.agree(accelerator, lambda: str(run or _run_of(weights.path, recipe))))

    folder = run / "evaluation" / "embeddings"
    used = set()
    with kept.in_use(folder) if accelerator.is_main_process else nullcontext():
        embedded = []
        for method in methods(recipe, weights):
            work = Work.at(
                folder,
                shard_set,
                sequences.rows,
                method.identity,
                frames_at_once(accelerator.device),
                recipe.evaluate.frames_limit,
            )
            used.add(work.folder)
            embedded.append((method, _embed(method, work, weights, recipe, accelerator)))
        if not accelerator.is_main_process:
            return None
        entries = [
            _assess(method, embeddings, sequences, recipe, probes, accelerator.device)
            for method, embeddings in embedded
            if embeddings is not None
        ]
        written = results.gather(recipe, rules, shard_set, sequences.rows, weights, entries, accelerator)
        results.write(run, written)
        _submit(run, rules, embedded[0][1], sequences, recipe, accelerator.device)
    results.show(written, write_report(run, shard_set))
    if not keep_embeddings:
        num, num_bytes = kept.delete_superseded(folder, written["checkpoint"]["sha256"], used)
        if num:
            print(f"deleted: embeddings of other checkpoints, {num_bytes / 1e9:.1f} GB (--keep-embeddings keeps them)")
    return run


@dataclass(frozen=True)
class TestSequences:
    """The test split of a data set, [n] each."""

    __test__ = False  # not a test case, whatever pytest thinks of the name
    rows: np.ndarray
    """int64, rows of the index."""
    names: tuple[list[str], list[str], list[str]]
    """Subjects, conditions, views."""
    frames: list[int]

    @classmethod
    def of(cls, shard_set: "ShardSet") -> "TestSequences":
        """Raises ValueError where there is none."""
        rows = np.flatnonzero(shard_set.index["split"].to_numpy() == "test")
        if not len(rows):
            raise ValueError(
                f"{shard_set.url} has no test sequences; pack it with a partition that names test subjects"
            )
        table = shard_set.index.take(rows.tolist())
        subjects, conditions, views = (table[c].to_pylist() for c in ("subject", "condition", "view"))
        return cls(rows, (subjects, conditions, views), table["frames"].to_pylist())


def methods(recipe: Recipe, weights: "Weights") -> list[Method]:
    """The network, then the recipe's baselines."""
    age = "" if weights.step is None else f", trained {weights.step:,} steps"
    variant, precision = weights.variant or recipe.network.variant, recipe.evaluate.precision
    identities = {
        "untrained": f"untrained {recipe.seed} {variant} {weights.num_classes} {precision}",
        "gei": "gei",
    }
    sha256 = results.sha256(weights.path)
    trained = Method("trained", f"HSTL{age}", f"{sha256} {variant} {precision}", sha256)
    return [trained, *(Method(kind, NAMES[kind], identities[kind]) for kind in recipe.evaluate.baselines)]


def build(kind: str, weights: "Weights", recipe: Recipe) -> HSTL:
    """The network with its weights, or with those that training by this recipe starts from."""
    from pipeline import checkpoint as checkpoints

    if kind == "trained":
        network = checkpoints.to_network(weights, recipe.network.variant)
    else:
        torch.manual_seed(recipe.seed)
        network = HSTL(weights.variant or recipe.network.variant, weights.num_classes)
    network.precision = recipe.evaluate.precision
    return network.eval()


def listed_probes(recipe: Recipe) -> list[str] | None:
    """Keys of the probes in the recipe's file, or None. Raises ValueError or FileNotFoundError."""
    return None if recipe.evaluate.probes is None else protocols.read_probes(Path(recipe.evaluate.probes))


def _embed(
    method: Method, work: Work, weights: "Weights", recipe: Recipe, accelerator: "Accelerator"
) -> np.ndarray | None:
    """float32 [n, parts, channels] on the main process, None on others."""
    embedder: Embedder = silhouette_embedder
    if method.kind != "gei":
        network = build(method.kind, weights, recipe).to(accelerator.device)
        embedder = network_embedder(network, work.most_frames)
    if accelerator.is_main_process and not work.whole.is_file():
        kept.note(work.folder, method.checkpoint)
    return embed(work, embedder, accelerator, recipe.train.workers, method.name)


def _assess(
    method: Method,
    embeddings: np.ndarray,
    sequences: TestSequences,
    recipe: Recipe,
    probes: Sequence[str] | None,
    device: torch.device,
) -> dict[str, Any]:
    """One method's entry of results.json."""
    with progress(f"distances: {method.name}", len(sequences.rows)) as show:
        found = assess(
            embeddings,
            *sequences.names,
            recipe.evaluate.protocol,
            frames=sequences.frames,
            probes=probes,
            num_hardest=HARDEST if method.kind == "trained" else 0,
            distance=recipe.evaluate.distance,
            device=device,
            progress=lambda done, total: show(done),
        )
    for case in found.hardest:
        case.update({place: int(sequences.rows[case[place]]) for place in ("probe", "taken_for", "right")})
    return {
        "name": method.name,
        "kind": method.kind,
        "metrics": found.metrics,
        "hardest": found.hardest,
        "breakdown": found.breakdown,
    }


def _submit(
    run: Path,
    rules: protocols.Protocol,
    embeddings: np.ndarray | None,
    sequences: TestSequences,
    recipe: Recipe,
    device: torch.device,
) -> None:
    """Writes what the benchmark's server scores, where the protocol has a server and the data hold its probes."""
    if rules.submission is None or embeddings is None:
        return
    from pipeline import submission

    ranked = submission.rank(embeddings, *sequences.names, rules.submission, recipe.evaluate.distance, device)
    if ranked:
        submission.write(run / "evaluation" / submission.ARCHIVE, ranked)


def _run_of(weights: Path, recipe: Recipe) -> Path:
    if recipe.run is None and (home := weights.parent.parent.parent / "recipe.yaml").is_file():
        return home.parent
    if recipe.run is not None and (Path(recipe.run) / "recipe.yaml").is_file():
        return Path(recipe.run)  # its recipe stays the one it was trained by
    return open_run(recipe)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m pipeline.evaluate`; exits 2 with a message on mistakes of the user's."""
    checkpoint = {
        "name": "--checkpoint",
        "type": Path,
        "required": True,
        "help": "a run's or a checkpoint's folder, safetensors, or a released .pt",
    }
    limit = {
        "name": "--frames-limit",
        "type": int,
        "metavar": "N",
        "help": "cut longer sequences to their N middle frames: faster, not exact, and results say so",
    }
    keep = {
        "name": "--keep-embeddings",
        "action": "store_true",
        "help": "keep what other checkpoints of the run were evaluated with, too",
    }
    arguments = parse(argv, "Evaluate HSTL by a benchmark's protocol.", checkpoint, limit, keep)
    overrides = arguments.overrides
    if arguments.frames_limit is not None:
        overrides = [*overrides, f"evaluate.frames_limit={arguments.frames_limit}"]
    try:
        evaluate(load(arguments.recipe, overrides), arguments.checkpoint, keep_embeddings=arguments.keep_embeddings)
    except world.USER_MISTAKES as error:
        world.leave_with(error)


if __name__ == "__main__":
    main()
