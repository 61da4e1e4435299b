"""What is particular to a cluster: one small, strict YAML file, so that nothing of it stands in the code."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

EXAMPLE = "accelerate_configs/slurm/site.yaml"

OWN_OPTIONS = {
    "array", "chdir", "cpus-per-task", "error", "gpus", "gpus-per-node", "gpus-per-task", "gres", "job-name", "nodes",
    "no-requeue", "ntasks", "ntasks-per-node", "open-mode", "output", "requeue", "signal", "wrap",
}  # fmt: skip
"""Options of sbatch that `hstl submit` decides."""

SECRETS = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|ACCOUNT_KEY")


def _option(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z-]*", name):
        raise ValueError("write a long option of sbatch without its dashes, such as account")
    if name in OWN_OPTIONS:
        raise ValueError("hstl submit sets this one by its own options (see hstl submit --help); take it out")
    return name


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("no name of an environment variable; use letters, digits and _")
    if SECRETS.search(name):
        raise ValueError("looks like a credential, and this file is copied to every run; set it in your shell instead")
    return name


def _one_line(value: str | int | float) -> str | int | float:
    if "\n" in str(value):
        raise ValueError("must be one line")
    return value


Value = Annotated[str | int | float, AfterValidator(_one_line)]


class Site(BaseModel):
    """A cluster. Every key may be left out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sbatch: dict[Annotated[str, AfterValidator(_option)], Value | Literal[True]] = {}
    """Further options of sbatch: `account: gait`, `mem: 0`; `exclusive: true` for one without a value."""
    gpus_by: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How this SLURM takes requests for GPUs: --gpus-per-node=4 or --gres=gpu:4."""
    setup: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Lines of bash run on every node before training, such as `module load cuda`; one that fails ends the job."""
    container: Annotated[str, AfterValidator(_one_line)] = ""
    """What is put before `python`, in bash: `apptainer exec --nv hstl.sif`."""
    python: str | None = None
    """The Python that has this project, on a disk all nodes see; `hstl`'s own unless given."""
    environment: dict[Annotated[str, AfterValidator(_variable)], Value] = {}
    """Variables of the training processes. `$NAME` in a value is filled in on the node."""
    join_seconds: Annotated[int, Field(ge=10)] = 600
    """How long nodes wait for one another at the start before the job fails."""


def load_site(path: Path | None) -> Site:
    """Reads a site file; without one, a cluster that needs nothing.

    Raises FileNotFoundError, or ValueError naming all faults of the file by place, value and remedy.
    """
    if path is None:
        return Site()
    if not path.is_file():
        raise FileNotFoundError(f"no site file {path}; copy {EXAMPLE} and say what your cluster needs")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict | None):
        raise ValueError(f"{path} holds {type(values).__name__}, not keys with values; see {EXAMPLE}")
    try:
        return Site.model_validate(values or {})
    except ValidationError as error:
        faults = dict.fromkeys(_describe(fault) for fault in error.errors())
        raise ValueError(f"{path} cannot be used:\n" + "\n".join(f"  {fault}" for fault in faults)) from None


def _describe(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return f"{fault['loc'][0]}: unknown key; a site file takes {', '.join(Site.model_fields)}"
    key, *rest = (str(part) for part in fault["loc"])
    name = rest[0] if rest and key in ("sbatch", "environment", "setup") else ""
    place = f"{key}.{name}" if name else key
    if fault["type"] == "value_error":
        return f"{place}: {fault['msg'].removeprefix('Value error, ')} (it is {fault['input']!r})"
    if name:
        takes = "a text, a number or true" if key == "sbatch" else "a text" if key == "setup" else "a text or a number"
        return f"{place}: takes {takes}, not {fault['input']!r} ({type(fault['input']).__name__}); write it in quotes"
    return f"{place}: {fault['msg'][0].lower()}{fault['msg'][1:]}, not {fault['input']!r}"
