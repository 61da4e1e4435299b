"""The job's scripts: their text, and what they do with stand-ins for SLURM's programs and the launcher."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.slurm.resources import Resources
from pipeline.slurm.script import PATIENCE, Run, batch_script, fill, node_script
from pipeline.slurm.site import Site

NAMES = ["plain", 'it\'s 100% "quoted"', "$(touch pwned) `touch pwned`;touch pwned"]


@pytest.fixture(params=NAMES)
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / request.param
    folder.mkdir()
    return folder


def options(script: str) -> list[str]:
    return [
        shlex.split(line.removeprefix("#SBATCH "))[0] for line in script.splitlines() if line.startswith("#SBATCH ")
    ]


def test_the_options_say_what_was_asked_for(odd: Path) -> None:
    resources = Resources(4, 8, partition="gpu", time="12:00:00")
    site = Site(sbatch={"account": "gait", "mem": 0, "exclusive": True, "partition": "slow", "comment": "a 'b' $c"})
    script = batch_script("hstl-demo", [Run(odd, 300, 2)], odd / "slurm", odd, resources, site)
    assert set(options(script)) == {
        "--account=gait", "--mem=0", "--exclusive", "--partition=gpu", "--comment=a 'b' $c", "--job-name=hstl-demo",
        "--nodes=4", "--ntasks-per-node=1", "--cpus-per-task=24", "--gpus-per-node=8", "--time=12:00:00",
        f"--output={str(odd).replace('%', '%%')}/slurm/job-%j.log", "--open-mode=append", "--requeue",
        "--signal=USR2@120", f"--chdir={odd}",
    }  # fmt: skip


def test_gpus_are_asked_for_as_the_site_takes_them(tmp_path: Path) -> None:
    def asked(gpus: int, site: Site) -> list[str]:
        return [o for o in options(batch_script("x", [run], tmp_path, tmp_path, Resources(1, gpus), site)) if "g" in o]

    run = Run(tmp_path, 1, 0)
    assert "--gres=gpu:4" in asked(4, Site(gpus_by="gres"))
    assert "--gpus-per-node=4" in asked(4, Site())
    assert not [o for o in asked(0, Site()) if o.startswith(("--gpu", "--gres"))]


def test_several_runs_are_an_array(tmp_path: Path) -> None:
    runs = [Run(tmp_path / "a", 10, 0), Run(tmp_path / "b", 20, 3)]
    found = options(batch_script("x", runs, tmp_path / "slurm", tmp_path, Resources(1, 2), Site()))
    assert "--array=0-1" in found and f"--output={tmp_path}/slurm/job-%A_%a.log" in found
    assert "--cpus-per-task=8" in found  # enough for the recipe with most workers


@pytest.mark.parametrize("value", ["a b", "'", '"', "`id`", "$(id)", "\\", "$", "$1", "100%", "a$", "!x", "${", "*"])
def test_values_stand_for_themselves(value: str) -> None:
    said = subprocess.run(["bash", "-uc", f"printf %s {fill(value)}"], capture_output=True, text=True)
    assert (said.stdout, said.stderr) == (value, "")


def test_variables_in_values_are_filled_in() -> None:
    said = subprocess.run(
        ["bash", "-c", f"printf %s {fill('/local/$USER/${JOB}x')}"], capture_output=True, text=True,
        env={"USER": "me you", "JOB": "7", "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert said.stdout == "/local/me you/7x"


class Job:
    """job.sbatch in a folder of its own, with stand-ins for srun and scontrol that note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run, self.calls = folder, folder / "run", folder / "calls"
        (self.run / "slurm").mkdir(parents=True)
        (folder / "bin").mkdir()
        self.calls.touch()
        script = batch_script("x", [Run(self.run, 20, 0)], self.run / "slurm", folder, Resources(2, 0), Site())
        (folder / "job.sbatch").write_text(script)
        self.state, self.before = "RUNNING", ""
        self.stand_in("sleep", "")
        self.step("")

    def stand_in(self, program: str, body: str) -> None:
        path = self.folder / "bin" / program
        path.write_text(f'#!/bin/bash\necho {program} "$@" >>{shlex.quote(str(self.calls))}\n{body}\n')
        path.chmod(0o755)

    def step(self, body: str, nodes_answer: bool = True) -> None:
        """What srun does; `srun ... true` asks whether the nodes are there."""
        asked = f'[ "${{@: -1}}" != true ] || exit {0 if nodes_answer else 1}'
        self.stand_in(
            "srun", f"{asked}\necho port=$MASTER_PORT host=$MASTER_ADDR >>{shlex.quote(str(self.calls))}\n{body}"
        )

    def saves(self, step: int) -> str:
        folder = shlex.quote(str(self.run / f"checkpoints/step-{step:08d}"))
        return f"mkdir -p {folder}; touch {folder}/COMPLETE"

    def start(self, job: int = 7) -> subprocess.Popen[str]:
        self.stand_in(
            "scontrol",
            f"""{self.before}
            case "$1 $2" in
            "show job") echo "   JobState={self.state} Reason=None" ;;
            "show hostnames") printf 'n1\\nn2\\n' ;;
            esac""",
        )
        environment = {**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                       "SLURM_JOB_ID": str(job), "SLURM_JOB_NODELIST": "n[1-2]"}  # fmt: skip
        return subprocess.Popen(["bash", str(self.folder / "job.sbatch")], env=environment, cwd=self.folder,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip

    def go(self) -> tuple[int, str]:
        process = self.start()
        said = process.communicate(timeout=20)[0]
        return process.returncode, said

    @property
    def called(self) -> list[str]:
        return self.calls.read_text().splitlines()

    @property
    def requeued(self) -> bool:
        return "scontrol requeue 7" in self.called


@pytest.fixture
def job(odd: Path) -> Iterator[Job]:
    yield Job(odd)
    assert not list(odd.rglob("pwned")) and not list(Path.cwd().glob("pwned"))


def test_bash_takes_the_batch_script(job: Job) -> None:
    assert subprocess.run(["bash", "-n", job.folder / "job.sbatch"], capture_output=True).stderr == b""


def test_a_step_that_completes_the_run_ends_the_job_well(job: Job) -> None:
    job.step(job.saves(20))
    code, said = job.go()
    assert code == 0 and "complete: " in said and not job.requeued
    assert "port=10007 host=n1" in job.called
    called = next(call for call in job.called if call.startswith("srun"))
    assert "--kill-on-bad-exit=1" in called and called.endswith(f"bash {job.run}/slurm/node.sh {job.run}/slurm")


def test_a_complete_run_is_not_run_again(job: Job) -> None:
    subprocess.run(["bash", "-c", job.saves(20)], check=True)
    code, said = job.go()
    assert code == 0 and "nothing to do" in said and job.called == []


@pytest.mark.parametrize("saved", [True, False])
def test_a_failure_is_handed_on_and_not_requeued(job: Job, saved: bool) -> None:
    job.step((job.saves(10) if saved else "") + "\nexit 7")
    code, said = job.go()
    assert code == 7 and "FAILED with return code 7" in said and not job.requeued


def test_a_lost_node_is_no_failure(job: Job) -> None:
    job.step(job.saves(10) + "\nexit 7", nodes_answer=False)
    code, said = job.go()
    assert code == 0 and "a node does not answer" in said and job.requeued


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING"])
def test_a_job_that_slurm_is_ending_is_left_to_it(job: Job, state: str) -> None:
    job.step(job.saves(10))
    job.state = state
    code, said = job.go()
    assert code == 1 and f"left to SLURM, which has it {state}" in said and not job.requeued


def test_an_interrupted_step_requeues(job: Job) -> None:
    job.step(job.saves(10))
    code, said = job.go()
    assert code == 0 and job.requeued and "step-00000010" in said
    assert not (job.run / "slurm/no-progress").exists()


@pytest.mark.parametrize("what", ["show job", "requeue 7"])
def test_a_controller_that_does_not_answer_is_asked_again(job: Job, what: str) -> None:
    tried = shlex.quote(str(job.folder / "tried"))
    job.before = f"[ $1 != {what.split()[0]} ] || [ $2 = hostnames ] || [ -e {tried} ] || {{ touch {tried}; exit 1; }}"
    code, said = job.go()
    assert code == 0 and "scontrol failed; trying again" in said
    assert sum(call.startswith(f"scontrol {what}") for call in job.called) == 2 and job.requeued


def test_going_round_without_a_new_checkpoint_ends(job: Job) -> None:
    subprocess.run(["bash", "-c", job.saves(10)], check=True)
    codes = [job.go()[0] for _ in range(PATIENCE - 2)]
    job.step(job.saves(12))  # progress starts the count anew
    codes.append(job.go()[0])
    job.step("")
    codes += [job.go()[0] for _ in range(PATIENCE - 1)]
    assert codes == [0] * len(codes)
    code, said = job.go()
    assert code == 1 and f"{PATIENCE} times in a row without a new checkpoint" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_the_batch_script_does_not_end_it_before_its_step(job: Job, number: signal.Signals) -> None:
    job.step(f"trap 'got=USR2' USR2; /bin/sleep 1; {job.saves(10)}; exit 1")
    process = job.start()
    deadline = time.monotonic() + 10
    while not any(call.startswith("port") for call in job.called) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 0 and job.requeued, said


def test_ports_of_an_array_differ(tmp_path: Path) -> None:
    job = Job(tmp_path)
    for number in (19_999, 20_000, 20_001):
        job.start(number).communicate(timeout=20)
    ports = {int(call.split()[0].removeprefix("port=")) for call in job.called if call.startswith("port=")}
    assert ports == {29_999, 10_000, 10_001}


class Node:
    """node.sh with a stand-in for Python."""

    def __init__(self, folder: Path, launcher: str, use_cpu: bool = False, **site: object) -> None:
        self.folder = folder
        self.run = folder / "run" / "slurm"
        self.run.mkdir(parents=True)
        python = folder / "python of ours"
        python.write_text(f"#!/bin/bash\nprintf '%s\\n' \"$@\" >{shlex.quote(str(folder / 'words'))}\n{launcher}\n")
        python.chmod(0o755)
        values = Site.model_validate(site)
        self.script = folder / "node.sh"
        self.script.write_text(node_script(self.run, str(python), use_cpu, 1, Resources(2, 0), values))

    def start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "SLURM_NODEID": "1", "SLURM_JOB_ID": "7", "MASTER_ADDR": "n1",
                       "MASTER_PORT": "10007", "USER": "me"}  # fmt: skip
        return subprocess.Popen(["bash", str(self.script), str(self.run)], env=environment, cwd=self.folder,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip

    def go(self) -> tuple[int, str]:
        process = self.start()
        said = process.communicate(timeout=20)[0]
        return process.returncode, said

    def words(self) -> list[str]:
        return (self.folder / "words").read_text().splitlines()


def test_bash_takes_the_node_script(odd: Path) -> None:
    node = Node(odd, "", setup=("module load x",), environment={"A": "b"}, container="apptainer exec x.sif")
    assert subprocess.run(["bash", "-n", node.script], capture_output=True).stderr == b""


def test_the_launcher_is_told_its_place_on_the_node(odd: Path) -> None:
    node = Node(odd, "", join_seconds=33)
    assert node.go() == (0, "")
    words = node.words()
    values = dict(pairwise(words))
    assert (values["--machine_rank"], values["--main_process_ip"], values["--main_process_port"]) == (
        "1",
        "n1",
        "10007",
    )
    assert values["--rdzv_conf"] == "timeout=33" and values["--config_file"] == str(node.run / "launch.yaml")
    assert values["--log_dir"] == str(node.run / "ranks/7.0/node1")
    assert words[-3:] == ["-m", "pipeline.train", str(node.run / "recipe.yaml")]


def test_setup_environment_and_container_reach_the_launcher(tmp_path: Path) -> None:
    node = Node(
        tmp_path,
        "echo $CACHE $LOADED $1 $TORCH_ELASTIC_SHUTDOWN_TIMEOUT $PET_SIGNALS_TO_HANDLE ${ACCELERATE_USE_CPU-}",
        use_cpu=True, setup=("export LOADED=yes", 'echo "$UNSET_VARIABLE"'), environment={"CACHE": "/local/$USER"},
        container="env LOADED=inside",
    )  # fmt: skip
    assert node.go() == (0, "\n/local/me inside -m 120 SIGTERM,SIGINT,SIGUSR2 true\n")


def test_a_failing_setup_line_ends_the_node(tmp_path: Path) -> None:
    node = Node(tmp_path, "echo started", setup=("false", "echo after"))
    assert node.go() == (1, "")


def test_a_launchers_failure_is_handed_on(tmp_path: Path) -> None:
    assert Node(tmp_path, "exit 9").go()[0] == 9


@pytest.mark.parametrize("name", ["TERM", "USR2"])
def test_a_signal_is_passed_on_once_and_is_no_failure(tmp_path: Path, name: str) -> None:
    node = Node(tmp_path, f"trap 'echo got {name}' {name}; echo up; for i in $(seq 30); do sleep 0.05; done; exit 1")
    process = node.start()
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    for _ in range(2):
        process.send_signal(getattr(signal, f"SIG{name}"))
        time.sleep(0.3)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 0 and said.count(f"got {name}") == 1


def test_a_signal_during_setup_starts_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path, "echo started", setup=("echo up", "sleep 1"))
    process = node.start()
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert "started" not in process.communicate(timeout=20)[0] and process.returncode == 0
