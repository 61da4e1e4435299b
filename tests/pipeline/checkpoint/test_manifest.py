import zlib
from pathlib import Path

import pytest

from pipeline.checkpoint import manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    for name, content in (("a", b"first"), ("state/b", b""), ("state/c", b"third" * 1000)):
        (tmp_path / name).write_bytes(content)
    return tmp_path


def written(folder: Path, world_size: int = 1) -> dict[str, list[int]]:
    files: dict[str, list[int]] = {}
    for rank in range(world_size):
        files |= manifest.sums(folder, manifest.names(folder)[rank::world_size])
    manifest.write(folder, files)
    return files


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_every_file_is_summed_once_whatever_the_number_of_processes(folder: Path, world_size: int) -> None:
    assert written(folder, world_size) == {
        "a": [5, zlib.crc32(b"first")],
        "state/b": [0, 0],
        "state/c": [5000, zlib.crc32(b"third" * 1000)],
    }
    assert [manifest.faults(folder, rank, 3) for rank in range(3)] == [[], [], []]


def test_sums_of_files_larger_than_a_chunk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = manifest.sums(folder, manifest.names(folder))
    monkeypatch.setattr(manifest, "CHUNK", 7)
    assert manifest.sums(folder, manifest.names(folder)) == whole


def test_a_flipped_bit_a_cut_file_and_a_missing_one_are_named(folder: Path) -> None:
    written(folder)
    (folder / "a").write_bytes(b"fIrst")
    (folder / "state/c").write_bytes(b"third" * 999)
    (folder / "state/b").unlink()
    first, second, third = sorted(manifest.faults(folder))
    assert first.startswith(f"{folder / 'a'}: 5 bytes of CRC-32") and "written were 5 of" in first
    assert second == f"{folder / 'state/b'} is missing"
    assert third.startswith(f"{folder / 'state/c'}: 4995 bytes") and "written were 5000" in third


def test_a_damaged_manifest_is_a_fault(folder: Path) -> None:
    (folder / "files.json").write_text('{"a": [5')
    (fault,) = manifest.faults(folder)
    assert fault.startswith(f"{folder / 'files.json'}: ")


def test_a_disk_that_does_not_answer_is_no_fault_of_the_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(folder)

    def stale(*arguments: object, **named: object) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "open", stale)
    with pytest.raises(OSError, match="Stale"):
        manifest.faults(folder)
