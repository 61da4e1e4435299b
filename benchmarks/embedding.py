"""Embedding in batches against one sequence at a time, and against the release's network.

python -m benchmarks.embedding [--variant casia-b] [--sequences 4] [--repeats 3]
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.baseline import Baseline
from benchmarks.measure import alternate, machine, ratio
from pipeline.model import HSTL
from pipeline.model.released import to_released


def measure(variant: str, sequences: int, repeats: int) -> dict[str, Any]:
    """Sequences of 30 frames a second, and ratios."""
    network = HSTL(variant, 74).eval()
    release = Baseline(network.variant, 74).eval()
    release.load_state_dict(to_released(network.state_dict(), network.variant))
    low = HSTL(variant, 74, precision="bf16").eval()
    low.load_state_dict(network.state_dict())
    walks = torch.rand(sequences, 30, 64, 44).round()

    def each(function: Callable[[torch.Tensor], object]) -> None:
        for walk in walks:
            function(walk[None])

    ways: dict[str, Callable[[], object]] = {
        "release, one at a time": lambda: each(release),
        "fp32, one at a time": lambda: each(network.embed),
        "fp32, together": lambda: network.embed(walks),
        "bf16, one at a time": lambda: each(low.embed),
        "bf16, together": lambda: low.embed(walks),
    }
    with torch.inference_mode():
        times = alternate(ways, repeats)
    return {
        "variant": variant,
        "machine": machine(),
        "sequences/s": {name: sequences / t.seconds for name, t in times.items()},
        "times faster than the release": {name: ratio(times["release, one at a time"], t) for name, t in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="casia-b")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.variant, arguments.sequences, arguments.repeats), indent=1))


if __name__ == "__main__":
    main()
