"""Recorded walking in CASIA-B's layout, where it lies beside the repository."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

import shards
from shards.pack import pack
from shards.verify import verify

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "mocap-walk.tar.xz"
SUBJECTS = ("002", "005")  # the archive's first: unpacking stops after them


@pytest.mark.skipif(not ARCHIVE.exists(), reason="../shared/data/mocap-walk.tar.xz is not here")
def test_packs_as_it_is(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE, "r|xz") as archive:
        for member in archive:
            subject = member.name.split("/")[1:2]
            if subject and subject[0] > SUBJECTS[-1]:
                break
            archive.extract(member, tmp_path, filter="data")
    source = tmp_path / "mocap-walk"
    num_frames = len(list(source.rglob("*.png")))
    assert num_frames > 1_000
    summary = pack("casia-b", source, tmp_path / "set", workers=2, shard_size_mb=1, progress=False)
    assert summary.splits["train"]["frames"] == num_frames and not summary.skips
    assert verify(tmp_path / "set", progress=False).ok
    shard_set = shards.open(tmp_path / "set")
    sequences = shard_set.read(range(len(shard_set)))
    for sequence in sequences:
        assert (sequence[:, 0].any(1) & sequence[:, -1].any(1)).all()  # cut to the rows that hold the person
    grey = np.mean([((sequence > 0) & (sequence < 255)).mean() for sequence in sequences])
    assert 0.005 < grey < 0.1  # the cubic resize's soft edges are kept
