"""Others' readers read our shards with no code of ours."""

from pathlib import Path

import numpy as np
import pytest

import shards


@pytest.fixture
def expected(packed: Path) -> dict[str, np.ndarray]:
    shard_set = shards.open(packed)
    train = np.flatnonzero(np.array(shard_set.index["split"].to_pylist()) == "train")
    keys = shard_set.index["key"].to_pylist()
    return dict(zip([keys[row] for row in train], shard_set.read(train), strict=True))


def test_datasets(packed: Path, expected: dict[str, np.ndarray], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = sorted(map(str, packed.glob("train-*.tar")))
    stream = datasets.load_dataset(
        "webdataset", data_files={"train": files}, streaming=True, split="train", cache_dir=str(tmp_path)
    )
    found = {sample["__key__"]: sample for sample in stream}
    assert found.keys() == expected.keys()
    for key, silhouettes in expected.items():
        np.testing.assert_array_equal(np.asarray(found[key]["sils.npy.gz"], np.uint8), silhouettes)
        assert found[key]["json"]["frames"] == len(silhouettes)


def test_webdataset(packed: Path, expected: dict[str, np.ndarray]) -> None:
    webdataset = pytest.importorskip("webdataset")
    files = sorted(map(str, packed.glob("train-*.tar")))
    found = {
        sample["__key__"]: sample for sample in webdataset.WebDataset(files, shardshuffle=False).decode()
    }
    assert found.keys() == expected.keys()
    for key, silhouettes in expected.items():
        np.testing.assert_array_equal(found[key]["sils.npy.gz"], silhouettes)
        assert f"{found[key]['json']['subject']}-{found[key]['json']['condition']}" in key
