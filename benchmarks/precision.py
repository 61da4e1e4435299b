"""What bf16 costs in accuracy, and which parts must stay in fp32: the demo network on the demo's shards.

python -m benchmarks.precision [DATA] [--steps 150] [--seeds 3]

Trains with the recipe's bf16, and beside each tenth step works out what bf16 would have done to what stays in fp32.
Then embeds the test split with the same weights in fp32, in bf16 as it is, and with more lowered: the largest cosine
distance to the fp32 embeddings, and rank-1 by CASIA-B's rules.
"""

import argparse
import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import shards
from pipeline.losses import cross_entropy, triplet
from pipeline.metrics import evaluate
from pipeline.model import HSTL
from pipeline.model.layers import GeM
from shards.silhouettes import cut

LOSS_SCALE, MARGIN, RATE = 16.0, 0.2, 1e-3
FRAMES = 24


def train(shard_set: "shards.ShardSet", seed: int, steps: int) -> tuple[HSTL, dict[str, float]]:
    """A trained network, and what bf16 would have done to what training keeps in fp32 (relative, or a share)."""
    torch.manual_seed(seed)
    batches = shards.Batches(shard_set, "train", 8, 4, 18, seed=seed)
    network = HSTL("demo", batches.num_classes, precision="bf16").train()
    optimizer = torch.optim.Adam(network.parameters(), RATE, weight_decay=5e-4)
    variance_in_bf16 = network.norm.running_var.bfloat16()
    triplet_errors, lost = [], []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE if step < 0.8 * steps else RATE / 10
        batch = batches[step]
        before = network.norm.running_var.clone()
        output = network(batch["silhouettes"].float() / 255)
        variance = (network.norm.running_var - 0.9 * before) / 0.1
        variance_in_bf16.lerp_(variance.bfloat16(), 0.1)
        distance_loss = triplet(output.embeddings, batch["labels"], MARGIN)
        loss = distance_loss + cross_entropy(output.logits, batch["labels"], LOSS_SCALE)
        optimizer.zero_grad()
        loss.backward()
        weights = [parameter.detach().clone() for parameter in network.parameters()]
        optimizer.step()
        if step % 10 == 9:
            rounded = triplet_in_bf16(output.embeddings.detach(), batch["labels"])
            triplet_errors.append(abs(rounded / distance_loss.item() - 1))
            lost.append(_share_of_lost_updates(weights, list(network.parameters())))
    exact = network.norm.running_var
    return network.eval(), {
        "triplet loss with distances in bf16, median error": float(np.median(triplet_errors)),
        "updates lost if weights were kept in bf16, first steps": lost[0],
        "updates lost if weights were kept in bf16, last steps": lost[-1],
        "running variance kept in bf16, largest error": ((variance_in_bf16.float() - exact).abs() / exact).max().item(),
    }


def triplet_in_bf16(embeddings: Tensor, labels: Tensor) -> float:
    """The loss as autocast would have it if left alone: norms and products of the distances in bf16, all triplets."""
    x = embeddings.transpose(0, 1).bfloat16()
    norms = x.square().sum(dim=2)
    distances = (norms[:, :, None] + norms[:, None] - 2 * torch.bmm(x, x.transpose(1, 2))).clamp(min=0).sqrt()
    same = labels[:, None] == labels[None, :]
    hinges = (distances[:, :, :, None] - distances[:, :, None, :] + MARGIN).clamp(min=0).float()
    hinges = hinges * (same[:, :, None] & ~same[:, None, :])
    return (hinges.sum(dim=(1, 2, 3)) / (hinges > 0).sum(dim=(1, 2, 3)).clamp(min=1)).mean().item()


def _share_of_lost_updates(before: list[Tensor], after: list[Tensor]) -> float:
    """Weights that the optimizer moved, but that rounding to bf16 would have left where they were."""
    moved = sum((a != b).sum().item() for a, b in zip(after, before, strict=True))
    pairs = zip(after, before, strict=True)
    stuck = sum(((a != b) & ((b.bfloat16() + (a - b)).bfloat16() == b.bfloat16())).sum().item() for a, b in pairs)
    return stuck / moved


