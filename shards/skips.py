"""What packing left out, why, and a few examples of each."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

NUM_EXAMPLES = 5


@dataclass
class Skips:
    """Counts by reason, with the first few places of each. Merging in a fixed order gives a fixed report."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, place: str, num: int = 1) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + num
        examples = self.examples.setdefault(reason, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append(place)

    def merge(self, other: "Skips") -> None:
        for reason, num in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + num
            examples = self.examples.setdefault(reason, [])
            examples.extend(other.examples[reason][: NUM_EXAMPLES - len(examples)])

    def __iter__(self) -> Iterator[tuple[str, int, list[str]]]:
        """(reason, count, examples), most frequent first."""
        for reason in sorted(self.counts, key=lambda reason: (-self.counts[reason], reason)):
            yield reason, self.counts[reason], self.examples[reason]

    def __bool__(self) -> bool:
        return bool(self.counts)

    def to_json(self) -> list[dict[str, Any]]:
        return [{"reason": reason, "count": count, "examples": examples} for reason, count, examples in self]

    @classmethod
    def from_json(cls, entries: list[dict[str, Any]]) -> "Skips":
        return cls(
            counts={entry["reason"]: entry["count"] for entry in entries},
            examples={entry["reason"]: entry["examples"] for entry in entries},
        )

    def __str__(self) -> str:
        return "; ".join(f"{count} × {reason} (such as {examples[0]})" for reason, count, examples in self)
