import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import run_hold
from pipeline.run_hold import LOCK, hold
from pipeline.run_state import FILE, Process, RunState, born, in_words, read
from tests.pipeline.run_records import BEAT, elsewhere, put, record, state_of

ROOT = Path(__file__).parents[2]
ALONE: Any = SimpleNamespace(num_processes=1, is_main_process=True)
# As if train.py raised it: a mistake of the user's.
REFUSAL = compile("raise ValueError('train.steps 5: another recipe')", str(ROOT / "pipeline" / "train.py"), "exec")


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def test_a_run_from_start_to_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with hold(ALONE, tmp_path, 2, BEAT) as state:
        first = state_of(tmp_path)
        assert (first.state, first.step, first.steps, first.reason) == ("running", 0, 2, None)
        assert (first.pid, first.born, first.slurm_job, first.slurm_restarts) == (
            os.getpid(),
            born(os.getpid()),
            "41",
            2,
        )
        state.step = 1
        wait_for(lambda: state_of(tmp_path).step == 1 and state_of(tmp_path).beat >= 2)
        state.step = 2
    last = state_of(tmp_path)
    assert (last.state, last.step, last.reason, last.started) == ("finished", 2, None, first.started)
    assert last.updated >= first.updated and last.beat > 2
    assert names(tmp_path) == [LOCK, FILE]
    assert not [thread for thread in threading.enumerate() if thread.name == "beats of the run"]


def test_a_run_that_is_left_early_is_interrupted(tmp_path: Path) -> None:
    with hold(ALONE, tmp_path, 9, BEAT) as state:
        state.step, state.reason = 4, "SIGTERM"
    assert (state_of(tmp_path).state, state_of(tmp_path).step, state_of(tmp_path).reason) == (
        "interrupted",
        4,
        "SIGTERM",
    )
    with hold(ALONE, tmp_path, 9, BEAT):
        assert (state_of(tmp_path).state, state_of(tmp_path).step) == ("running", 4)  # what is known before the resume


def test_errors_are_recorded_and_go_on(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError), hold(ALONE, tmp_path, 9, BEAT) as state:
        state.step = 4
        raise FloatingPointError("not finite\nat step 4")
    found = state_of(tmp_path)
    assert (found.state, found.step, found.reason) == ("failed", 4, "FloatingPointError: not finite")
    with pytest.raises(KeyboardInterrupt), hold(ALONE, tmp_path, 9, BEAT):
        raise KeyboardInterrupt
    assert (state_of(tmp_path).state, state_of(tmp_path).reason) == ("interrupted", "KeyboardInterrupt")


def test_a_refused_start_leaves_the_record_of_a_finished_run(tmp_path: Path) -> None:
    before = put(tmp_path, record(state="finished", step=9))
    with pytest.raises(ValueError, match="another recipe"), hold(ALONE, tmp_path, 9, BEAT):
        exec(REFUSAL)
    assert read(tmp_path) == before
    with pytest.raises(ValueError, match="another recipe"), hold(ALONE, tmp_path, 9, BEAT) as state:
        state.step = 9  # training had begun: its failure is news
        exec(REFUSAL)
    assert state_of(tmp_path).state == "failed"


def test_a_second_launch_is_refused_at_once_where_the_first_is_seen(tmp_path: Path) -> None:
    with hold(ALONE, tmp_path, 9, 60.0) as state:
        state.step = 1
        begin = time.monotonic()
        with (
            pytest.raises(ValueError, match=rf"{FILE}: process {os.getpid()} on .*another `run`"),
            hold(ALONE, tmp_path, 9, BEAT),
        ):
            pytest.fail("two hold one run")
        assert time.monotonic() - begin < 5
        state.step = 9
    assert state_of(tmp_path).state == "finished"


def test_a_killed_holder_is_replaced_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom types import SimpleNamespace\n"
        "from pipeline import run_hold\n"
        "with run_hold.hold(SimpleNamespace(num_processes=1), Path(sys.argv[1]), 9, 60.0) as state:\n"
        "    print(flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline()
    assert in_words(state_of(tmp_path), Process.current(), datetime.now(UTC)) == "running"
    with pytest.raises(ValueError, match=f"process {child.pid} on"), hold(ALONE, tmp_path, 9, BEAT):
        pass
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert in_words(state_of(tmp_path), Process.current(), datetime.now(UTC)) == "dead"
    begin = time.monotonic()
    with hold(ALONE, tmp_path, 9, BEAT):
        assert state_of(tmp_path).pid == os.getpid()
    assert time.monotonic() - begin < 5


