"""The formulas behind tests/golden/*.json: weights and silhouettes without a weight file.

The numbers were computed from the published network definitions, in fp32 on CPU.
"""

import json
from math import prod
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

from pipeline.model import HSTL
from pipeline.model.released import from_released

FILES = sorted((Path(__file__).parents[2] / "golden").glob("*.json"))
NAMES = [file.stem for file in FILES]
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def load(name: str) -> dict[str, Any]:
    return json.loads(FILES[NAMES.index(name)].read_text())


def weight(name: str, shape: list[int]) -> torch.Tensor:
    """A tensor of the released network, by its released name."""
    n = prod(shape)
    wave = np.sin(0.01 * ((np.arange(n) * 7919 + crc32(name.encode())) % 10007))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_var"):
        values = 1 + 0.2 * abs(wave)
    elif name.endswith("running_mean"):
        values = 0.05 * wave
    elif name == "Bn.weight":
        values = 1 + 0.1 * wave
    elif name.endswith(".p"):
        values = np.full(n, 6.5)
    elif name.endswith(".bias"):
        values = 0.1 * wave
    else:
        fan = shape[1] if name.endswith("fc_bin") else n // shape[0]
        values = wave * np.sqrt(2 / fan)
    return torch.tensor(values.reshape(shape), dtype=torch.float32)


def silhouettes(n: int, frames: int, phase: float = 0.0) -> torch.Tensor:
    """float32 [n, frames, 64, 44], 0 or 1: three swaying boxes."""
    x = np.zeros((n, frames, 64, 44), np.float32)
    boxes = [(2, 14, 2, 5), (14, 38, 3, 8), (38, 62, 9, 4)]
    for k in range(n):
        for f in range(frames):
            for b, (top, bottom, sway, half) in enumerate(boxes):
                middle = 22 + sway * np.sin(0.37 * f + 0.9 * k + 1.3 * b + phase)
                left = max(0, round(middle - half - k % 3))
                right = min(44, round(middle + half + k % 3))
                x[k, f, top:bottom, left:right] = 1
    return torch.tensor(x)


def released_state(golden: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: weight(name, shape) for name, shape in golden["state_dict"].items()}


def network(name: str, golden: dict[str, Any]) -> HSTL:
    model = HSTL(name, golden["class_num"])
    model.load_state_dict(from_released(released_state(golden), model.state_dict(), model.variant))
    return model
