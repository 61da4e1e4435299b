import math

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
    assert part_distances(embeddings).dtype == torch.float32
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


def test_triplet_saves_a_few_distance_tensors_not_all_triplets() -> None:
    n, parts = 64, 10
    saved = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    embeddings = torch.randn(n, parts, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        triplet(embeddings, torch.arange(n) // 8, 0.2)
    assert saved < 12 * parts * n * n * 4  # one tensor of all triplets would be 64 times the distances
