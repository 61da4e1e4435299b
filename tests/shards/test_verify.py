import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import shards
from shards.pack import pack
from shards.show import contact_sheet, describe
from shards.verify import VerifyReport, payloads, verify
from tests.shards.raw_tree import SMALL_SHARD_MB
from tests.shards.s3_server import s3, s3_server  # noqa: F401

# ruff: noqa: F811

REPOSITORY = Path(__file__).parents[2]


def printed(report: VerifyReport) -> str:
    console = Console(file=StringIO(), width=300)
    console.print(report)
    return console.file.getvalue()


@pytest.mark.parametrize("workers", [1, 2])
def test_whole(packed: Path, workers: int) -> None:
    report = verify(packed, progress=False, workers=workers)
    assert report.ok and report.num_sequences == 48
    assert report.num_bytes == sum(path.stat().st_size for path in packed.glob("*.tar"))
    assert report.fingerprint in printed(report) and "every byte" in printed(report)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_fault_is_listed(copy_of_packed: Path, flip_bit: Callable[[Path, int], None], workers: int) -> None:
    row = shards.open(copy_of_packed).index.slice(0, 1).to_pylist()[0]
    assert row["shard"] == "train-000000.tar"
    flip_bit(copy_of_packed / row["shard"], row["offset"] + 20)
    (copy_of_packed / "train-000001.tar").unlink()
    last = copy_of_packed / "train-000002.tar"
    last.write_bytes(last.read_bytes()[:1000])
    report = verify(copy_of_packed, progress=False, workers=workers)
    assert not report.ok
    for expected in (
        "train-000000.tar: sha256",
        f"train-000000.tar: sequence {row['key']}: CRC-32",
        "train-000001.tar: missing",
        "train-000002.tar: 1000 bytes, shards.json says",
        "cut short",
    ):
        assert any(expected in fault for fault in report.faults), expected
        assert expected in printed(report)


def test_a_flip_outside_the_payloads_is_seen(copy_of_packed: Path, flip_bit: Callable[[Path, int], None]) -> None:
    flip_bit(copy_of_packed / "train-000000.tar", 0)  # a member's name
    report = verify(copy_of_packed, progress=False)
    assert len(report.faults) == 1 and "train-000000.tar: sha256" in report.faults[0]


def test_wrong_index(copy_of_packed: Path) -> None:
    (copy_of_packed / "index.parquet").write_bytes(b"nothing")
    faults = verify(copy_of_packed, progress=False).faults
    assert "index.parquet has sha256" in faults[0] and "no readable parquet" in faults[1]
    (copy_of_packed / "index.parquet").unlink()
    assert verify(copy_of_packed, progress=False).faults == ["index.parquet: missing"]


def test_not_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a data set"):
        verify(tmp_path, progress=False)


@given(
    st.binary(max_size=60),
    st.lists(st.tuples(st.integers(0, 70), st.integers(1, 20)), max_size=6),
    st.lists(st.integers(1, 9), min_size=70, max_size=70),
)
def test_payloads_are_the_slices(content: bytes, gaps: list[tuple[int, int]], lengths: list[int]) -> None:
    rows, offset = [], 0
    for gap, size in gaps:
        rows.append({"offset": offset + gap, "size": size})
        offset += gap + size
    ends = np.cumsum(lengths)
    chunks = [content[end - length : end] for end, length in zip(ends, lengths, strict=True) if end - length < 60]
    found = list(payloads(chunks, rows))
    assert [row for row, _ in found] == rows
    for row, payload in found:
        assert payload == content[row["offset"] : row["offset"] + row["size"]]


def test_state_remembers_whole_shards_only(
    copy_of_packed: Path, flip_bit: Callable[[Path, int], None], tmp_path: Path
) -> None:
    state = tmp_path / "new" / "state.jsonl"
    names = [shard.name for shard in shards.open(copy_of_packed).manifest.shards]
    fingerprint = shards.open(copy_of_packed).fingerprint
    sha256 = {shard.name: shard.sha256 for shard in shards.open(copy_of_packed).manifest.shards}
    state.parent.mkdir()
    known = {"name": names[0], "sha256": sha256[names[0]], "num_bytes": 7, "num_sequences": 5, "faults": []}
    other = {**known, "name": names[1], "sha256": "of another shard"}
    lines = [{"fingerprint": fingerprint}, known, other]
    state.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"name": "torn')
    flip_bit(copy_of_packed / names[0], 0)  # remembered as whole, and not looked at again
    flip_bit(copy_of_packed / names[1], 0)
    report = verify(copy_of_packed, progress=False, state=state)
    assert report.num_shards_before == 1 and len(report.faults) == 1 and names[1] in report.faults[0]
    assert not state.exists()
    state.write_text(json.dumps({"fingerprint": "another"}))
    with pytest.raises(ValueError, match="remembers fingerprint another, this data set has"):
        verify(copy_of_packed, progress=False, state=state)
    state.write_text("holiday photos")
    with pytest.raises(ValueError, match="is no state file of hstl verify"):
        verify(copy_of_packed, progress=False, state=state)
    assert state.read_text() == "holiday photos"


def test_killed_and_verified_on(packed: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.jsonl"
    program = (
        "import shards.verify, time\n"
        "before = shards.verify._Memory.keep\n"
        "shards.verify._Memory.keep = lambda self, shard: (before(self, shard), time.sleep(0.3))\n"
        f"shards.verify.verify({str(packed)!r}, False, 1, {str(state)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    deadline = time.monotonic() + 60
    while not (state.exists() and len(state.read_text().splitlines()) >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    report = verify(packed, progress=False, state=state)
    assert report.ok and report.num_sequences == 48 and report.num_shards_before >= 2
    assert report.num_bytes == sum(path.stat().st_size for path in packed.glob("*.tar"))


@pytest.fixture
def bucket(raw: Path, partition: Path, s3: str) -> str:
    pack("casia-b", raw, f"{s3}/set", partition, 1, SMALL_SHARD_MB, progress=False)
    return f"{s3}/set"


def test_a_bucket(bucket: str, packed: Path, flip_bit: Callable[[Path, int], None], tmp_path: Path) -> None:
    from shards.object_store import connect

    report = verify(bucket, progress=False, workers=2)
    assert report.ok and report.num_sequences == 48
    content = bytearray((packed / "train-000000.tar").read_bytes())
    content[0] ^= 1
    connect(bucket).put("train-000000.tar", bytes(content))
    connect(bucket).delete(["train-000001.tar"])
    faults = verify(bucket, progress=False).faults
    assert len(faults) == 2 and "train-000000.tar: sha256" in faults[0] and faults[1] == "train-000001.tar: missing"
    with pytest.raises(FileNotFoundError, match="is not a data set"):
        verify(f"{bucket}/elsewhere", progress=False)


def test_show_a_bucket(bucket: str, packed: Path, tmp_path: Path) -> None:
    there, here = describe(bucket), describe(packed)
    assert (there.splits, there.lengths, there.fingerprint) == (here.splits, here.lengths, here.fingerprint)
    drawn = [contact_sheet(where, tmp_path / f"{i}.png") for i, where in enumerate((bucket, packed))]
    assert drawn[0].read_bytes() == drawn[1].read_bytes()
