"""A real SLURM of three nodes on this machine, for tests: each node has its own network, host name and processes.

    with running(folder) as cluster:
        cluster.run("sbatch", "--parsable", job)

Needs root and Debian's packages (see `missing`). Everything has names, sockets and keys of its own, so that two test
runs, or a SLURM of the machine's, do not meet.
"""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = "slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge iproute2"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare")
NODES = ("node1", "node2", "node3")
ADDRESSES = {"ctl": "10.88.0.254", "node1": "10.88.0.1", "node2": "10.88.0.2", "node3": "10.88.0.3"}

SETTINGS = """\
ClusterName=test
SlurmctldHost=ctl({controller})
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=1
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=5
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=600
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""
# cred_expire: a requeued job waits that long; two minutes otherwise, also where it is less than 5.


def missing() -> str | None:
    """Why no cluster can be had here; None where it can."""
    if os.geteuid() != 0:
        return "no SLURM here: its nodes need root for namespaces of their own"
    if absent := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"no SLURM here ({', '.join(absent)}): apt-get install --no-install-recommends {PACKAGES}"
    tried = subprocess.run(["unshare", "--net", "--pid", "--uts", "--mount", "--fork", "true"], capture_output=True)
    return None if tried.returncode == 0 else f"no SLURM here: no namespaces ({tried.stderr.decode().strip()})"


@dataclass
class Cluster:
    """Three nodes of two cores; partition `low` is preempted by `high`, with a minute's grace."""

    folder: Path
    tag: str = field(default_factory=lambda: secrets.token_hex(3))
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """For commands that call SLURM's by their names: those of this cluster stand first on the path."""
        return {**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}

    def run(self, program: str, *arguments: object) -> str:
        """Output of one of SLURM's client commands."""
        command = [str(self.folder / "bin" / program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise RuntimeError(f"{command} ended in {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What scontrol shows of a job: JobState, ExitCode, Restarts, NodeList, ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.partition("=")[::2] for word in words)

    def wait(self, job: str, *states: str, seconds: float = 150) -> dict[str, str]:
        """Until the job is in one of the states (any final one unless given)."""
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        deadline = time.monotonic() + seconds
        while (found := self.job(job))["JobState"] not in wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is {found['JobState']}, not {wanted}, after {seconds:.0f} s: {found}")
            time.sleep(0.3)
        return found

    def start(self) -> None:
        """Daemons up, nodes idle."""
        for name in ("bin", "state", "spool", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in ADDRESSES.items())]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        nodes = "\n".join(f"NodeName={name} NodeAddr={ADDRESSES[name]} CPUs=2 State=UNKNOWN" for name in NODES)
        settings = SETTINGS.format(folder=self.folder, controller=ADDRESSES["ctl"], nodes=nodes)
        (self.folder / "slurm.conf").write_text(settings)
        self._network()
        self._munge()
        self._daemon("ctl", "slurmctld", "-D")
        for program in ("sbatch", "scancel", "scontrol", "squeue", "sinfo"):
            script = self.folder / "bin" / program
            inside = " ".join(map(str, self._inside("ctl")))
            script.write_text(f'#!/bin/bash\nexport SLURM_CONF={self.folder}/slurm.conf\n'
                              f'exec {inside} {shutil.which(program)} "$@"\n')  # fmt: skip
            script.chmod(0o755)
        for node in NODES:
            self.power_on(node)
        deadline = time.monotonic() + 30
        while self.idle() < len(NODES):
            if time.monotonic() > deadline:
                raise RuntimeError((self.folder / "slurmctld.log").read_text()[-3000:])
            time.sleep(0.3)

    def idle(self) -> int:
        """Nodes that wait for work."""
        command = [str(self.folder / "bin" / "sinfo"), "--noheader", "--states=idle", "--partition=low", "--format=%D"]
        said = subprocess.run(command, capture_output=True, text=True).stdout.split()
        return sum(map(int, said))

    def power_off(self, node: str) -> None:
        """Every process of the node's dies at once."""
        self.processes[node].kill()
        self.processes[node].wait()

    def power_on(self, node: str) -> None:
        """The node starts again, and takes work once SLURM has seen it."""
        self._daemon(node, "slurmd", "-D", "-N", node)

    def stop(self) -> None:
        """Every process and namespace of the cluster's is gone."""
        for process in reversed(self.processes.values()):
            process.kill()  # takes the processes of its namespace along
            process.wait()
        for name in (*ADDRESSES, "switch"):
            subprocess.run(["ip", "netns", "delete", self._network_of(name)], capture_output=True)

    def _network_of(self, name: str) -> str:
        return f"hstl-{self.tag}-{name}"

    def _network(self) -> None:
        def ip(*words: str) -> None:
            subprocess.run(["ip", *words], check=True, capture_output=True)

        switch = self._network_of("switch")
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for name, address in ADDRESSES.items():
            own = self._network_of(name)
            ip("netns", "add", own)
            ip("-n", own, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", switch)
            ip("-n", own, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", own, "link", "set", "lo", "up")
            ip("-n", own, "link", "set", "eth0", "up")
            ip("-n", switch, "link", "set", name, "master", "bridge", "up")

    def _munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        options = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid",
                   "log-file": "munge.log", "seed-file": "munge.seed"}  # fmt: skip
        command = ["munged", "--foreground", "--force", *(f"--{k}={self.folder / v}" for k, v in options.items())]
        self.processes["munge"] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not (self.folder / "munge.socket").exists():
            if time.monotonic() > deadline or self.processes["munge"].poll() is not None:
                raise RuntimeError((self.folder / "munge.log").read_text())
            time.sleep(0.05)

    def _inside(self, name: str, *options: str) -> list[str | Path]:
        """Starts a command on the controller or a node: `ip netns exec` would hide what slurmd needs of /sys."""
        script = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'
        entered: list[str | Path] = ["nsenter", f"--net=/run/netns/{self._network_of(name)}", "unshare"]
        return [*entered, "--uts", "--mount", *options, "bash", "-c", f"'{script}'", name, self.folder / "hosts"]

    def _daemon(self, name: str, *command: str) -> None:
        inside = " ".join(map(str, self._inside(name, "--pid", "--fork", "--mount-proc", "--kill-child")))
        with (self.folder / f"{name}.out").open("wb") as output:
            self.processes[name] = subprocess.Popen(
                ["bash", "-c", f"exec {inside} {' '.join(command)}"],
                env={**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster over `folder` (whose path holds no space), stopped in the end."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
