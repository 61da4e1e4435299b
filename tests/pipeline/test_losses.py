import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.losses import cross_entropy, part_distances, triplet


def naive_triplet(embeddings: torch.Tensor, labels: torch.Tensor, margin: float) -> float:
    """Every triplet, one at a time."""
    n, parts, _ = embeddings.shape
    means = []
    for part in range(parts):
        hinges = []
        for a in range(n):
            for p in range(n):
                for q in range(n):
                    if labels[a] == labels[p] and labels[a] != labels[q]:
                        positive = math.dist(embeddings[a, part].tolist(), embeddings[p, part].tolist())
                        negative = math.dist(embeddings[a, part].tolist(), embeddings[q, part].tolist())
                        hinges.append(max(positive - negative + margin, 0.0))
        nonzero = [hinge for hinge in hinges if hinge > 0]
        means.append(sum(nonzero) / len(nonzero) if nonzero else 0.0)
    return sum(means) / parts


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    seed=st.integers(0, 1000),
    margin=st.sampled_from([0.0, 0.2, 1.5]),
)
def test_triplet_equals_the_naive_loop(labels: list[int], seed: int, margin: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(labels), 3, 4, generator=generator, dtype=torch.float64)
    expected = naive_triplet(embeddings, torch.tensor(labels), margin)
    assert triplet(embeddings, torch.tensor(labels), margin).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_triplet_gradient_is_that_of_finite_differences() -> None:
    embeddings = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda e: triplet(e, labels, 0.7), (embeddings,))


@pytest.mark.parametrize("labels", [[4, 4, 4], [7]])
def test_a_batch_without_negatives_gives_zero_and_zero_gradient(labels: list[int]) -> None:
    embeddings = torch.randn(len(labels), 2, 3, requires_grad=True)
    loss = triplet(embeddings, torch.tensor(labels), 0.2)
    loss.backward()
    assert loss.item() == 0 and embeddings.grad is not None and not embeddings.grad.any()


def test_a_batch_of_single_sequences_has_only_itself_as_positive() -> None:
    embeddings = torch.randn(4, 2, 3, dtype=torch.float64)
    labels = torch.arange(4)
    assert triplet(embeddings, labels, 5.0).item() == pytest.approx(naive_triplet(embeddings, labels, 5.0))


def test_a_repeated_sequence_has_a_finite_gradient() -> None:
    row = torch.randn(1, 2, 3)
    embeddings = torch.cat([row, row, torch.randn(2, 2, 3)]).requires_grad_()
    triplet(embeddings, torch.tensor([0, 0, 1, 1]), 10.0).backward()
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(dtype: torch.dtype) -> None:
    embeddings, labels = torch.randn(6, 2, 16).to(dtype), torch.tensor([0, 0, 1, 1, 2, 2])
    with torch.autocast("cpu", torch.bfloat16):
        assert triplet(embeddings, labels, 0.2).item() == triplet(embeddings.float(), labels, 0.2).item()
        assert cross_entropy(embeddings, labels).item() == cross_entropy(embeddings.float(), labels).item()


@pytest.mark.parametrize(("scale", "smoothing"), [(1.0, 0.0), (16.0, 0.1)])
def test_cross_entropy_equals_the_naive_loop(scale: float, smoothing: float) -> None:
    logits, labels = torch.randn(4, 3, 5, dtype=torch.float64), torch.tensor([0, 4, 2, 2])
    total = 0.0
    for i in range(4):
        for part in range(3):
            log_shares = (scale * logits[i, part]).log_softmax(0)
            target = torch.full((5,), smoothing / 5, dtype=torch.float64)
            target[labels[i]] += 1 - smoothing
            total -= (target * log_shares).sum().item()
    assert cross_entropy(logits, labels, scale, smoothing).item() == pytest.approx(total / 12)


def test_part_distances_are_euclidean_and_zero_to_oneself() -> None:
    embeddings = torch.randn(3, 6, 4, dtype=torch.float64)
    distances = part_distances(embeddings)
    torch.testing.assert_close(distances, (embeddings[:, :, None] - embeddings[:, None]).norm(dim=3))
    assert not distances.diagonal(dim1=1, dim2=2).any()


PEAK = """
import resource, torch
from pipeline.losses import triplet
torch.set_num_threads(1)
embeddings, labels = torch.randn(256, 50, 256, requires_grad=True), torch.arange(256) // 8
triplet(torch.randn(16, 2, 8, requires_grad=True), torch.arange(16) // 2, 0.2).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
triplet(embeddings, labels, 0.2).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_oumvlps_batch_takes_a_few_times_its_distances() -> None:
    """P x K = 32 x 8, 50 parts; a tensor of all triplets would be 7.75 times the distances, and several are needed."""
    peak = int(subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True).stdout)
    assert peak < 6 * (50 * 256 * 256 * 4)
