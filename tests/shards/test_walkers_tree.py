"""The raw CASIA-B tree of walkers: names, determinism, and no half-written tree."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.walkers import CONDITIONS, VIEWS, WalkersSummary, tree, walk, write


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def two_people(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WalkersSummary]:
    out = tmp_path_factory.mktemp("walkers") / "raw"
    return out, write(out, 2, seed=5, frames=(3, 5), workers=1, progress=False, views=("000", "090"))


def test_the_tree_is_laid_out_as_casia_b(two_people: tuple[Path, WalkersSummary]) -> None:
    out, summary = two_people
    files = contents(out)
    folders = {name.rsplit("/", 1)[0] for name in files}
    assert folders == {f"{s:03d}/{c}/{v}" for s in (1, 2) for c in CONDITIONS for v in ("000", "090")}
    for folder in folders:
        names = sorted(name for name in files if name.startswith(f"{folder}/"))
        stem = folder.replace("/", "-")
        assert names == [f"{folder}/{stem}-{i:03d}.png" for i in range(1, len(names) + 1)]
        assert 3 <= len(names) <= 5
    assert (summary.subjects, summary.sequences, summary.frames) == (2, 40, len(files))
    assert summary.seconds > 0


def test_what_is_written_is_what_walk_draws(two_people: tuple[Path, WalkersSummary]) -> None:
    out, _ = two_people
    expected = walk(2, "cl-01", "090", seed=5, frames=(3, 5))
    files = sorted((out / "002" / "cl-01" / "090").iterdir())
    np.testing.assert_array_equal([cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files], expected)


def test_the_whole_layout_has_ten_conditions_and_eleven_views(tmp_path: Path) -> None:
    summary = write(tmp_path / "raw", 1, frames=1, workers=1, progress=False)
    assert summary == WalkersSummary(1, 110, 110, summary.seconds)
    assert sorted(p.name for p in (tmp_path / "raw" / "001").iterdir()) == sorted(CONDITIONS)
    assert sorted(p.name for p in (tmp_path / "raw" / "001" / "nm-01").iterdir()) == list(VIEWS)


def test_same_bytes_whatever_the_workers_and_the_number_of_people(
    tmp_path: Path, two_people: tuple[Path, WalkersSummary]
) -> None:
    write(tmp_path / "three", 3, seed=5, frames=(3, 5), workers=2, progress=False, views=("000", "090"))
    three = contents(tmp_path / "three")
    assert {name: data for name, data in three.items() if not name.startswith("003/")} == contents(two_people[0])


def test_another_seed_is_other_people(tmp_path: Path, two_people: tuple[Path, WalkersSummary]) -> None:
    write(tmp_path / "raw", 1, seed=6, frames=(3, 5), workers=1, progress=False, views=("000", "090"))
    one, other = contents(two_people[0]), contents(tmp_path / "raw")
    shared = one.keys() & other.keys()
    assert sum(one[name] != other[name] for name in shared) > 0.9 * len(shared)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=f"{tmp_path}.*delete it first"):
        write(tmp_path, 1, progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw", 1, frames=1, workers=1, progress=False, views=("090",))
    assert len(contents(tmp_path / "raw")) == 10


def test_a_stopped_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(folder: Path, number: int, *_: object) -> tuple[int, int]:
        (folder / f"{number:03d}").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(tree, "_write_subject", fails)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "raw", 1, workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"subjects": 0}, "subjects=0.*1 to 999"),
        ({"subjects": 1000}, "subjects=1000"),
        ({"subjects": 1, "seed": -1}, "seed=-1"),
        ({"subjects": 1, "workers": 0}, "workers=0"),
        ({"subjects": 1, "frames": (5, 2)}, r"frames=\(5, 2\)"),
        ({"subjects": 1, "views": ("090", "100")}, "100"),
        ({"subjects": 1, "views": ()}, "at least one"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tmp_path: Path, options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        write(tmp_path / "raw", progress=False, **options)
    assert list(tmp_path.iterdir()) == []
