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
    manifest = index.Manifest(
        "casia-b", 64, 64, (index.Shard("a.tar", 1, "00", 1),), index.fingerprint(encoded)
    )
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
