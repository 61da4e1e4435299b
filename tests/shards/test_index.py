import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import index

ROW = {
    "key": "001-nm-01-090", "subject": "001", "condition": "nm-01", "view": "090", "frames": 3,
    "split": "train", "shard": "train-000000.tar", "offset": 512, "size": 99, "crc32": 2**32 - 1,
}  # fmt: skip


def test_round_trip() -> None:
    rows = [ROW, {**ROW, "key": "001-nm-01-108", "view": "108", "offset": 2**40}]
    encoded = index.encode_index(rows)
    assert encoded == index.encode_index(rows)
    assert index.decode_index(encoded, "here").to_pylist() == rows
    manifest = index.Manifest("casia-b", 64, 64, (index.Shard("a.tar", 1, "00", 1),), index.fingerprint(encoded))
    assert index.parse_manifest(manifest.to_json(), "here") == manifest


def test_a_key_comes_once() -> None:
    with pytest.raises(ValueError, match="key '001-nm-01-090' stands for two sequences"):
        index.encode_index([ROW, ROW])


def test_other_tables_are_refused() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"key": ["a"]}), sink)
    with pytest.raises(ValueError, match=r"here has other columns than format 1: .*crc32: uint32"):
        index.decode_index(sink.getvalue().to_pybytes(), "here")
    with pytest.raises(ValueError, match="here is no readable parquet"):
        index.decode_index(b"PAR1", "here")


def opened(rows: list[dict], folder, reads: list[bytes] | None = None):
    encoded = index.encode_index(rows)
    manifest = index.Manifest("x", 64, 64, (index.Shard("a.tar", 1, "", len(rows)),), index.fingerprint(encoded))
    answers = iter(reads if reads is not None else [encoded])
    return index.open_index(manifest, lambda: next(answers), "here", folder)


def test_decoded_once_then_mapped(tmp_path) -> None:
    rows = [{**ROW, "key": str(i)} for i in range(50)]
    assert opened(rows, tmp_path).to_pylist() == rows
    before = pa.total_allocated_bytes()
    mapped = opened(rows, tmp_path, reads=[])  # asks for nothing
    assert mapped.to_pylist() == rows and mapped["offset"].num_chunks == 1
    assert pa.total_allocated_bytes() - before < 1000
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-100])  # torn: not believed, written again
    assert opened(rows, tmp_path).to_pylist() == rows == opened(rows, tmp_path, reads=[]).to_pylist()


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path) -> None:
    assert opened([ROW], tmp_path / "missing").to_pylist() == [ROW]


def test_a_torn_index_is_read_again_and_another_is_refused(tmp_path) -> None:
    good, other = index.encode_index([ROW]), index.encode_index([{**ROW, "key": "other"}])
    assert opened([ROW], None, [b"torn", good]).to_pylist() == [ROW]
    with pytest.raises(ValueError, match=r"here/index\.parquet has sha256"):
        opened([ROW], tmp_path, [other] * 3)
    assert not list(tmp_path.iterdir())


def test_rows_and_shards_must_agree() -> None:
    encoded = index.encode_index([ROW])
    manifest = index.Manifest("x", 64, 64, (index.Shard("a.tar", 1, "", 7),), index.fingerprint(encoded))
    with pytest.raises(ValueError, match=r"has 1 rows, the shards of shards\.json hold 7 sequences"):
        index.open_index(manifest, lambda: encoded, "here", None)
