"""Protocols as data: which sequences are the gallery (known people) and which are probes (to be recognised).

The benchmarks' own are the YAML files in `rules/`; a user's own data needs a file of the same form:

    name: office
    gallery:                            # known people; `gallery: rest` takes every sequence that is no probe
        conditions: ["day1-*"]          # names or shell patterns
    probes:                             # one or more named groups, each reported on its own
        same shoes: {conditions: ["day2-*"]}
        boots: {conditions: ["boots-*"], views: ["front", "side"]}
    across_views: false                 # true: one result for every (probe view, gallery view)
    ranks: [1, 5]                       # rank-k figures to report
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

RULES = Path(__file__).parent / "rules"
Names = Annotated[list[str], Field(min_length=1)]


class Rule(BaseModel):
    """Which sequences belong: those that fit every field given. No field: all of them."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    subjects: Names | None = None  # names or shell patterns
    except_subjects: Names | None = None  # names or shell patterns
    conditions: Names | None = None  # names or shell patterns
    views: Names | None = None  # names or shell patterns
    positions: Annotated[list[int], Field(min_length=1)] | None = None
    """Places, from 1, among the subject's own sequences in order of condition and view."""
    listed: bool = False
    """Only the keys `subject-condition-view` that the caller lists as probes."""


class Submission(BaseModel):
    """Which sequences a benchmark's own server asks about."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    gallery: Rule
    probes: Rule


class Protocol(BaseModel):
    """Rules and figures of one benchmark."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str
    source: str = ""
    note: str = ""
    """A warning printed with every result."""
    gallery: Rule | Literal["rest"]
    probes: Annotated[dict[str, Rule], Field(min_length=1)]
    across_views: bool = False
    """One result for every (probe view, gallery view), identical views left out of the headline; otherwise
    the whole gallery at once.
    """
    ranks: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [1]
    """The rank-k figures in the headline of a protocol with one group of probes."""
    precision: bool = False
    """Mean average precision and mean inverse negative penalty as well."""
    unmatched: Literal["error", "drop"] = "error"
    """A probe whose subject has no gallery sequence (at the view in question): an error, or no trial."""
    submission: Submission | None = None
    """For a benchmark that its own server scores: what `pipeline.submission` ranks for it."""

    @field_validator("probes")
    @classmethod
    def _names_are_free(cls, probes: dict[str, Rule]) -> dict[str, Rule]:
        if taken := {"gallery", "mean"} & probes.keys():
            raise ValueError(f"a group of probes cannot be called {' or '.join(sorted(taken))}: results use that name")
        return probes

    @model_validator(mode="after")
    def _precision_needs_one_gallery(self) -> Self:
        if self.precision and self.across_views:
            raise ValueError("precision is of the whole gallery at once: set across_views or precision to false")
        return self


@dataclass(frozen=True)
class Split:
    """Positions, int64 and ascending, of gallery and probes in the evaluated arrays, and what the rules did
    not find.
    """

    gallery: np.ndarray
    probes: dict[str, np.ndarray]
    num_unused: int
    missing: list[str]


def names() -> list[str]:
    """The protocols that come with the package."""
    return sorted(path.stem for path in RULES.glob("*.yaml"))


def load(protocol: str | Path | Protocol) -> Protocol:
    """A protocol by name, by the path of a YAML file, or as it is. ValueError: unknown name, or a file with
    errors, all named.
    """
    if isinstance(protocol, Protocol):
        return protocol
    is_path = isinstance(protocol, Path) or protocol.endswith((".yaml", ".yml"))
    path = Path(protocol) if is_path else RULES / f"{protocol}.yaml"
    if not is_path and protocol not in names():
        raise ValueError(f"unknown protocol {protocol!r}: use one of {', '.join(names())}, or the path of a YAML file")
    if not path.is_file():
        raise FileNotFoundError(
            f"protocol file {path} does not exist: give the path of a file or one of {', '.join(names())}"
        )
    try:
        return Protocol.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"protocol file {path} is not YAML: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ValueError(
            f"protocol file {path}: {wrong}. The form is shown in pipeline/metrics/protocols.py"
        ) from error


def split(
    protocol: Protocol,
    subjects: Sequence[str],
    conditions: Sequence[str],
    views: Sequence[str],
    listed: Sequence[str] | None = None,
) -> Split:
    """Gallery and probes among n sequences given by subject, condition and view [n].

    `listed`: keys `subject-condition-view` for rules that say `listed`.
    ValueError: keys wanted and not given, an empty gallery, or a sequence that is gallery and probe at once.
    """
    if listed is None and any(rule.listed for rule in _rules(protocol)):
        raise ValueError(
            f"protocol {protocol.name!r} takes its probes from a list and none was given: "
            "pass `probes`, the keys subject-condition-view of the data set's probe list (Gait3D: PROBE_SET), "
            "or give a recipe the file that has them, evaluate.probes=FILE"
        )
    keys = _keys(subjects, conditions, views)
    wanted = frozenset(listed or ())

    def find(rule: Rule) -> np.ndarray:
        return rows_of(rule, subjects, conditions, views, wanted)

    probes = {group: find(rule) for group, rule in protocol.probes.items()}
    is_probe = np.zeros(len(keys), bool)
    for rows in probes.values():
        is_probe[rows] = True
    gallery = np.flatnonzero(~is_probe) if isinstance(protocol.gallery, str) else find(protocol.gallery)
    both = gallery[is_probe[gallery]]
    if len(both):
        raise ValueError(
            f"protocol {protocol.name!r}: {len(both)} sequences are gallery and probe at once, the first is "
            f"{keys[int(both[0])]}: each would find itself; make the rules exclude one another"
        )
    if not len(gallery):
        raise ValueError(
            f"protocol {protocol.name!r} finds no gallery sequence ({_describe(protocol.gallery)}) among "
            f"{len(keys)}, whose conditions are {_listing(conditions)}: choose the protocol that fits "
            "the data, or write one"
        )
    unused = len(keys) - len(gallery) - int(is_probe.sum())
    missing = _missing(protocol, conditions, views, gallery, probes)
    if unused:
        used = is_probe.copy()
        used[gallery] = True
        spare = Counter(conditions[i] for i in np.flatnonzero(~used).tolist())
        named = _listing([f"{condition} ({num})" for condition, num in spare.items()])
        missing.append(f"unused: {unused} sequences are neither gallery nor probe: {named}")
    absent = wanted.difference(keys)
    if absent:
        missing.append(f"{len(absent)} of {len(wanted)} listed probes are not in the data, the first is {min(absent)}")
    return Split(gallery, probes, unused, missing)


