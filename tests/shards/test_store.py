import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import shards
from shards.pack import pack
from shards.store import DamagedShardError
from tests.shards.raw_tree import SMALL_SHARD_MB


def test_read_in_any_order_with_repeats(packed: Path) -> None:
    shard_set = shards.open(packed)
    alone = [shard_set.read([row])[0] for row in range(len(shard_set))]
    rows = np.random.default_rng(0).integers(0, len(shard_set), 100)
    for row, silhouettes in zip(rows, shard_set.read(rows), strict=True):
        np.testing.assert_array_equal(silhouettes, alone[row])
    assert shard_set.read([]) == []


@pytest.mark.parametrize("rows", [[-1], [48], [0, 50]])
def test_rows_there_are_not(packed: Path, rows: list[int]) -> None:
    with pytest.raises(IndexError, match="rows go from 0 to 47"):
        shards.open(packed).read(rows)


def test_threads_and_many_shards_share_few_handles(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.store.local.NUM_OPEN_SHARDS", 1)
    shard_set = shards.open(packed)
    expected = shards.open(packed).read(range(48))
    with ThreadPoolExecutor(8) as threads:
        for row, found in enumerate(threads.map(lambda row: shard_set.read([row])[0], [*range(48)] * 4)):
            np.testing.assert_array_equal(found, expected[row % 48])


def first_frames(shard_set: shards.ShardSet) -> int:
    return int(shard_set.read([0])[0].sum())


def test_goes_to_another_process_as_its_address(packed: Path) -> None:
    shard_set = shards.open(packed)
    assert len(pickle.dumps(shard_set)) < 500
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(first_frames, (shard_set,)) == first_frames(shard_set)


def test_replaced_while_in_use(raw: Path, copy_of_packed: Path, tmp_path: Path) -> None:
    pickled = pickle.dumps(shards.open(copy_of_packed))
    for path in copy_of_packed.iterdir():
        path.unlink()
    pack("casia-b", raw, copy_of_packed, workers=1, shard_size_mb=SMALL_SHARD_MB, progress=False)
    with pytest.raises(ValueError, match="was replaced while in use: it had fingerprint"):
        pickle.loads(pickled)


def test_flipped_bit(copy_of_packed: Path, flip_bit) -> None:
    shard_set = shards.open(copy_of_packed)
    row = {name: column[5].as_py() for name, column in zip(shard_set.index.column_names, shard_set.index, strict=True)}
    flip_bit(copy_of_packed / row["shard"], row["offset"] + row["size"] // 2)
    message = rf"{row['shard']}: sequence {row['key']} has CRC-32 [0-9a-f]{{8}}, the index says {row['crc32']:08x}"
    with pytest.raises(DamagedShardError, match=message):
        shards.open(copy_of_packed).read([5])
    shard_set.read([4, 6])


def test_a_passing_fault_is_read_again(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_set = shards.open(packed)
    expected = shard_set.read([7])[0]
    read_range, answers = shard_set._store.read_range, iter([b"garbage"])
    monkeypatch.setattr(shard_set._store, "read_range", lambda *where: next(answers, None) or read_range(*where))
    np.testing.assert_array_equal(shard_set.read([7])[0], expected)
    assert shard_set.statistics["rereads"] == 1 and shard_set.statistics["sequences"] == 2


def test_cut_short_or_missing_is_seen_at_open(copy_of_packed: Path) -> None:
    shard = copy_of_packed / "train-000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    message = rf"train-000001.tar has {len(content) - 100} bytes, shards.json says {len(content)}"
    with pytest.raises(ValueError, match=message):
        shards.open(copy_of_packed)
    shard.unlink()
    with pytest.raises(ValueError, match=r"train-000001.tar is missing.*Copy these again"):
        shards.open(copy_of_packed)


def test_cut_short_or_missing_after_open(copy_of_packed: Path) -> None:
    shard_set = shards.open(copy_of_packed)
    last = len(shard_set) - 1
    shard = copy_of_packed / shard_set.index["shard"][last].as_py()
    shard.write_bytes(shard.read_bytes()[: shard_set.index["offset"][last].as_py() + 10])
    with pytest.raises(DamagedShardError, match=r"ends after 10 of \d+ bytes: the shard is cut short"):
        shard_set.read([last])
    (copy_of_packed / "train-000000.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000000.tar is missing: copy it again, or pack again"):
        shard_set.read([0])


def test_no_data_set(copy_of_packed: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        shards.open(tmp_path / "nowhere")
    (copy_of_packed / "shards.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"not a data set: it has no shards\.json.*Packing did not finish"):
        shards.open(copy_of_packed)


def test_unknown_scheme() -> None:
    with pytest.raises(ValueError, match="ftp:// is no known kind of storage"):
        shards.open("ftp://host/set")


def test_files_of_another_data_set(raw: Path, copy_of_packed: Path, tmp_path: Path) -> None:
    pack("casia-b", raw, tmp_path / "other", workers=1, shard_size_mb=SMALL_SHARD_MB, progress=False)
    for name, message in (
        ("index.parquet", r"index\.parquet has sha256 \w+, shards\.json says \w+: one of the two was changed"),
        ("shards.json", r"not whole: .*train-\d+\.tar (is missing|has \d+ bytes, shards)"),  # with its index
    ):
        (copy_of_packed / name).write_bytes((tmp_path / "other" / name).read_bytes())
        with pytest.raises(ValueError, match=message):
            shards.open(copy_of_packed)


def test_a_damaged_index_or_manifest(copy_of_packed: Path, flip_bit) -> None:
    flip_bit(copy_of_packed / "index.parquet", 100)
    with pytest.raises(ValueError, match=r"index\.parquet has sha256 \w+, shards\.json says \w+"):
        shards.open(copy_of_packed)
    (copy_of_packed / "shards.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="is of format 2, this version of hstl reads format 1"):
        shards.open(copy_of_packed)
    (copy_of_packed / "shards.json").write_text('{"format": 1')
    with pytest.raises(ValueError, match=r"shards\.json is damaged"):
        shards.open(copy_of_packed)
