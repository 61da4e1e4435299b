"""What the README shows works as it stands."""

import re
from pathlib import Path

import pytest
import torch

from pipeline.recipe import load
from shards.walkers import walk, write
from tests.pipeline.model import golden

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_embedding_a_folder_by_a_released_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    statements = [line for line in snippet.splitlines() if line.strip()]
    assert len(statements) < 10
    numbers = golden.load("casia-b")
    monkeypatch.chdir(tmp_path)
    torch.save({"model": golden.released_state(numbers), "iteration": 90_000}, "HSTL-90000.pt")
    write(tmp_path / "raw", 1, frames=8, views=("090",), progress=False, workers=1)
    (tmp_path / "001").symlink_to(tmp_path / "raw" / "001")
    namespace: dict[str, object] = {}
    exec(snippet, namespace)
    embedding = namespace["embedding"]
    assert isinstance(embedding, torch.Tensor) and embedding.shape == (73, 128)
    usable = sum(int(frame.sum()) >= 10_000 for frame in walk(1, "nm-01", "090", frames=8))
    silhouettes = namespace["silhouettes"]
    assert isinstance(silhouettes, torch.Tensor) and silhouettes.shape == (usable, 64, 44)
    torch.testing.assert_close(golden.network("casia-b", numbers).eval().embed(silhouettes[None])[0], embedding)


def test_every_file_and_override_it_names_exists() -> None:
    for name in set(re.findall(r"(?:recipes|accelerate_configs)/[\w/-]+\.yaml", README)):
        assert (ROOT / name).is_file(), name
    overrides = set(re.findall(r"\b((?:train|batch|evaluate)\.\w+=[\w-]+)", README))
    assert len(overrides) >= 4
    load(ROOT / "recipes" / "demo.yaml", sorted(overrides))


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links if "://" not in link)
