from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint import folders
from pipeline.checkpoint.folders import is_due, kept, latest, prune, put_aside
from pipeline.recipe import Train


def asked(**values: int | None) -> Train:
    return Train.model_validate({"steps": 1000, "save_every": 100, **values})


def test_lasting_and_interim_checkpoints_are_due() -> None:
    train = asked(save_every=10, interim_every=4)
    assert [step for step in range(1, 21) if is_due(step, train)] == [4, 8, 10, 12, 16, 20]
    assert [step for step in range(1, 21) if is_due(step, asked(save_every=10))] == [10, 20]


@pytest.mark.parametrize(
    ("values", "stay"),
    [
        ({"keep_last": 2}, {300, 400, 450}),  # 450 was written when the run was asked to stop
        ({"keep_last": 1}, {400, 450}),
        ({"keep_last": 1, "keep_every": 200}, {200, 400, 450}),
        ({"keep_last": 9}, {100, 200, 300, 400, 450}),
    ],
)
def test_what_stays(values: dict[str, int], stay: set[int]) -> None:
    assert kept([100, 150, 200, 250, 300, 350, 400, 450], asked(**values)) == stay


@given(
    st.sets(st.integers(1, 60), min_size=1),
    st.integers(1, 12),
    st.integers(1, 5),
    st.none() | st.integers(1, 30),
)
def test_the_newest_always_stays_and_pruning_again_changes_nothing(steps, save_every, keep_last, keep_every) -> None:
    train = asked(save_every=save_every, keep_last=keep_last, keep_every=keep_every)
    stay = kept(sorted(steps), train)
    assert max(steps) in stay <= steps
    assert kept(sorted(stay), train) == stay
    lasting = sorted(step for step in steps if step % save_every == 0)
    assert set(lasting[-keep_last:]) <= stay


def make(run: Path, step: int, *, complete: bool = True) -> Path:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x")
    if complete:
        (folder / folders.MARKER).touch()
    return folder


def test_pruning_deletes_what_was_never_completed_and_what_is_superseded(tmp_path: Path) -> None:
    for step in (100, 150, 200):
        make(tmp_path, step)
    make(tmp_path, 300, complete=False)
    (tmp_path / "checkpoints" / ".step-00000400.partial").mkdir()
    prune(tmp_path, asked(keep_last=1))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000200"]


def test_the_newest_complete_one_counts_and_a_damaged_one_does_not(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    first, second = make(tmp_path, 100), make(tmp_path, 200)
    make(tmp_path, 300, complete=False)
    assert latest(tmp_path) == second
    aside = put_aside(second)
    assert latest(tmp_path) == first
    assert (aside / "model.safetensors").read_bytes() == b"x"  # nothing is lost
    make(tmp_path, 200)
    put_aside(tmp_path / "checkpoints" / "step-00000200")  # damaged once more: the name is free again
    assert latest(tmp_path) == first