def test_a_silent_holder_elsewhere_is_watched_then_replaced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, elsewhere(updated=datetime(2099, 1, 1, tzinfo=UTC)))  # its clock decides nothing
    with hold(ALONE, tmp_path, 9, BEAT):
        assert state_of(tmp_path).host == Process.current().host
    said = capfd.readouterr().err
    assert "process 100 on node9" in said and "watching for" in said and "taking the run over" in said


def test_a_beating_holder_elsewhere_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    theirs = elsewhere(updated=datetime(1999, 1, 1, tzinfo=UTC), beat_seconds=1.0)
    put(tmp_path, theirs)
    beat = threading.Timer(0.1, put, (tmp_path, theirs.model_copy(update={"beat": 1})))
    beat.start()
    with (
        pytest.raises(ValueError, match=r"process 100 on node9, at step 3 of 9, trains in this run.*another `run`"),
        hold(ALONE, tmp_path, 9, BEAT),
    ):
        pass
    beat.join()
    assert (state_of(tmp_path).holder, state_of(tmp_path).beat) == ("theirs", 1)
    assert "watching" in capfd.readouterr().err
    assert names(tmp_path) == [FILE]


def test_a_holder_that_ends_while_it_is_watched_is_followed_at_once(tmp_path: Path) -> None:
    theirs = elsewhere(beat_seconds=20.0)
    put(tmp_path, theirs)
    threading.Timer(0.1, put, (tmp_path, theirs.model_copy(update={"state": "finished"}))).start()
    begin = time.monotonic()
    with hold(ALONE, tmp_path, 9, BEAT):
        pass
    assert time.monotonic() - begin < 10


def test_a_file_that_is_touched_is_a_sign_of_life(tmp_path: Path) -> None:
    put(tmp_path, elsewhere(beat_seconds=1.0))
    threading.Timer(0.1, os.utime, (tmp_path / FILE, (1, 1))).start()
    with pytest.raises(ValueError, match="trains in this run"), hold(ALONE, tmp_path, 9, BEAT):
        pass


def test_a_damaged_record_is_named_to_readers_and_replaced_by_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / FILE).write_text('{"state": "runn')
    with pytest.raises(ValueError, match=rf"{FILE} is damaged"):
        read(tmp_path)
    monkeypatch.setattr(run_hold, "BEAT_SECONDS", BEAT)
    with hold(ALONE, tmp_path, 9, BEAT):
        assert state_of(tmp_path).state == "running"


def dead(run: Path) -> RunState:
    return put(run, record(machine=Process.current().machine, pid=2**22 + 1))


def outcome_of(run: Path, end: threading.Event) -> str:
    try:
        with hold(ALONE, run, 9, 60.0):
            end.wait(30)
            return "held"
    except ValueError as error:
        return str(error)


def test_who_found_a_dead_holder_looks_again_before_taking_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is slow between looking and taking; another takes the run meanwhile."""
    dead(tmp_path)
    looked, go_on, end = threading.Event(), threading.Event(), threading.Event()
    usual = run_hold.look

    def slow(path: Path) -> Any:
        found = usual(path)
        if threading.current_thread().name.startswith("slow") and not looked.is_set():
            looked.set()
            assert go_on.wait(30)
        return found

    monkeypatch.setattr(run_hold, "look", slow)
    with ThreadPoolExecutor(1, "slow") as slow_one, ThreadPoolExecutor(1) as quick_one:
        first = slow_one.submit(outcome_of, tmp_path, end)
        assert looked.wait(30)
        second = quick_one.submit(outcome_of, tmp_path, end)
        wait_for(lambda: state_of(tmp_path).pid == os.getpid())
        go_on.set()
        assert "trains in this run" in first.result(30)
        end.set()
        assert second.result(30) == "held"


def test_none_takes_a_run_that_another_is_taking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has looked again, and not written yet."""
    dead(tmp_path)
    writing, go_on, end = threading.Event(), threading.Event(), threading.Event()
    usual = run_hold._write

    def slow(*arguments: Any) -> None:
        if threading.current_thread().name.startswith("slow") and not writing.is_set():
            writing.set()
            assert go_on.wait(30)
        usual(*arguments)

    monkeypatch.setattr(run_hold, "_write", slow)
    with ThreadPoolExecutor(1, "slow") as slow_one, ThreadPoolExecutor(1) as quick_one:
        first = slow_one.submit(outcome_of, tmp_path, end)
        assert writing.wait(30)
        second = quick_one.submit(outcome_of, tmp_path, end)
        time.sleep(0.3)
        assert not second.done() and state_of(tmp_path).holder == "theirs"
        go_on.set()
        assert "trains in this run" in second.result(30)
        end.set()
        assert first.result(30) == "held"