def rows_of(
    rule: Rule,
    subjects: Sequence[str],
    conditions: Sequence[str],
    views: Sequence[str],
    listed: Collection[str] = (),
) -> np.ndarray:
    """Positions, int64 ascending, of the sequences that fit a rule; arguments as in `split`."""
    fits = np.ones(len(subjects), bool)
    for patterns, names in ((rule.subjects, subjects), (rule.conditions, conditions), (rule.views, views)):
        if patterns is not None:
            fits &= _match(patterns, names)
    if rule.except_subjects is not None:
        fits &= ~_match(rule.except_subjects, subjects)
    if rule.positions is not None:
        fits &= np.isin(_places(subjects, conditions, views), rule.positions)
    if rule.listed:
        fits &= np.array([key in listed for key in _keys(subjects, conditions, views)], bool)
    return np.flatnonzero(fits)


def read_probes(path: Path) -> list[str]:
    """Keys `subject-condition-view` of a list of probes: JSON or YAML, the list itself or under PROBE_SET or probes.

    Raises FileNotFoundError, or ValueError for a file without such a list.
    """
    if not path.is_file():
        raise FileNotFoundError(f"list of probes {path} does not exist; Gait3D's is PROBE_SET in its Gait3D.json")
    try:
        # BaseLoader keeps every scalar a string; JSON is YAML.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"list of probes {path} is neither JSON nor YAML: {error}") from error
    found = content
    if isinstance(content, dict):
        found = next((content[key] for key in ("PROBE_SET", "probes") if key in content), None)
    if not isinstance(found, list) or not found or not all(isinstance(key, str) for key in found):
        raise ValueError(
            f"list of probes {path} holds no list of keys subject-condition-view, by itself or under "
            f"PROBE_SET or probes"
        )
    return found


def _keys(subjects: Sequence[str], conditions: Sequence[str], views: Sequence[str]) -> list[str]:
    return [f"{s}-{c}-{v}" for s, c, v in zip(subjects, conditions, views, strict=True)]


def _rules(protocol: Protocol) -> list[Rule]:
    gallery = [] if isinstance(protocol.gallery, str) else [protocol.gallery]
    return [*gallery, *protocol.probes.values()]


def _match(patterns: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Which names, bool [n], are or fit one of the patterns."""
    fits = {name: any(fnmatchcase(name, pattern) for pattern in patterns) for name in set(names)}
    return np.array([fits[name] for name in names], bool)


def _places(subjects: Sequence[str], conditions: Sequence[str], views: Sequence[str]) -> list[int]:
    """Place, from 1, of each sequence among its subject's in order of condition and view."""
    place, seen = [0] * len(subjects), Counter[str]()
    for i in sorted(range(len(subjects)), key=lambda i: (subjects[i], conditions[i], views[i])):
        seen[subjects[i]] += 1
        place[i] = seen[subjects[i]]
    return place


def _missing(
    protocol: Protocol,
    conditions: Sequence[str],
    views: Sequence[str],
    gallery: np.ndarray,
    probes: dict[str, np.ndarray],
) -> list[str]:
    """What the rules ask for and the data do not have, one sentence each."""
    found = []
    groups = {**probes, "gallery": gallery}
    rules = dict(protocol.probes)
    if isinstance(protocol.gallery, Rule):
        rules["gallery"] = protocol.gallery
    for group, rule in rules.items():
        if not len(groups[group]):
            found.append(f"{group}: no probe sequence ({_describe(rule)}); left out of the mean")
            continue
        have = Counter(conditions[i] for i in groups[group])
        absent = [c for c in rule.conditions or () if not any(fnmatchcase(name, c) for name in have)]
        if absent:
            found.append(f"{group}: no sequence of {', '.join(absent)}; the others ({len(groups[group])}) are used")
    if protocol.across_views:
        every_view = sorted(set(views))
        for group, rows in groups.items():
            absent = [v for v in every_view if v not in {views[i] for i in rows}]
            if absent and len(rows):
                found.append(
                    f"{group}: no sequence at view {', '.join(absent)}; those cells are empty and left out of the means"
                )
    return found


def _describe(rule: Rule | str) -> str:
    if isinstance(rule, str):
        return "every sequence that is no probe"
    fields = {key: value for key, value in rule.model_dump().items() if value}
    return "; ".join(
        f"{key} {', '.join(map(str, value))}" if isinstance(value, list) else "those listed"
        for key, value in fields.items()
    )


def _listing(values: Sequence[str], most: int = 12) -> str:
    found = sorted(set(values))
    return (
        ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "") if found else "none"
    )
