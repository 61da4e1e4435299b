from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import shards
from shards.verify import VerifyReport, verify


def printed(report: VerifyReport) -> str:
    console = Console(file=StringIO(), width=300)
    console.print(report)
    return console.file.getvalue()


def test_whole(packed: Path) -> None:
    report = verify(packed, progress=False)
    assert report.ok and report.num_sequences == 48
    assert report.num_bytes == sum(path.stat().st_size for path in packed.glob("*.tar"))
    assert report.fingerprint in printed(report) and "every byte" in printed(report)


def test_every_fault_is_listed(copy_of_packed: Path, flip_bit) -> None:
    row = shards.open(copy_of_packed).index.slice(0, 1).to_pylist()[0]
    assert row["shard"] == "train-000000.tar"
    flip_bit(copy_of_packed / row["shard"], row["offset"] + 20)
    (copy_of_packed / "train-000001.tar").unlink()
    last = copy_of_packed / "train-000002.tar"
    last.write_bytes(last.read_bytes()[:1000])
    report = verify(copy_of_packed, progress=False)
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


def test_a_flip_outside_the_payloads_is_seen(copy_of_packed: Path, flip_bit) -> None:
    flip_bit(copy_of_packed / "train-000000.tar", 0)  # a member's name
    report = verify(copy_of_packed, progress=False)
    assert len(report.faults) == 1 and "train-000000.tar: sha256" in report.faults[0]


def test_wrong_index(copy_of_packed: Path, flip_bit) -> None:
    (copy_of_packed / "index.parquet").write_bytes(b"nothing")
    faults = verify(copy_of_packed, progress=False).faults
    assert "index.parquet has sha256" in faults[0] and "no readable parquet" in faults[1]
    (copy_of_packed / "index.parquet").unlink()
    assert verify(copy_of_packed, progress=False).faults == ["index.parquet: missing"]


def test_not_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a data set"):
        verify(tmp_path, progress=False)
