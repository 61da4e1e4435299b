from pathlib import Path

import numpy as np
import pytest

import shards
from shards.pack import pack
from shards.skips import Skips
from shards.sources import LAYOUTS, RawSequence
from shards.sources.oumvlp import NO_WALK
from tests.shards.raw_tree import write_sequence

OUMVLP = LAYOUTS["oumvlp"]


def discover(root: Path) -> tuple[list[RawSequence], Skips]:
    skips = Skips()
    return list(OUMVLP.discover(root, skips)), skips


@pytest.fixture(scope="module")
def raw_oumvlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("oumvlp")
    for seed, subject in enumerate(("00001", "00002", "00003", "10307")):
        for view in ("000", "270"):
            for walk in ("00", "01"):
                write_sequence(root / f"Silhouette_{view}-{walk}" / subject, 2 + seed, seed)
    return root


def test_finds_every_sequence(raw_oumvlp: Path) -> None:
    sequences, skips = discover(raw_oumvlp)
    assert not skips and len(sequences) == 16
    assert RawSequence("10307", "01", "270", "Silhouette_270-01/10307", 5) in sequences


def test_passes_over_what_is_none_and_counts_it(tmp_path: Path) -> None:
    write_sequence(tmp_path / "Silhouette_000-00/00001", 1)
    (tmp_path / "Silhouette_000-01/00001").mkdir(parents=True)
    (tmp_path / "Silhouette_000-01/0.1").mkdir()
    (tmp_path / "Silhouette_xyz").mkdir()
    (tmp_path / "Silhouette_000-00/00001/thumbs.db").touch()
    (tmp_path / "Silhouette_000-00/list.txt").touch()
    sequences, skips = discover(tmp_path)
    assert [sequence.path for sequence in sequences] == ["Silhouette_000-00/00001"]
    assert {reason: examples for reason, _, examples in skips} == {
        NO_WALK: ["Silhouette_xyz"],
        "sequence folder without a PNG": ["Silhouette_000-01/00001"],
        "subject folder's name holds a dot": ["Silhouette_000-01/0.1"],
        "file is no PNG": ["Silhouette_000-00/00001/thumbs.db"],
        "file where only folders belong": ["Silhouette_000-00/list.txt"],
    }


def test_another_layout_is_told(tmp_path: Path) -> None:
    write_sequence(tmp_path / "00001/00/090", 1)
    with pytest.raises(ValueError, match=r"expected Silhouette_VIEW-SEQUENCE/SUBJECT.*deeper than expected"):
        discover(tmp_path)


def test_packed_by_the_official_partition(raw_oumvlp: Path, tmp_path: Path) -> None:
    summary = pack("oumvlp", raw_oumvlp, tmp_path / "set", workers=1, progress=False)
    shard_set = shards.open(tmp_path / "set")
    subjects = {split: set() for split in ("train", "test")}
    for row in shard_set.index.to_pylist():
        subjects[row["split"]].add(row["subject"])
    assert subjects == {"train": {"00001", "00003"}, "test": {"00002", "10307"}}
    assert summary.name == "oumvlp"
    assert "10307-01-270" in shard_set.index["key"].to_pylist()
    assert np.array_equal(*(shard_set.read([i])[0].shape[1:] for i in (0, 1)))