def test_a_lock_that_is_kept_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_hold, "LOCK_SECONDS", 0.2)
    with (tmp_path / LOCK).open("a") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=rf"{LOCK}: another process has been taking this run"):
            hold(ALONE, tmp_path, 9, BEAT).__enter__()
    with hold(ALONE, tmp_path, 9, BEAT):
        assert state_of(tmp_path).pid == os.getpid()


def test_who_locks_the_folder_to_launch_only_once_is_no_hindrance(tmp_path: Path) -> None:
    """`flock RUN accelerate launch ... run=RUN` keeps its lock for as long as the training lives."""
    command = "import pathlib, tests.pipeline.test_run_hold as t; t.hold(t.ALONE, pathlib.Path('.'), 9).__enter__()"
    result = subprocess.run(
        ["flock", ".", sys.executable, "-c", command],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0 and state_of(tmp_path).pid != os.getpid()


def test_a_disk_without_locks_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_hold.fcntl, "flock", none)
    with hold(ALONE, tmp_path, 9, BEAT):
        assert state_of(tmp_path).pid == os.getpid()


def test_a_refused_start_leaves_the_record_of_who_took_the_run_meanwhile(tmp_path: Path) -> None:
    put(tmp_path, record(state="finished"))
    with pytest.raises(ValueError, match="another recipe"), hold(ALONE, tmp_path, 9, 60.0):
        theirs = put(tmp_path, elsewhere())
        exec(REFUSAL)
    assert read(tmp_path) == theirs


def test_of_many_who_find_a_dead_holder_one_takes_the_run(tmp_path: Path) -> None:
    for number in range(5):
        contend_for(tmp_path / str(number))


def contend_for(run: Path) -> None:
    dead(run)
    start, end = threading.Barrier(8), threading.Event()

    def contend() -> str:
        start.wait()
        return outcome_of(run, end)

    with ThreadPoolExecutor(8) as pool:
        contenders = [pool.submit(contend) for _ in range(8)]
        wait_for(lambda: sum(one.done() for one in contenders) == 7)
        end.set()
    outcomes = [one.result() for one in contenders]
    assert outcomes.count("held") == 1
    assert all("trains in this run" in outcome for outcome in outcomes if outcome != "held")
    assert names(run) == [LOCK, FILE]


def test_a_holder_that_was_given_up_stops_and_leaves_the_others_record(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"process 100 on node9.* took this run over"),
        hold(ALONE, tmp_path, 9, BEAT) as state,
    ):
        theirs = put(tmp_path, elsewhere())
        wait_for(lambda: state._taken_by is not None)
        state.step = 1
    assert read(tmp_path) == theirs


def test_a_full_disk_stops_neither_training_nor_the_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_text, full = Path.write_text, threading.Event()

    def write(path: Path, text: str) -> int:
        if full.is_set():
            with path.open("w"):
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_text(path, text)

    monkeypatch.setattr(Path, "write_text", write)
    with hold(ALONE, tmp_path, 9, BEAT) as state:
        full.set()
        sign = (tmp_path / FILE).stat().st_mtime_ns
        wait_for(lambda: (tmp_path / FILE).stat().st_mtime_ns > sign)
        full.clear()
        state.step = 5
        wait_for(lambda: state_of(tmp_path).step == 5)  # beats go on once there is room
        full.set()
    assert "No space left" in capfd.readouterr().err
    assert state_of(tmp_path).state == "running"
    assert names(tmp_path) == [LOCK, FILE]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=rf"nowhere/{FILE} cannot be written .*another `run`"),
        hold(ALONE, tmp_path / "nowhere", 9, BEAT),
    ):
        pass


def test_other_ranks_count_steps_and_write_nothing(tmp_path: Path) -> None:
    held = run_hold.Hold(tmp_path / FILE, 9, BEAT)  # on these, `take` is not called
    held.step = 3
    held.leave(None)
    assert held.step == 3 and list(tmp_path.iterdir()) == []


def test_the_record_is_plain_json_for_scripts(tmp_path: Path) -> None:
    with hold(ALONE, tmp_path, 9, BEAT):
        found = json.loads((tmp_path / FILE).read_text())
    assert {
        "state",
        "step",
        "steps",
        "reason",
        "host",
        "pid",
        "slurm_job",
        "started",
        "updated",
        "beat",
    } <= found.keys()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
