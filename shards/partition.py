"""Which subjects train and which test."""

import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml

SPLITS = ("train", "test")

# OpenGait's published lists -> ours.
_PUBLISHED = {"TRAIN_SET": "train", "TEST_SET": "test", "PROBE_SET": "probes"}

_RANGE = re.compile(r"(\d+)([^\d.]*)\.\.(\d+)\2(?: step (\d+))?")


@dataclass(frozen=True)
class Partition:
    """Two disjoint sets of subjects. A subject in neither is left out of packing, and counted.

    probes: keys `subject-condition-view` of the sequences that test as probes, where the data set publishes
    such a list (Gait3D's PROBE_SET); otherwise none.
    """

    name: str
    train: frozenset[str]
    test: frozenset[str]
    probes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if both := sorted(self.train & self.test):
            some = ", ".join(both[:5]) + (", ..." if len(both) > 5 else "")
            raise ValueError(
                f"partition {self.name}: {len(both)} subjects stand in both train and test ({some}). "
                f"A subject either trains or tests: take it out of one list."
            )

    def split_of(self, subject: str) -> str | None:
        if subject in self.train:
            return "train"
        return "test" if subject in self.test else None


def names() -> list[str]:
    """The partitions that come with this package."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def load(name_or_file: str | Path) -> Partition:
    """A built-in partition by its name, a YAML file with the lists `train` and `test`, or one of OpenGait's
    JSON files with `TRAIN_SET` and `TEST_SET`.

    An entry is a subject (`001`) or a range, both ends included and zero-padded like its first number:
    `001..074`, `00001..10305 step 2`, `00001train..20000train`. A third list, `probes` or `PROBE_SET`, may
    name sequences. Raises ValueError for what is neither name nor file, and for a malformed file.
    """
    if str(name_or_file) in names():
        return parse(str(name_or_file), (_folder() / f"{name_or_file}.yaml").read_text(encoding="utf-8"))
    path = Path(name_or_file)
    if not path.is_file():
        raise ValueError(
            f"partition {str(name_or_file)!r} is neither a known name ({', '.join(names())}) nor a file. "
            f"A file is YAML, `train: [001..074]` and `test: [075..124]`, or OpenGait's JSON."
        )
    return parse(str(path), path.read_text(encoding="utf-8"))


def parse(name: str, text: str) -> Partition:
    """The lists in `text`, see `load`."""
    content = _read(name, text)
    if isinstance(content, dict):
        content = {_PUBLISHED.get(key, key): value for key, value in content.items()}
    if not isinstance(content, dict) or set(content) - {"probes"} != set(SPLITS):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"partition {name} must hold exactly the lists `train` and `test` (or TRAIN_SET and TEST_SET), "
            f"and may hold `probes`; it holds {found}."
        )
    return Partition(name, *(_expand(name, key, content.get(key, [])) for key in (*SPLITS, "probes")))


def _read(name: str, text: str) -> object:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text, parse_int=str)  # YAML takes ten seconds for GREW's 26,001 subjects
        except json.JSONDecodeError:
            pass  # YAML has braces too
    try:
        # BaseLoader keeps every scalar a string. YAML 1.1 would read subject 010 as the octal number 8.
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"partition {name} is neither YAML nor JSON: {error}") from error


def _expand(name: str, split: str, entries: object) -> frozenset[str]:
    if not isinstance(entries, list):
        raise ValueError(f"partition {name}: `{split}` must be a list of subjects or ranges, it is {entries!r}.")
    subjects: set[str] = set()
    for entry in entries:
        if not isinstance(entry, str) or not entry:
            raise ValueError(f"partition {name}: `{split}` holds {entry!r}; an entry is a subject or a range 001..074.")
        if ".." not in entry:
            subjects.add(entry)
            continue
        match = _RANGE.fullmatch(entry)
        if match is None or int(match[3]) < int(match[1]) or match[4] == "0":
            raise ValueError(
                f"partition {name}: `{split}` holds {entry!r}, which is no range; "
                f"one looks like 001..074 or 00001..10305 step 2."
            )
        numbers = range(int(match[1]), int(match[3]) + 1, int(match[4] or 1))
        subjects.update(f"{number:0{len(match[1])}d}{match[2]}" for number in numbers)
    return frozenset(subjects)


def _folder() -> Path:
    return Path(str(files("shards"))) / "partitions"
