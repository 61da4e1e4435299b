"""Makes state.json records of other launches."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.run_state import FILE, Process, RunState, read

BEAT = 0.05
ME = Process(host="node1", machine="kernel-a pid:[1]", pid=100, born=5, slurm_job=None)


def record(**changes: Any) -> RunState:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    values = {**ME.model_dump(), "state": "running", "step": 3, "steps": 9, "started": now, "updated": now}
    return RunState.model_validate({**values, "holder": "theirs", "beat_seconds": BEAT, **changes})


def put(run: Path, found: RunState) -> RunState:
    run.mkdir(exist_ok=True)
    (run / FILE).write_text(found.model_dump_json())
    return found


def elsewhere(**changes: Any) -> RunState:
    """A running holder of whom this machine can know nothing."""
    return record(host="node9", machine="kernel-z pid:[1]", **changes)


def state_of(run: Path) -> RunState:
    found = read(run)
    assert found is not None
    return found
