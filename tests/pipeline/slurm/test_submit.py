"""What `hstl submit` writes, refuses, and hands to SLURM (stand-ins for its programs)."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.recipe import load
from pipeline.slurm import Resources, Site, prepare, recipes_and_overrides

ROOT = Path(__file__).parents[3]
DEMO = Path("recipes/demo.yaml")
ZERO2 = Path("accelerate_configs/zero2.yaml")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder first on the path: `sbatch` gives number 17, `squeue` says what `state` holds."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "state").write_text("")
    for program, body in {
        "sbatch": f'printf "%s\\n" "$@" >"{folder}/called"; [ -e "{folder}/refuse" ] && {{ cat "{folder}/refuse" >&2; '
        "exit 1; }; echo '17;cluster'",
        "squeue": f'cat "{folder}/state"; [ -s "{folder}/state" ] || '
        '{ echo "Invalid job id specified" >&2; exit 1; }',
    }.items():
        (folder / program).write_text(f"#!/bin/bash\n{body}\n")
        (folder / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def submit(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["submit", *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, result.output


@pytest.mark.usefixtures("no_slurm")
def test_a_dry_run_writes_all_and_says_the_command(tmp_path: Path) -> None:
    run = tmp_path / "my runs" / "first"
    code, said = submit(DEMO, "train.steps=7", "--nodes", 2, "--gpus-per-node", 4, "--dry-run", "--run", run)
    assert code == 0, said
    assert f"sbatch '{run}/slurm/job.sbatch'" in said
    assert "no demo/shards/shards.json seen from here" in said or (ROOT / "demo/shards/shards.json").exists()
    frozen = load(run / "slurm/recipe.yaml")
    assert (frozen.train.steps, frozen.run, frozen.name) == (7, str(run), "demo")
    assert (run / "recipe.yaml").read_text() == (run / "slurm/recipe.yaml").read_text()
    launch = yaml.safe_load((run / "slurm/launch.yaml").read_text())
    assert (launch["num_machines"], launch["num_processes"]) == (2, 8)
    assert launch["deepspeed_config"]["deepspeed_config_file"] == str(run / "slurm/deepspeed.json")
    assert (run / "slurm/deepspeed.json").read_text() == (ROOT / "accelerate_configs/zero2.json").read_text()
    for script in ("job.sbatch", "node.sh"):
        assert subprocess.run(["/bin/bash", "-n", run / "slurm" / script], capture_output=True).stderr == b""
    assert not (run / "slurm/job").exists()


def test_the_documented_commands_and_site_file_work(tmp_path: Path) -> None:
    page = (ROOT / "docs/cluster.md").read_text()
    (site,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mycluster.yaml").write_text(site)
    commands = re.findall(r"^hstl submit (.*)$", page.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) == 2
    for number, command in enumerate(commands):
        arguments = shlex.split(command.replace("mycluster.yaml", str(tmp_path / "mycluster.yaml")))
        arguments[arguments.index("--run") + 1] = str(tmp_path / str(number))
        code, said = submit(*arguments)
        assert code == 0 and "written, not submitted" in said, said


def test_submitting_hands_the_script_over_and_keeps_the_number(slurm: Path, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    code, said = submit(DEMO, "--run", run)
    assert code == 0 and "job 17" in said, said
    assert (slurm / "called").read_text() == f"--parsable\n{run}/slurm/job.sbatch\n"
    assert (run / "slurm/job").read_text() == "17"


def test_several_recipes_get_a_folder_each(slurm: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text((ROOT / DEMO).read_text())
    code, said = submit(DEMO, other, "train.steps=7", "--run", tmp_path / "both")
    assert code == 0 and "job 17" in said, said
    assert "--array=0-1" in (tmp_path / "both/slurm/job.sbatch").read_text()
    for index, name in enumerate(("demo", "other")):
        assert load(tmp_path / "both" / name / "slurm/recipe.yaml").run == str(tmp_path / "both" / name)
        assert (tmp_path / "both" / name / "slurm/job").read_text() == f"17_{index}"


def test_a_run_that_a_job_uses_is_refused_until_the_job_has_ended(slurm: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert submit(DEMO, "--run", run)[0] == 0
    before = (run / "slurm/recipe.yaml").read_text()
    (slurm / "state").write_text("PENDING\n")
    code, said = submit(DEMO, "train.steps=9", "--run", run)
    assert code == 2 and "used by job 17, which is PENDING" in said and "scancel 17" in said
    assert (run / "slurm/recipe.yaml").read_text() == before
    for ended in ("COMPLETED\n", "FAILED\n", ""):  # SLURM forgets jobs after a while
        (slurm / "state").write_text(ended)
        assert submit(DEMO, "train.steps=9", "--run", run)[0] == 0
    assert load(run / "slurm/recipe.yaml").train.steps == 9


def test_a_complete_run_is_refused(slurm: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    submit(DEMO, "train.steps=7", "--run", run)
    (run / "checkpoints/step-00000007").mkdir(parents=True)
    (run / "checkpoints/step-00000007/COMPLETE").touch()
    code, said = submit(DEMO, "train.steps=7", "--run", run)
    assert code == 2 and "is complete, 7 steps; for more give train.steps=N" in said
    assert submit(DEMO, "train.steps=8", "--run", run)[0] == 0


def test_sbatchs_refusal_is_told(slurm: Path, tmp_path: Path) -> None:
    (slurm / "refuse").write_text("sbatch: error: invalid partition specified: gpu\n")
    code, said = submit(DEMO, "--partition", "gpu", "--run", tmp_path / "run")
    assert code == 2 and "sbatch refused the job: sbatch: error: invalid partition specified: gpu" in said
    assert not (tmp_path / "run/slurm/job").exists()


@pytest.mark.usefixtures("no_slurm")
def test_without_slurm_it_says_so(tmp_path: Path) -> None:
    code, said = submit(DEMO, "--run", tmp_path / "run")
    assert code == 2 and "no sbatch on this machine" in said and "--dry-run" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.steps=7"], "no recipe given, only train.steps=7"),
        (["recipes/none.yaml"], "no recipe recipes/none.yaml"),
        ([DEMO, "train.stepz=7"], "train.stepz: unknown key"),
        ([DEMO, "--time", "2h"], "--time '2h' is not a time"),
        ([DEMO, "--launch", "accelerate_configs/none.yaml"], "no file accelerate_configs/none.yaml; launch files"),
        ([DEMO, "--launch", "accelerate_configs/cpu.yaml"], "cpu.yaml has distributed_type 'NO'"),
        ([DEMO, "--launch", "accelerate_configs/ddp.yaml"], "ddp.yaml starts two processes or more"),
        ([DEMO, "--site", "none.yaml"], "no site file none.yaml"),
        ([DEMO, "--nodes", 3], "8 x 4 = 32 sequences cannot be shared evenly by 3 nodes x 1 = 3"),
        ([DEMO, DEMO], "recipe demo is given twice"),
        ([DEMO, "recipes/casia-b.yaml", "run=runs/x"], "run=runs/x with 2 recipes"),
    ],
)
def test_mistakes_name_place_and_remedy_and_write_nothing(tmp_path: Path, arguments: list, message: str) -> None:
    given = [*arguments] if any("run=" in str(a) for a in arguments) else [*arguments, "--run", tmp_path / "run"]
    code, said = submit(*given)
    assert code == 2 and message in said, said
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="is not a run"):
        prepare([DEMO], [], Resources(1, 1), Site(), ZERO2, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_made_is_named() -> None:
    code, said = submit(DEMO, "--dry-run", "--run", "/proc/run")
    assert code == 2 and "/proc/run" in said and "cannot be written" in said and "another --run" in said


def test_when_slurm_cannot_tell_whether_a_run_is_used_it_is_not_touched(slurm: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert submit(DEMO, "--run", run)[0] == 0
    (slurm / "squeue").write_text("#!/bin/bash\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    code, said = submit(DEMO, "train.steps=9", "--run", run)
    assert code == 2 and "Unable to contact slurm controller" in said
    assert load(run / "slurm/recipe.yaml").train.steps != 9


def test_deepspeed_is_not_told_to_use_cpus(tmp_path: Path) -> None:
    site = Site(environment={"ACCELERATE_USE_CPU": "true"})
    with pytest.raises(ValueError, match="sets ACCELERATE_USE_CPU, which makes Accelerate leave DeepSpeed out"):
        prepare([DEMO], [], Resources(1, 0), site, ZERO2, tmp_path / "run")


@pytest.mark.parametrize(("gpus", "launch", "told"), [(0, "ddp", True), (2, "ddp", False), (0, "zero2", False)])
def test_only_plain_data_parallelism_is_told_to_use_cpus(tmp_path: Path, gpus: int, launch: str, told: bool) -> None:
    resources = Resources(2, gpus)
    written = prepare([DEMO], [], resources, Site(), Path(f"accelerate_configs/{launch}.yaml"), tmp_path / "run")
    assert ("ACCELERATE_USE_CPU" in (written.folder / "node.sh").read_text()) is told


def test_recipes_are_told_from_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=3.yaml").touch()
    recipes, overrides = recipes_and_overrides(["a.yaml", "optimizer.lr=3", "lr=3.yaml", "Q=2.yaml", "seed=1"])
    assert recipes == [Path("a.yaml"), Path("lr=3.yaml"), Path("Q=2.yaml")]
    assert overrides == ["optimizer.lr=3", "seed=1"]
