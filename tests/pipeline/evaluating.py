"""A small packed data set, an untrained network's weights, and a recipe, for tests of embedding and evaluation."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.checkpoint import save_weights
from pipeline.model import HSTL
from pipeline.recipe import Recipe, load
from shards.pack import pack
from tests.shards.raw_tree import write_sequence

ROOT = Path(__file__).parents[2]
CONDITIONS = ("nm-01", "nm-02", "nm-05", "cl-01")
VIEWS = ("000", "090")


@dataclass(frozen=True)
class Bench:
    """What an evaluation needs."""

    shards: Path
    weights: Path

    def recipe(self, run: Path, *overrides: str) -> Recipe:
        """The demo's recipe on this data, without loader processes."""
        given = [f"data={self.shards}", f"run={run}", "train.workers=0", "evaluate.baselines=[]", *overrides]
        return load(ROOT / "recipes" / "demo.yaml", given)


def make(folder: Path, num_subjects: int = 3, longest: int = 20) -> Bench:
    """`num_subjects` of whom the first trains; sequences of 1 to `longest` frames, lengths repeating."""
    seed = 0
    for subject in range(1, num_subjects + 1):
        for condition in CONDITIONS:
            for view in VIEWS:
                seed += 1
                write_sequence(folder / "raw" / f"{subject:03d}" / condition / view, 1 + seed * 7 % longest, seed)
    (folder / "partition.yaml").write_text(f"train: ['001']\ntest: [002..{num_subjects:03d}]\n")
    pack("casia-b", folder / "raw", folder / "shards", folder / "partition.yaml", workers=1, progress=False)
    torch.manual_seed(0)
    network = HSTL("demo", 1)
    weights = folder / "model.safetensors"
    save_weights(weights, network, network.state_dict(), step=7)
    return Bench(folder / "shards", weights)
