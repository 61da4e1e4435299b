"""Every fast path gives what the plain way gives, forward and backward."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from pipeline.losses import cross_entropy, triplet
from pipeline.model import HSTL, Level, Variant, fast, winograd

WIDE = Variant(
    name="wide",
    stem=(8,),
    halved=True,
    levels=(Level(regions=(20, 12), widths=(32, 64)), Level(regions=(4, 16, 8, 4), widths=(64,))),
    strips=16,
)


def step(network: HSTL, silhouettes: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    labels = torch.arange(len(silhouettes)) // 2
    output = network(silhouettes)
    loss = triplet(output.embeddings, labels, 0.2) + cross_entropy(output.logits, labels)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    return {"loss": loss.detach(), "embeddings": output.embeddings.detach(), **gradients}


@pytest.mark.parametrize("frames", [6, 7])
@pytest.mark.parametrize("path", [*fast.PATHS, "all"])
def test_a_path_off_is_the_same_step_in_float64(path: str, frames: int) -> None:
    torch.manual_seed(0)
    network = HSTL(WIDE, 5).double().train()
    silhouettes = torch.rand(4, frames, 64, 8, dtype=torch.float64).round()
    quick = step(network, silhouettes)
    with fast.without(*(fast.PATHS if path == "all" else [path])):
        plain = step(network, silhouettes)
    for name, value in plain.items():
        torch.testing.assert_close(quick[name], value, rtol=1e-8, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")


def test_all_paths_off_in_bf16_is_the_same_to_its_rounding() -> None:
    torch.manual_seed(0)
    network = HSTL(WIDE, 5, precision="bf16").train()
    silhouettes = torch.rand(4, 12, 64, 22).round()
    quick = step(network, silhouettes)
    with fast.without(*fast.PATHS):
        plain = step(network, silhouettes)
    cosine = F.cosine_similarity(quick["embeddings"].flatten(1), plain["embeddings"].flatten(1))
    assert (1 - cosine).max() < 1e-3


@pytest.mark.parametrize("frames", [2, 4, 10])
def test_winograd_is_the_convolution(frames: int) -> None:
    x = torch.randn(2, 5, frames, 4, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 5, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    ours, plain = winograd.conv3d(x, weight), F.conv3d(x, weight, padding=1)
    torch.testing.assert_close(ours, plain)
    outer = torch.randn_like(plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, [x, weight], outer), torch.autograd.grad(plain, [x, weight], outer)
    )


def test_recut_copies_nothing_where_regions_are_cut_finer() -> None:
    bodies = list(torch.randn(1, 1, 1, 64, 2).split([40, 24], dim=3))
    finer = fast.recut(bodies, [8, 32, 16, 8])
    assert [body.shape[3] for body in finer] == [8, 32, 16, 8]
    assert finer[1].data_ptr() == bodies[0][:, :, :, 8:].data_ptr()
    crossing = fast.recut(bodies, [32, 32])
    torch.testing.assert_close(torch.cat(crossing, dim=3), torch.cat(bodies, dim=3))


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    x = torch.rand(1, 2, 4, 3, requires_grad=True)
    means = fast.power_means(x, torch.tensor([6.5]), [2, 2], 1e-6)
    (first,) = torch.autograd.grad(means.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_the_environment_turns_paths_off_and_refuses_unknown_ones() -> None:
    def run(value: str) -> subprocess.CompletedProcess[str]:
        code = "from pipeline.model import fast; print([path for path in fast.PATHS if fast.on(path)])"
        environment = {**os.environ, "HSTL_PLAIN": value}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    assert run("gem,apart").stdout.strip() == "['channels_last', 'winograd']"
    assert "HSTL_PLAIN names ['gems']; the fast paths are channels_last" in run("gems").stderr


@pytest.mark.parametrize("frames", [3, 4, 6, 7, 8, 9, 12])
def test_gradients_in_bf16_are_those_of_fp32_at_any_depth(frames: int) -> None:
    """Depths of 1, 2, 3 and 4 behind the temporal pooling: torch's own bf16 gradient is wrong at 2 on a CPU."""
    gradients = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        network = HSTL("demo", 3, precision=precision).train()  # type: ignore[arg-type]
        silhouettes = torch.rand(2, frames, 64, 44, generator=torch.Generator().manual_seed(1)).round()
        network(silhouettes).embeddings.square().sum().backward()
        gradients.append(network.arme[2][1].weight.grad)
    expected, found = gradients
    assert (found - expected).norm() < 0.1 * expected.norm()
