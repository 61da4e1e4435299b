"""Recipes: one strict, typed YAML file a benchmark, with overrides from the command line."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.metrics import protocols
from pipeline.model import VARIANTS

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Network(_Section):
    """Which HSTL."""

    variant: Literal[tuple(VARIANTS)]  # type: ignore[valid-type]
    weights: str | None = None
    """Weights that a new run starts from, ours or a released file; random ones by the seed unless given."""


class Batch(_Section):
    """The global batch: P subjects x K sequences, over all processes together."""

    subjects: Annotated[int, Field(ge=2)]
    """P: subjects a batch, without replacement."""
    sequences: Positive
    """K: sequences of each subject, without replacement where it has enough."""
    frames: Positive
    """Frames taken of a sequence, in order."""
    frames_skip: Annotated[int, Field(ge=0)] = 0
    """Extra frames of the window the frames are drawn from; 0 takes neighbours."""


class Loss(_Section):
    """Triplet plus cross-entropy."""

    margin: Weight = 0.2
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the logits before the cross-entropy."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing of the cross-entropy."""
    triplet_weight: Weight = 1.0
    cross_entropy_weight: Weight = 1.0


class Optimizer(_Section):
    """Adam or SGD as torch has them; weight decay is added to the gradient in both."""

    kind: Literal["adam", "sgd"]
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Weight = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _adam_has_no_momentum(self) -> "Optimizer":
        if self.kind == "adam" and self.momentum:
            raise ValueError(f"momentum {self.momentum} is SGD's; take it out, or set kind: sgd")
        return self


class Schedule(_Section):
    """The learning rate is multiplied by `factor` at each milestone (a step)."""

    milestones: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1

    @model_validator(mode="after")
    def _milestones_rise(self) -> "Schedule":
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {list(self.milestones)} must rise from one to the next; sort them")
        return self


class Train(_Section):
    """How long, how often saved, at what precision."""

    steps: Positive
    save_every: Positive
    """Steps between lasting checkpoints; the last step is always saved."""
    interim_every: Positive | None = None
    """Steps between interim checkpoints: each is deleted as soon as a newer one is complete."""
    keep_last: Positive = 2
    """Lasting checkpoints kept, counted from the newest."""
    keep_every: Positive | None = None
    """Checkpoints at multiples of this many steps are kept for good."""
    log_every: Positive = 100
    """Steps between lines of metrics.jsonl; a line holds means over its `steps`, fewer after a resume."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of the convolutions; parameters and statistics are fp32 in both."""
    micro_batch: Positive | None = None
    """Sequences a process convolves at a time (exact; saves memory, costs a second forward pass)."""
    deterministic: bool = True
    """GPUs take cuDNN's deterministic kernels, so that runs repeat bit for bit. False: the fastest by trial."""
    shard_classifier: bool = False
    """Each process keeps and updates the classifier of its share of the subjects: same result, far less is sent."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Loader processes a rank; the batches do not depend on it."""
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], Field(strict=False)] = ("tensorboard",)
    """Trackers beside metrics.jsonl, through Accelerate; wandb and mlflow are the extra `trackers`."""
    stall_seconds: Positive = 1800
    """A process that stays this long in one step, one wait for data or one save ends itself, and so the job."""
    start_from: str | None = None
    """Checkpoint or run that a run without checkpoints goes on from, optimizer and step included."""
    allow_changes: bool = False
    """Resume although data, recipe or launcher differ from the checkpoint's."""


class Evaluate(_Section):
    """The protocol of the benchmark, and what the network is set beside."""

    protocol: str
    """A protocol by name (casia-b, oumvlp, grew, gait3d), or the path of a YAML file with gallery and probe rules."""
    baselines: Annotated[tuple[Literal["untrained", "gei"], ...], Field(strict=False)] = ()
    """Evaluated on the same data: the network before training, nearest neighbour on gait energy images."""
    probes: str | None = None
    """File with the list of probes, for a protocol that takes them from one: Gait3D's PROBE_SET, JSON or YAML."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """Of part vectors; its mean over parts decides. Published figures are Euclidean."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Arithmetic of the convolutions when embedding."""
    frames_limit: Positive | None = None
    """Longer sequences are cut to their middle this many frames. Not exact: rates depend on it, and results say so."""

    @model_validator(mode="after")
    def _protocol_is_known(self) -> "Evaluate":
        protocols.load(self.protocol)
        return self


class Recipe(_Section):
    """Everything that decides a training run. Launch files decide only where it runs."""

    name: str
    """The recipe's file name without its ending; names the folder of its runs."""
    data: str
    """URL or folder of the packed shards."""
    run: str | None = None
    """Folder of the run; runs/<name>/<time> unless given; given again, the run resumes."""
    seed: Annotated[int, Field(ge=0)] = 0
    network: Network
    batch: Batch
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    train: Train
    evaluate: Evaluate


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names every fault at once, each by its dotted place."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file and applies `key.path=value` overrides (values are YAML).

    Raises FileNotFoundError, or RecipeError naming all faults of file and overrides together.
    """
    path = Path(path)
    if not path.is_file():
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.yaml"))) or "none"
        raise FileNotFoundError(f"no recipe {path}; recipes in that folder: {near}")
    values = {"name": path.stem, **_mapping(path)}
    faults = [fault for text in overrides if (fault := _apply(values, text))]
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        faults += [_describe(fault) for fault in error.errors()]
    if faults:
        plural = "fault" if len(faults) == 1 else "faults"
        raise RecipeError(f"{path}: {len(faults)} {plural}:\n" + "\n".join(f"  {fault}" for fault in faults))
    return recipe


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load` takes."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-4` is a number (YAML 1.1 has it a string), a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            line = node.start_mark.line + 1
            raise RecipeError(f"{self.name}: {sorted(map(str, twice))} twice in the section at line {line}; keep one")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            values = yaml.load(file, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds {type(values).__name__}, not sections; see recipes/demo.yaml")
    return values


def _apply(values: dict[str, Any], override: str) -> str | None:
    """Sets one override in place; returns the fault, if any."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        return f"override {override!r}: write it as key.path=value"
    *sections, last = key.split(".")
    place: Any = values
    for section in sections:
        place = place.setdefault(section, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            return f"override {override!r}: {section!r} is not a section"
    try:
        place[last] = yaml.load(text, _Loader)
    except yaml.YAMLError:
        return f"override {override!r}: {text!r} is not a YAML value; quote it"
    return None


def _describe(fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"]) or "recipe"
    if fault["type"] == "extra_forbidden":
        section = _section(fault["loc"][:-1])
        return f"{place}: unknown key; this section takes {', '.join(section.model_fields)}"
    if fault["type"] == "missing":
        return f"{place}: missing; give it a value"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{place}: {message}"
    return f"{place}: {message[0].lower()}{message[1:]}, not {fault['input']!r} ({type(fault['input']).__name__})"


def _section(location: tuple[Any, ...]) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    for name in location:
        section = section.model_fields[name].annotation  # type: ignore[assignment]
    return section
