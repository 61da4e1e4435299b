import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.checkpoint import load_weights, read_weights, save_weights, to_network
from pipeline.model import HSTL
from pipeline.model.released import to_released


@pytest.fixture
def network() -> HSTL:
    torch.manual_seed(0)
    return HSTL("demo", 5).eval()


@pytest.fixture
def released(network: HSTL, tmp_path: Path) -> Path:
    """A file as the release saves it, with entries beside the model."""
    optimizer = torch.optim.Adam(network.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [70_000], gamma=0.1)
    network(torch.rand(2, 3, 64, 44)).logits.sum().backward()
    optimizer.step()
    scheduler.step()
    content = {
        "model": to_released(network.state_dict(), network.variant),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "iteration": 12,
    }
    torch.save(content, tmp_path / "released.pt")
    return tmp_path / "released.pt"


def same(a: HSTL, b: HSTL) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_our_file_says_what_it_is_and_loads_back(network: HSTL, tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", network, network.state_dict(), step=7)
    weights = read_weights(tmp_path / "w.safetensors")
    assert (weights.variant, weights.num_classes, weights.step, weights.released) == ("demo", 5, 7, False)
    assert same(to_network(weights), network)


def test_a_released_file_loads(network: HSTL, released: Path) -> None:
    weights = read_weights(released)
    assert (weights.variant, weights.num_classes, weights.step, weights.released) == (None, 5, 12, True)
    assert same(to_network(weights, "demo"), network)
    other = HSTL("demo", 5)
    load_weights(other, released)
    assert same(other, network)


def test_a_released_file_does_not_say_its_variant(released: Path) -> None:
    with pytest.raises(ValueError, match=r"released\.pt is a released file.*variant.*'casia-b'"):
        to_network(read_weights(released))


@pytest.mark.parametrize(
    ("other", "message"),
    [(("demo", 6), "trained on 5 subjects"), (("casia-b-17", 5), "variant")],
)
def test_weights_of_another_network_are_refused(
    network: HSTL, tmp_path: Path, other: tuple[str, int], message: str
) -> None:
    save_weights(tmp_path / "w.safetensors", network, network.state_dict())
    with pytest.raises(ValueError, match=message):
        load_weights(HSTL(*other), tmp_path / "w.safetensors")


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be read as weights alone"):
        read_weights(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match="bad"):
        read_weights(tmp_path / "bad")


def test_a_checkpoint_without_its_marker_is_not_believed(network: HSTL, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000005"
    folder.mkdir(parents=True)
    save_weights(folder / "model.safetensors", network, network.state_dict())
    with pytest.raises(FileNotFoundError, match="never completed"):
        read_weights(folder)
    with pytest.raises(FileNotFoundError, match="nor a complete checkpoint"):
        read_weights(tmp_path)
    (folder / "COMPLETE").touch()
    assert read_weights(tmp_path).path == folder / "model.safetensors"


def test_a_saved_network_gives_the_same_embedding_in_a_fresh_process(network: HSTL, tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", network, network.state_dict())
    code = (
        "import sys, numpy, torch; from pipeline.checkpoint import read_weights, to_network\n"
        "network = to_network(read_weights(sys.argv[1])); x = (torch.arange(64 * 44 * 5) % 7 < 3).float()\n"
        "numpy.save(sys.argv[2], network.embed(x.reshape(1, 5, 64, 44)).detach().numpy())"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "w.safetensors", tmp_path / "e.npy"], check=True)
    x = (torch.arange(64 * 44 * 5) % 7 < 3).float().reshape(1, 5, 64, 44)
    np.testing.assert_allclose(np.load(tmp_path / "e.npy"), network.embed(x).detach().numpy(), rtol=1e-5, atol=1e-6)
