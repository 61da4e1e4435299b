"""Puts packed data sets into the buckets of the tests."""

import time
from collections.abc import Callable
from pathlib import Path


def upload(folder: Path, url: str) -> str:
    """All files of a folder below `url`, which is returned."""
    from obstore import put

    from shards.object_store import connect

    store = connect(url)
    for file in folder.iterdir():
        put(store, file.name, file.read_bytes())
    return url


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
