"""The job's two scripts as text: pure, and quoted so that no path or value can break out of its place."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import jinja2

from pipeline.checkpoint.weights import MARKER
from pipeline.slurm.resources import Resources
from pipeline.slurm.site import Site

PATIENCE = 5
"""Interruptions in a row without a new checkpoint after which the job fails instead of going round for ever."""


@dataclass(frozen=True)
class Run:
    """A run of the job, as the scripts need it."""

    folder: Path
    steps: int
    workers: int

    @property
    def last(self) -> str:
        """Name of the folder of its last checkpoint."""
        return f"step-{self.steps:08d}"


def batch_script(
    name: str, runs: list[Run], job_folder: Path, submitted_from: Path, resources: Resources, site: Site
) -> str:
    """What sbatch takes. Paths are absolute; several runs are an array job."""
    workers = max(run.workers for run in runs)
    return _render(
        "job.sbatch.j2",
        options=_options(name, len(runs), job_folder, submitted_from, resources, site, workers),
        runs=runs,
        node=job_folder / "node.sh",
        folder=submitted_from,
        ahead=resources.ahead,
        marker=MARKER,
        patience=PATIENCE,
    )


def node_script(job_folder: Path, python: str, use_cpu: bool, workers: int, resources: Resources, site: Site) -> str:
    """What runs on every node. `use_cpu` is for launch files that do not find CPUs by themselves."""
    return _render(
        "node.sh.j2",
        site=site,
        python=python,
        launch=job_folder / "launch.yaml",
        use_cpu=use_cpu,
        threads=resources.threads(workers),
        ahead=resources.ahead,
    )


def fill(value: str | int | float) -> str:
    """A value in double quotes for bash, where `$NAME` and `${NAME}` are filled in and all else stands for itself."""
    plain = re.sub(r'[\\"`]|\$(?![A-Za-z_]|\{[A-Za-z_][A-Za-z0-9_]*\})', r"\\\g<0>", str(value))
    return f'"{plain}"'


def _options(
    name: str, runs: int, job_folder: Path, submitted_from: Path, resources: Resources, site: Site, workers: int
) -> list[str]:
    log = str(job_folder).replace("%", "%%") + ("/job-%A_%a.log" if runs > 1 else "/job-%j.log")
    options: dict[str, str | int | float | bool | None] = {
        **site.sbatch,
        "job-name": name,
        "nodes": resources.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": resources.cpus(workers),
        "output": log,
        "open-mode": "append",
        "requeue": True,
        "signal": f"USR2@{resources.ahead}",
        "chdir": str(submitted_from),
    }
    if resources.gpus_per_node:
        gpus = resources.gpus_per_node
        options |= {"gres": f"gpu:{gpus}"} if site.gpus_by == "gres" else {"gpus-per-node": gpus}
    if resources.partition is not None:
        options["partition"] = resources.partition
    if resources.time is not None:
        options["time"] = resources.time
    if runs > 1:
        options["array"] = f"0-{runs - 1}"
    return [f"--{key}" if value is True else f"--{key}={shlex.quote(str(value))}" for key, value in options.items()]


def _render(template: str, **values: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # bash, not HTML: values go through quote or fill
    )
    environment.filters.update(quote=lambda value: shlex.quote(str(value)), fill=fill)
    return environment.get_template(template).render(**values)
