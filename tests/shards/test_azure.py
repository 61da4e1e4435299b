"""Reading from a real Azure Blob server. Packing into one: test_pack_bucket.py."""

# ruff: noqa: F811

from pathlib import Path

import numpy as np
import pytest

import shards
from shards.object_store import connect, explain
from shards.verify import verify
from tests.shards.azure_server import azure, azure_server  # noqa: F401
from tests.shards.remote_sets import upload


@pytest.mark.parametrize("cached", [False, True])
def test_batches_are_those_of_the_disk(packed: Path, azure: str, tmp_path: Path, cached: bool) -> None:
    url = upload(packed, f"{azure}/some/folder")
    cache = tmp_path / "cache" if cached else None
    there, here = (
        shards.Batches(shard_set, "train", 2, 3, 5) for shard_set in (shards.open(url, cache), shards.open(packed))
    )
    for step in range(4):
        for name, expected in here[step].items():
            np.testing.assert_array_equal(there[step][name], expected)


def test_verify_names_what_is_damaged(packed: Path, azure: str) -> None:
    url = upload(packed, f"{azure}/set")
    assert verify(url, progress=False).ok
    content = bytearray((packed / "train-000000.tar").read_bytes())
    content[0] ^= 1
    connect(url).put("train-000000.tar", bytes(content))
    (fault,) = verify(url, progress=False).faults
    assert "train-000000.tar: sha256" in fault


def test_what_is_not_there(azure: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{azure}/nothing is not a data set: it has no shards\.json"):
        shards.open(f"{azure}/nothing")
    with pytest.raises(FileNotFoundError, match="there is no container no-such-container"):
        shards.open("az://no-such-container/set")


def test_a_wrong_key(azure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    with pytest.raises(PermissionError, match=r"credentials are wrong .*AZURE_STORAGE_ACCOUNT_KEY") as caught:
        shards.open(f"{azure}/set")
    assert "d3Jvbmc=" not in str(caught.value) and "AWS" not in str(caught.value)


def test_a_wrong_key_in_the_words_of_azure_itself() -> None:
    """Azurite says AuthorizationFailure; Azure says that of forbidden networks."""
    from obstore.exceptions import BaseError

    said = "status code: 403: <Error><Code>AuthenticationFailed</Code></Error>"
    error = explain(BaseError(said), "az://sets/a")
    assert isinstance(error, PermissionError)
    assert "Azure does not accept the credentials (AuthenticationFailed): check AZURE_STORAGE_ACCOUNT" in str(error)