def gem_in_bf16(network: HSTL) -> HSTL:
    """Pooling powers raised in bf16."""

    def lowered(pool: GeM) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            power = pool.power.bfloat16().expand(len(pool.regions))
            bodies = x.bfloat16().clamp(min=pool.EPSILON).split(pool.regions, dim=2)
            means = [body.pow(p).mean(dim=(2, 3)) for body, p in zip(bodies, power, strict=True)]
            return torch.stack(means, dim=1).pow(1 / power[:, None]).float()

        return forward

    made = copy.deepcopy(network)
    for module in made.modules():
        if isinstance(module, GeM):
            module.forward = lowered(module)  # type: ignore[method-assign, assignment]
    return made


def head_in_bf16(network: HSTL) -> HSTL:
    """The embedding head's product in bf16."""
    made = copy.deepcopy(network)
    head = copy.deepcopy(made.head).bfloat16()
    made.head.forward = lambda x: head(x.bfloat16()).float()  # type: ignore[method-assign]
    return made


def all_in_bf16(network: HSTL) -> HSTL:
    """Every parameter and statistic rounded to bf16, as `bf16.enabled` of DeepSpeed would keep them."""
    made = copy.deepcopy(network)
    for tensor in (*made.parameters(), made.norm.running_mean, made.norm.running_var):
        tensor.data = tensor.data.bfloat16().float()
    return gem_in_bf16(head_in_bf16(made))


def embed(network: HSTL, shard_set: "shards.ShardSet", rows: np.ndarray, precision: str) -> Tensor:
    """float32 [n, parts, channels] of the first FRAMES frames of each sequence, repeated where it is shorter."""
    network.precision = precision  # type: ignore[assignment]
    found = []
    with torch.inference_mode():
        for start in range(0, len(rows), 32):
            walks = [np.resize(cut(s)[:FRAMES], (FRAMES, 64, 44)) for s in shard_set.read(rows[start : start + 32])]
            found.append(network.embed(torch.from_numpy(np.stack(walks)).float() / 255))
    return torch.cat(found)


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", nargs="?", default="demo/shards", help="shards; `make demo` makes the default")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="take every n-th test sequence")
    arguments = parser.parse_args()
    shard_set = shards.open(arguments.data)
    rows = np.flatnonzero(shard_set.index["split"].to_numpy() == "test")[:: arguments.every]
    subjects, conditions, views = (
        shard_set.index[name].take(rows.tolist()).to_pylist() for name in ("subject", "condition", "view")
    )

    print("| seed | arithmetic | largest cosine distance to fp32 | rank-1 mean, % |\n|---|---|---|---|")
    for seed in range(arguments.seeds):
        network, in_training = train(shard_set, seed, arguments.steps)
        exact = embed(network, shard_set, rows, "fp32")
        as_it_is = embed(network, shard_set, rows, "bf16")
        cases = {
            "fp32": exact,
            "bf16 as it is": as_it_is,
            "bf16, embeddings kept in bf16, too": as_it_is.bfloat16().float(),
            "bf16 also for weights, statistics, pooling, head": embed(all_in_bf16(network), shard_set, rows, "bf16"),
        }
        for name, embeddings in cases.items():
            # In double: fp32 itself rounds cosines of 800 values to about 1e-6.
            pair = exact.double().flatten(1), embeddings.double().flatten(1)
            distance = (1 - torch.cosine_similarity(*pair)).max()
            rate = evaluate(embeddings.numpy(), subjects, conditions, views, "casia-b")["headline"]["mean"]
            print(f"| {seed} | {name} | {distance:.1e} | {rate:.2f} |", flush=True)
        for name, value in in_training.items():
            print(f"| {seed} | {name} | {value:.1%} | |", flush=True)


if __name__ == "__main__":
    main()
