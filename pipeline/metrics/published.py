"""Published figures of the benchmarks, and whether a result may stand beside them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FIGURES = Path(__file__).parent / "published.yaml"


@dataclass(frozen=True)
class Published:
    """Figures of one protocol, and why a result is or is not comparable with them."""

    methods: dict[str, dict[str, float]] = field(default_factory=dict)  # method -> headline name -> percent
    comparable: bool = False
    reason: str = ""


def published(results: dict[str, Any]) -> Published:
    """What is published for the protocol of `results` (results.json).

    Comparable only where everything known agrees: the benchmark's data set by name, its number of test
    subjects (and of test sequences, where that is known), and nothing of the recipe's own: no demo, no frames
    limit, no other distance, no network trained elsewhere. The local score of a benchmark
    that is scored by a server never is.
    """
    protocol, data, recipe = results["protocol"], results.get("data", {}), results.get("recipe", {})
    entry = yaml.safe_load(FIGURES.read_text(encoding="utf-8")).get(protocol)
    if entry is None:
        return Published(reason=f"No published figures are known for protocol {protocol}.")
    reasons = []
    if entry.get("official_elsewhere"):
        reasons.append("the benchmark's score comes from its own server")
    if data.get("name") != protocol:
        reasons.append(f"the data set is {data.get('name', 'unnamed')}, not {protocol}")
    if str(recipe.get("name", "")).startswith("demo"):
        reasons.append("the recipe is the demo's")
    if data.get("other_than_trained_on"):
        reasons.append("the network was trained on other data")
    if data.get("frames_limit", {}).get("sequences_cut"):
        reasons.append("sequences were cut by a frames limit")
    if (distance := recipe.get("evaluate", {}).get("distance", "euclidean")) != "euclidean":
        reasons.append(f"distances are {distance}")
    # Preprocessing may drop a sequence or two; made data with as many subjects has none missing.
    for key, slack in (("test_subjects", 0), ("test_sequences", 10)):
        here, official = data.get(key, 0), entry.get(key)
        if official and abs(here - official) > slack:
            reasons.append(f"{here:,} {key.replace('_', ' ')}, the benchmark has {official:,}")
    if reasons:
        text = f"Not comparable with published figures: {'; '.join(reasons)}."
        return Published(entry["methods"], False, text)
    return Published(entry["methods"], True, "Data set, test subjects and protocol are the benchmark's.")
