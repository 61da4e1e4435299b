import subprocess
import sys
import time

from pipeline.stall import EXIT_CODE, StallGuard

PROGRAM = """
import sys, time
from pipeline.stall import StallGuard
with StallGuard(0.3, lambda line: print("heard:", line, flush=True)) as guard:
    for step in range(3):
        with guard.during(f"step {step}"):
            time.sleep(0.2)
    time.sleep(0.6)  # between stages nothing is watched
    with guard.during("step 3"):
        def deep_in_the_loop():
            time.sleep(60)
        deep_in_the_loop()
"""


def test_a_stage_that_takes_too_long_ends_the_process_and_says_where() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=50)
    assert time.monotonic() - began < 30
    assert done.returncode == EXIT_CODE
    line = "rank 0 of 1 stalled: step 3 took longer than 0.3 s (train.stall_seconds)"
    assert line in done.stderr and "deep_in_the_loop" in done.stderr
    assert f"heard: {line}" in done.stdout


def test_the_guards_thread_ends_with_it() -> None:
    with StallGuard(100) as guard, guard.during("a quick stage"):
        pass
    assert not guard._thread.is_alive()
