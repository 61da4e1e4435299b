"""What only a GPU can show; skipped where there is none."""

import numpy as np
import pytest
import torch

from pipeline import world
from pipeline.losses import cross_entropy, triplet
from pipeline.metrics import evaluate
from pipeline.model import HSTL
from pipeline.recipe import Optimizer
from pipeline.trained import build_optimizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def weights_after(steps: int, precision: str, device: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = HSTL("demo", 4, precision=precision).to(device).train()  # type: ignore[arg-type]
    optimizer = build_optimizer(network, Optimizer(kind="adam", lr=1e-3))
    silhouettes = torch.rand(8, 30, 64, 44, generator=torch.Generator().manual_seed(1)).round().to(device)
    labels = (torch.arange(8) // 2).to(device)
    for _ in range(steps):
        output = network(silhouettes)
        (triplet(output.embeddings, labels, 0.2) + cross_entropy(output.logits, labels)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.state_dict()


def test_embeddings_in_fp32_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    network = HSTL("demo", 4).eval()
    silhouettes = torch.rand(2, 30, 64, 44).round()
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        wanted = network.embed(silhouettes)
        found = network.cuda().embed(silhouettes.cuda()).cpu()
    # Of the norm: single values are near 0.01. TF32 would be off by 2e-4 of it.
    assert (found - wanted).norm() < 2e-5 * wanted.norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deterministic_steps_repeat_bit_for_bit(precision: str) -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        world.choose_kernels(deterministic=True)
        first, second = (weights_after(5, precision, "cuda") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_figures_are_those_of_the_cpu() -> None:
    rng = np.random.default_rng(0)
    every = [(s, c, v) for s in "abcdef" for c in ("nm-01", "nm-05", "bg-01", "cl-02") for v in ("000", "090")]
    names = [list(column) for column in zip(*every, strict=True)]
    embeddings = rng.standard_normal((len(every), 4, 8)).astype(np.float32)
    assert evaluate(embeddings, *names, "casia-b", device="cuda") == evaluate(embeddings, *names, "casia-b")
