import os
import subprocess
import sys
import time
from datetime import timedelta

import pytest

from pipeline.run_state import born, duration, in_words, judge
from tests.pipeline.run_records import ME, elsewhere, record


@pytest.mark.parametrize(
    ("changes", "births", "verdict"),
    [
        ({"state": "failed"}, {100: 5}, "ended"),
        ({}, {100: 5}, "alive"),
        ({}, {}, "dead"),
        ({}, {100: 6}, "dead"),  # the pid is another process's now
        ({"machine": "kernel-b pid:[1]"}, {}, "unsure"),  # rebooted, or another machine of the same name
        ({"machine": "kernel-a pid:[2]"}, {}, "unsure"),  # a container's pids mean other processes
        ({"machine": None}, {}, "unsure"),
        ({"machine": "z", "slurm_job": "7", "slurm_restarts": 0}, {}, "dead"),  # our own requeue
        ({"machine": "z", "slurm_job": "7", "slurm_restarts": 1}, {}, "unsure"),  # another step of the same start
        ({"machine": "z", "slurm_job": "8", "slurm_restarts": 0}, {}, "unsure"),
        ({"slurm_job": "7", "slurm_restarts": 0}, {100: 5}, "alive"),  # what is seen goes before what is inferred
    ],
)
def test_what_a_record_proves(changes: dict, births: dict[int, int], verdict: str) -> None:
    me = ME.model_copy(update={"slurm_job": "7", "slurm_restarts": 1})
    assert judge(record(**changes), me, lambda pid: births.get(pid)) == verdict


def test_without_slurm_nobody_is_of_the_same_job() -> None:
    assert judge(elsewhere(), ME, lambda pid: None) == "unsure"


def test_a_process_that_cannot_be_seen_is_neither_alive_nor_dead() -> None:
    def hidden(pid: int) -> int | None:
        raise PermissionError

    assert judge(record(), ME, hidden) == "unsure"


def test_the_birth_of_a_process_is_its_own_and_the_dead_have_none() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    first = born(child.pid)
    assert first is not None and first >= (born(os.getpid()) or 0) and born(child.pid) == first
    child.kill()
    deadline = time.monotonic() + 10
    while born(child.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert born(child.pid) is None  # not waited for: a zombie
    child.communicate()
    assert born(child.pid) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (59.9, "59 s"), (60, "1 min"), (7300, "2 h"), (200_000, "2 d")]
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_states_in_words() -> None:
    now = record().updated
    assert in_words(elsewhere(), ME, now) == "running"
    assert in_words(elsewhere(), ME, now + timedelta(minutes=3)) == "running, last sign of life 3 min ago"
    assert in_words(elsewhere(), ME, now - timedelta(hours=1)) == "running"  # the holder's clock is ahead
    assert in_words(record(pid=2**22 + 1), ME, now) == "dead"  # no such pid can be
    assert in_words(record(state="failed"), ME, now) == "failed"
