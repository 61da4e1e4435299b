"""Others' readers read our shards with no code of ours, from a folder and from a URL; and ours read over http."""

import functools
import shutil
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shards
from tests.shards.remote_sets import upload
from tests.shards.s3_server import s3, s3_server  # noqa: F401


@pytest.fixture
def expected(packed: Path) -> dict[str, np.ndarray]:
    shard_set = shards.open(packed)
    train = np.flatnonzero(np.array(shard_set.index["split"].to_pylist()) == "train")
    keys = shard_set.index["key"].to_pylist()
    return dict(zip([keys[row] for row in train], shard_set.read(train), strict=True))


class Quiet(SimpleHTTPRequestHandler):
    """Whole files, and ranges when told so."""

    answers_ranges = True

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        wanted = self.headers.get("Range")
        if not (wanted and self.answers_ranges and path.is_file()):
            super().do_GET()
            return
        content = path.read_bytes()
        first, last = wanted.removeprefix("bytes=").split("-")
        start, stop = int(first), min(int(last) + 1 if last else len(content), len(content))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(content[start:stop])


@pytest.fixture
def web(packed: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(packed)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["folder", "http", "presigned"])
def files(request: pytest.FixtureRequest, packed: Path) -> list[str]:
    """Where the train shards are."""
    names = sorted(path.name for path in packed.glob("train-*.tar"))
    if request.param == "folder":
        return [str(packed / name) for name in names]
    if request.param == "http":
        address = request.getfixturevalue("web")
        return [f"{address}/{name}" for name in names]
    from obstore import sign

    from shards.object_store import connect

    store = connect(upload(packed, request.getfixturevalue("s3") + "/set"))
    return [str(sign(store, "GET", name, timedelta(minutes=5))) for name in names]


def test_datasets(files: list[str], expected: dict[str, np.ndarray], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    if "://" in files[0]:
        pytest.importorskip("aiohttp", reason="datasets reads URLs by fsspec[http]: pip install aiohttp requests")
        pytest.importorskip("requests")
    stream = datasets.load_dataset(
        "webdataset", data_files={"train": files}, streaming=True, split="train", cache_dir=str(tmp_path)
    )
    found = {sample["__key__"]: sample for sample in stream}
    assert found.keys() == expected.keys()
    for key, silhouettes in expected.items():
        np.testing.assert_array_equal(np.asarray(found[key]["sils.npy.gz"], np.uint8), silhouettes)
        assert found[key]["json"]["frames"] == len(silhouettes)


def test_webdataset(files: list[str], expected: dict[str, np.ndarray]) -> None:
    webdataset = pytest.importorskip("webdataset")
    if "://" in files[0] and shutil.which("curl") is None:
        pytest.skip("webdataset reads URLs by curl, which is not here")
    found = {sample["__key__"]: sample for sample in webdataset.WebDataset(files, shardshuffle=False).decode()}
    assert found.keys() == expected.keys()
    for key, silhouettes in expected.items():
        np.testing.assert_array_equal(found[key]["sils.npy.gz"], silhouettes)
        assert f"{found[key]['json']['subject']}-{found[key]['json']['condition']}" in key


def test_the_index_as_a_dataset(packed: Path) -> None:
    datasets = pytest.importorskip("datasets")
    shard_set = shards.open(packed)
    view = datasets.Dataset(shard_set.index)
    view = view.add_column("row", range(len(view)))
    long = view.filter(lambda sequence: sequence["frames"] >= 6 and sequence["view"] == "090")
    assert 0 < len(long) < len(view)
    for row, silhouettes in zip(long["row"], shard_set.read(long["row"]), strict=True):
        assert len(silhouettes) == shard_set.num_frames[row] >= 6


def test_ours_over_http(web: str, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_set, local = shards.open(web), shards.open(packed)
    for found, expected in zip(shard_set.read(range(48)), local.read(range(48)), strict=True):
        np.testing.assert_array_equal(found, expected)
    monkeypatch.setattr(Quiet, "answers_ranges", False)
    with pytest.raises(ValueError, match=f"{web}/.*tar: the server does not send parts of files"):
        shards.open(web).read([3])
