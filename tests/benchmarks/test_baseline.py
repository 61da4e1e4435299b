"""The baseline is the same network and the same losses: golden numbers, and ours."""

import numpy as np
import pytest
import torch

from benchmarks import baseline
from pipeline.losses import cross_entropy, triplet
from pipeline.model import HSTL, VARIANTS
from pipeline.model.released import to_released
from tests.pipeline.model import golden

SCALE, SMOOTHING, MARGIN = 1.0, 0.1, 0.2


@pytest.mark.parametrize("name", ["casia-b", "gait3d", pytest.param("oumvlp", marks=pytest.mark.slow)])
def test_golden_embeddings_and_first_step(name: str) -> None:
    numbers = golden.load(name)
    network = baseline.Baseline(VARIANTS[name], numbers["class_num"])
    network.load_state_dict(golden.released_state(numbers))
    for case in numbers["eval"][:4]:
        with torch.no_grad():
            embedding = network.eval()(golden.silhouettes(1, case["frames"]))[0][0].T
        assert embedding.norm().item() == pytest.approx(case["norm"], rel=1e-5)
        torch.testing.assert_close(embedding.flatten()[:8], torch.tensor(case["first"]), rtol=1e-4, atol=1e-5)
    settings, expected = numbers["loss"], numbers["train"][0]
    embeddings, logits = network.train()(golden.silhouettes(8, 12, phase=0.3))
    distance_loss = baseline.triplet(embeddings, golden.LABELS, settings["margin"])
    class_loss = baseline.cross_entropy(logits, golden.LABELS, settings["scale"], settings["label_smoothing"])
    assert distance_loss.item() == pytest.approx(expected["triplet"], rel=5e-3)
    assert class_loss.item() == pytest.approx(expected["cross_entropy"], rel=2e-3)


@pytest.mark.parametrize("name", ["casia-b", "gait3d", "demo"])
def test_embeddings_losses_and_gradients_are_ours(name: str) -> None:
    torch.manual_seed(0)
    ours = golden.network(name, golden.load(name)) if name in golden.NAMES else HSTL(name, 5)
    ours.double().train()  # in fp32 the triplet loss's gradients differ by 6 % from rounding alone
    theirs = baseline.Baseline(ours.variant, ours.num_classes).double().train()
    theirs.load_state_dict(to_released(ours.state_dict(), ours.variant))
    x = golden.silhouettes(4, 4, phase=0.3).double()
    labels = torch.tensor([0, 0, 1, 1])

    output = ours(x)
    our_terms = triplet(output.embeddings, labels, MARGIN), cross_entropy(output.logits, labels, SCALE, SMOOTHING)
    embeddings, logits = theirs(x)
    their_terms = (
        baseline.triplet(embeddings, labels, MARGIN),
        baseline.cross_entropy(logits, labels, SCALE, SMOOTHING),
    )

    torch.testing.assert_close(output.embeddings, embeddings.transpose(1, 2), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.logits, logits.transpose(1, 2), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(our_terms, their_terms, rtol=1e-6, atol=0)
    sum(our_terms).backward()
    sum(their_terms).backward()
    gradients = {key: parameter.grad for key, parameter in ours.named_parameters()}
    released = to_released({**gradients, **dict(ours.named_buffers())}, ours.variant)
    for key, parameter in theirs.named_parameters():
        difference = (released[key] - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-12)
        assert difference < 1e-5, f"{key}: {difference:.1e}"


def test_transforms_cut_and_scale_in_the_main_process_and_ask_for_the_gradient() -> None:
    walks = [np.full((3, 64, 64), 255, np.uint8), np.zeros((3, 64, 64), np.uint8)]
    x = baseline.transformed(walks, torch.device("cpu"))
    assert x.shape == (2, 3, 64, 44) and x.dtype == torch.float32 and x.requires_grad
    assert x[0].min() == 1 and x[1].max() == 0
