"""Our networks against numbers of the published ones."""

import pytest
import torch

from pipeline.losses import cross_entropy, triplet
from pipeline.model import HSTL, fast
from pipeline.model.released import to_released
from pipeline.recipe import Optimizer
from pipeline.trained import build_optimizer
from tests.pipeline.model import golden


def test_all_three_published_networks_are_covered() -> None:
    assert golden.NAMES == ["casia-b", "gait3d", "oumvlp"]


# With every fast path on, and with all of them off.
PLAIN = {"fast": (), "plain": tuple(fast.PATHS)}


@pytest.mark.parametrize("paths", PLAIN)
@pytest.mark.parametrize("name", golden.NAMES)
def test_embeddings_of_short_and_long_walks(name: str, paths: str) -> None:
    numbers = golden.load(name)
    model = golden.network(name, numbers).eval()
    assert [case["frames"] for case in numbers["eval"]] == [1, 2, 3, 7, 30, 41]
    for case in numbers["eval"]:
        with torch.no_grad(), fast.without(*PLAIN[paths]):
            embedding = model.embed(golden.silhouettes(1, case["frames"]))[0]
        assert list(embedding.shape) == case["shape"]
        assert embedding.norm().item() == pytest.approx(case["norm"], rel=1e-4)
        assert embedding.sum().item() == pytest.approx(case["sum"], rel=1e-4)
        torch.testing.assert_close(embedding.flatten()[:8], torch.tensor(case["first"]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(embedding.norm(dim=1), torch.tensor(case["per_part_norm"]), rtol=1e-4, atol=0)


# Gait3D's logits are scaled by 16: its loss jumps to 67 at the third step and amplifies rounding. Run in float64,
# our network is 5.6e-3 from the golden cross-entropy there: the golden fp32 run itself is that far from exact, and
# other orders of the same fp32 sums are as far on either side.
LAST_CROSS_ENTROPY = {"gait3d": 6e-3}

# One gradient is a difference of nearly equal terms, 1e-6 of the others: in float64 our network gives this number,
# which our fp32 meets to 1e-4 and the golden fp32 run misses by 4 %.
IN_FLOAT64 = {("oumvlp", "astp4.hpp.3.p"): 7.1673424e-05}


@pytest.mark.parametrize("paths", [pytest.param("plain", marks=pytest.mark.slow), "fast"])
@pytest.mark.parametrize("name", ["casia-b", "gait3d", pytest.param("oumvlp", marks=pytest.mark.slow)])
def test_four_training_steps(name: str, paths: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_off", frozenset(PLAIN[paths]))
    numbers = golden.load(name)
    settings = numbers["loss"]
    model = golden.network(name, numbers).train()
    optimizer = build_optimizer(model, Optimizer(kind="sgd", lr=settings["lr"], momentum=0, weight_decay=0))
    silhouettes = golden.silhouettes(8, 12, phase=0.3)
    assert len(numbers["train"]) == 4
    for step, expected in enumerate(numbers["train"]):
        output = model(silhouettes)
        distance_loss = triplet(output.embeddings, golden.LABELS, settings["margin"])
        class_loss = cross_entropy(output.logits, golden.LABELS, settings["scale"], settings["label_smoothing"])
        last = step == 3
        assert distance_loss.item() == pytest.approx(expected["triplet"], rel=5e-2 if last else 5e-3)
        tolerance = LAST_CROSS_ENTROPY.get(name, 2e-3) if last else 2e-3
        assert class_loss.item() == pytest.approx(expected["cross_entropy"], rel=tolerance)
        optimizer.zero_grad()
        (distance_loss + class_loss).backward()
        if step == 0:
            assert output.embeddings.norm().item() == pytest.approx(numbers["train_embedding_norm"], rel=1e-4)
            assert output.logits.norm().item() == pytest.approx(numbers["logits_norm"], rel=1e-3)
            _check_gradients(name, model, numbers["grad_norms"])
        optimizer.step()


def _check_gradients(network: str, model: HSTL, expected: dict[str, float]) -> None:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    released = to_released({**gradients, **dict(model.named_buffers())}, model.variant)
    assert len(expected) == sum(not name.startswith("Bn.running") and "tracked" not in name for name in released)
    for name, norm in expected.items():
        exact = IN_FLOAT64.get((network, name), norm)
        assert released[name].norm().item() == pytest.approx(exact, rel=2e-2), name
