"""From recipes to a job: what is written into the run's folder, and handed to SLURM.

RUN/slurm/recipe.yaml      the recipe as it is now, overrides and all: later edits do not reach the job
          launch.yaml      the launch file for these nodes, and deepspeed.json beside it
          job.sbatch       what sbatch takes
          node.sh          what runs on every node
          job              the job's id, once it has one
          job-ID.log       the batch script's and all processes' output, over all starts of the job
          ranks/           a file a process and start

Several recipes: FOLDER/slurm holds what they share and their logs, FOLDER/<recipe>/slurm the rest.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

from pipeline.checkpoint.weights import MARKER
from pipeline.recipe import Recipe, dump, load
from pipeline.slurm import resources as ask
from pipeline.slurm.resources import Resources
from pipeline.slurm.script import Run, batch_script, node_script
from pipeline.slurm.site import Site

ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
"""States of squeue in which a job does nothing any more."""


@dataclass(frozen=True)
class Submission:
    """What was written."""

    folder: Path
    """Holds job.sbatch: RUN/slurm, or FOLDER/slurm of an array."""
    runs: list[Path]
    notes: list[str]
    """What may be a mistake, and cannot be told from here."""

    @property
    def command(self) -> str:
        """How to hand it to SLURM."""
        return shlex.join(["sbatch", str(self.folder / "job.sbatch")])


def prepare(
    recipes: Sequence[Path],
    overrides: Sequence[str],
    resources: Resources,
    site: Site,
    launch_file: Path,
    folder: Path | None = None,
) -> Submission:
    """Checks everything, then writes the folder of the run (or of the array's runs) with all that the job needs.

    Raises ValueError, FileNotFoundError or FileExistsError, before anything is written.
    """
    loaded = [load(path, overrides) for path in recipes]
    launch = ask.read_launch(launch_file)
    ask.check_launch(launch, launch_file, resources)
    if launch["distributed_type"] == "DEEPSPEED" and "ACCELERATE_USE_CPU" in site.environment:
        raise ValueError(
            "the site file's environment sets ACCELERATE_USE_CPU, which makes Accelerate leave DeepSpeed out; take it "
            "out: DeepSpeed finds CPUs by itself, and other launch files are told by hstl submit"
        )
    folders = _folders(loaded, folder)
    for recipe, run in zip(loaded, folders, strict=True):
        _check(recipe, run, resources)
    shared = (folders[0] if len(folders) == 1 else folders[0].parent) / "slurm"

    runs = [Run(run, recipe.train.steps, recipe.train.workers) for run, recipe in zip(folders, loaded, strict=True)]
    use_cpu = launch["distributed_type"] == "MULTI_GPU" and not resources.gpus_per_node
    python = site.python or ("python" if site.container else sys.executable)
    workers = max(run.workers for run in runs)
    name = "hstl-" + (loaded[0].name if len(loaded) == 1 else shared.parent.name)
    texts = {
        "job.sbatch": batch_script(name, runs, shared, Path.cwd(), resources, site),
        "node.sh": node_script(shared, python, use_cpu, workers, resources, site),
        "launch.yaml": yaml.safe_dump(
            ask.resolve_launch(launch, resources, shared / "deepspeed.json"), sort_keys=False
        ),
    }
    if deepspeed := (launch.get("deepspeed_config") or {}).get("deepspeed_config_file"):
        texts["deepspeed.json"] = Path(deepspeed).read_text()
    _write(shared, texts, loaded, folders)
    return Submission(shared, folders, _notes(loaded))


def submit(submission: Submission) -> str:
    """Hands the job to SLURM; returns its id. Raises ValueError with sbatch's words where it refuses."""
    said = _slurm("sbatch", "--parsable", str(submission.folder / "job.sbatch"))
    if said.returncode:
        raise ValueError(
            f"sbatch refused the job: {said.stderr.strip()}\nchange the options or the site file and submit again with "
            f"--run {submission.folder.parent}"
        )
    job = said.stdout.strip().partition(";")[0]
    for index, run in enumerate(submission.runs):
        (run / "slurm" / "job").write_text(job if len(submission.runs) == 1 else f"{job}_{index}")
    return job


def recipes_and_overrides(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Tells recipes from `key.path=value` on the command line. ValueError: no recipe among them."""
    overrides = [text for text in arguments if re.match(r"[a-z_.]+=", text) and not Path(text).is_file()]
    recipes = [Path(text) for text in arguments if text not in overrides]
    if not recipes:
        raise ValueError(f"no recipe given, only {', '.join(overrides)}; name one, such as recipes/demo.yaml")
    return recipes, overrides


def _folders(recipes: list[Recipe], folder: Path | None) -> list[Path]:
    """The runs' folders, absolute: the job may see another working directory."""
    now = f"{datetime.now():%Y%m%d-%H%M%S}"
    if len(recipes) == 1:
        return [Path(folder or recipes[0].run or f"runs/{recipes[0].name}/{now}").absolute()]
    names = [recipe.name for recipe in recipes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"recipe {twice[0]} is given twice, and its runs would share a folder; submit them one by one")
    if any(recipe.run is not None for recipe in recipes):
        raise ValueError(
            f"run={recipes[0].run} with {len(recipes)} recipes: they would share a folder; give --run FOLDER, where "
            "each gets one of its own"
        )
    return [Path(folder or f"runs/array/{now}").absolute() / name for name in names]


def _check(recipe: Recipe, run: Path, resources: Resources) -> None:
    batch = recipe.batch.subjects * recipe.batch.sequences
    if batch % resources.world_size:
        raise ValueError(
            f"{recipe.name}: its batch of {recipe.batch.subjects} x {recipe.batch.sequences} = {batch} sequences "
            f"cannot be shared evenly by {resources.nodes} nodes x {resources.processes} = {resources.world_size} "
            "processes; change --nodes, the processes of a node, batch.subjects or batch.sequences"
        )
    if "\n" in str(run):
        raise ValueError(f"the run's folder {str(run)!r} has a line break in its name; give another --run")
    if run.is_dir() and any(run.iterdir()) and not (run / "recipe.yaml").is_file():
        raise FileExistsError(f"{run} exists and is not a run (it has no recipe.yaml); give another --run")
    if (run / "checkpoints" / f"step-{recipe.train.steps:08d}" / MARKER).exists():
        raise FileExistsError(
            f"{run} is complete, {recipe.train.steps} steps; for more give train.steps=N, or another --run"
        )
    job = run / "slurm" / "job"
    if job.is_file() and (state := _state(job.read_text())) is not None:
        raise FileExistsError(
            f"{run} is used by job {job.read_text()}, which is {state}; wait for it, end it with "
            f"`scancel {job.read_text()}`, or give another --run"
        )


def _state(job: str) -> str | None:
    """Of a job that may still write to its run; None once it has ended, or SLURM knows it no more."""
    said = _slurm("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")
    if said.returncode and not re.search("invalid job", said.stderr, re.IGNORECASE):
        raise ValueError(f"squeue does not say whether job {job} still runs: {said.stderr.strip()}; try again")
    return next((state for state in said.stdout.split() if state not in ENDED), None)


def _slurm(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which(program) is None:
        raise FileNotFoundError(
            f"no {program} on this machine; submit from a login node of the cluster, or write the job by --dry-run"
        )
    return subprocess.run([program, *arguments], capture_output=True, text=True)


def _write(shared: Path, texts: dict[str, str], recipes: list[Recipe], folders: list[Path]) -> None:
    try:
        for recipe, run in zip(recipes, folders, strict=True):
            resolved = dump(recipe.model_copy(update={"run": str(run)}))
            (run / "slurm").mkdir(parents=True, exist_ok=True)
            (run / "slurm" / "recipe.yaml").write_text(resolved)
            if not (run / "recipe.yaml").exists():  # makes the folder a run; training writes it anew
                (run / "recipe.yaml").write_text(resolved)
        shared.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (shared / name).write_text(text)
    except OSError as error:
        raise OSError(f"{error.filename}: cannot be written ({error.strerror}); give another --run") from None


def _notes(recipes: list[Recipe]) -> list[str]:
    return [
        f"{recipe.name}: no {recipe.data}/shards.json seen from here; the job fails unless its nodes see it"
        for recipe in recipes
        if "://" not in recipe.data and not (Path(recipe.data) / "shards.json").is_file()
    ]
