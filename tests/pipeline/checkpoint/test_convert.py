import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from pipeline.checkpoint import read_weights, save_weights, to_network
from pipeline.checkpoint.convert import convert, export_onnx, export_pretrained
from pipeline.model import HSTL


@pytest.fixture
def network() -> HSTL:
    torch.manual_seed(0)
    made = HSTL("demo", 5)
    made(torch.rand(4, 6, 64, 44))  # statistics that are not the initial ones
    return made.eval()


def equal(a: HSTL, b: HSTL) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_ours_to_released_and_back(network: HSTL, tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", network, network.state_dict(), step=3)
    convert(tmp_path / "a.safetensors", tmp_path / "b.pt", "demo")
    released = torch.load(tmp_path / "b.pt", weights_only=True)
    assert released["iteration"] == 3 and "arme1.0.conv3d.weight" in released["model"]
    convert(tmp_path / "b.pt", tmp_path / "c.safetensors", "demo")
    assert equal(to_network(read_weights(tmp_path / "c.safetensors")), network)


def test_conversion_by_another_variants_recipe_is_refused(network: HSTL, tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", network, network.state_dict())
    with pytest.raises(ValueError, match=r"is of variant 'demo', the recipe's is 'casia-b'"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.pt", "casia-b")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_conversion_overwrites_nothing_and_knows_two_endings(network: HSTL, tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", network, network.state_dict())
    with pytest.raises(FileExistsError, match=r"a\.safetensors exists"):
        convert(tmp_path / "a.safetensors", tmp_path / "a.safetensors", "demo")
    with pytest.raises(ValueError, match=r"\.pt \(as released\) or \.safetensors"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.bin", "demo")


@pytest.mark.filterwarnings("ignore")
def test_onnx_gives_the_same_embeddings_for_any_n_and_frames(network: HSTL, tmp_path: Path) -> None:
    export_onnx(network, tmp_path / "hstl.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "hstl.onnx", providers=["CPUExecutionProvider"])
    for n, frames in [(1, 3), (2, 9), (3, 14), (1, 40)]:
        silhouettes = torch.rand(n, frames, 64, 44, generator=torch.Generator().manual_seed(frames))
        (embeddings,) = session.run(None, {"silhouettes": silhouettes.numpy()})
        np.testing.assert_allclose(embeddings, network.embed(silhouettes).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_a_pretrained_folder_loads_by_both_ways(network: HSTL, tmp_path: Path) -> None:
    export_pretrained(network, tmp_path / "hub")
    loaded = HSTL.from_pretrained(tmp_path / "hub")
    assert equal(loaded, network) and not loaded.training
    assert equal(to_network(read_weights(tmp_path / "hub")), network)
    assert "was not said" in (tmp_path / "hub" / "README.md").read_text()


def test_from_pretrained_refuses_a_file_with_missing_tensors(network: HSTL, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path / "hub")
    state = network.state_dict()
    del state["fta.weight"]
    save_weights(tmp_path / "hub" / "model.safetensors", network, state)
    with pytest.raises(RuntimeError, match=r"fta\.weight"):
        HSTL.from_pretrained(tmp_path / "hub")


def test_the_card_states_data_recipe_and_metrics(network: HSTL, tmp_path: Path) -> None:
    results = {
        "recipe": {
            "name": "demo",
            "batch": {"subjects": 8, "sequences": 4, "frames": 18},
            "optimizer": {"kind": "adam", "lr": 0.001},
        },
        "data": {"name": "walkers", "fingerprint": "f" * 64, "test_subjects": 12, "test_sequences": 1320},
        "checkpoint": {"step": 300},
        "protocol": "casia-b",
        "methods": [{"metrics": {"headline": {"NM": 61.25, "BG": None}}}],
    }
    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    (tmp_path / "run" / "evaluation" / "results.json").write_text(json.dumps(results))
    export_pretrained(network, tmp_path / "hub", tmp_path / "run")
    card = (tmp_path / "hub" / "README.md").read_text()
    for fact in (
        "walkers (fingerprint ffffffffffffffff)",
        "300 steps, P x K = 8 x 4",
        "| NM | 61.2 % |",
        "| BG | not measured |",
    ):
        assert fact in card


def test_a_card_without_results_says_what_to_run(network: HSTL, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"pipeline\.evaluate"):
        export_pretrained(network, tmp_path / "hub", tmp_path)
