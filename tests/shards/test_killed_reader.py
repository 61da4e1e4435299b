"""kill -9 while batches are read, at several moments: the next start goes on with the batches it would have had."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import shards
from tests.shards.chaos import Fault, chaos
from tests.shards.remote_sets import upload, wait_until
from tests.shards.s3_server import S3Server, s3, s3_server  # noqa: F401

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
STEPS = 40

READER = """
import os, sys
import torch, shards
if __name__ == "__main__":
    url, cache, first, steps = sys.argv[1], sys.argv[2] or None, int(sys.argv[3]), int(sys.argv[4])
    batches = shards.Batches(shards.open(url, cache), "train", 4, 4, 5, 2, seed=3)
    loader = torch.utils.data.DataLoader(
        batches, sampler=range(first, steps), batch_size=None, num_workers=1, multiprocessing_context="forkserver"
    )
    for batch in loader:
        print(batch["silhouettes"].long().sum().item(), batch["rows"].tolist(), flush=True)
"""


def start(folder: Path, url: object, cache: object, first: int) -> subprocess.Popen[str]:
    script = folder / "reader.py"
    script.write_text(READER)
    command = [sys.executable, str(script), str(url), str(cache or ""), str(first), str(STEPS)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def expected_of(packed: Path) -> list[str]:
    batches = shards.Batches(shards.open(packed), "train", 4, 4, 5, 2, seed=3)
    made = [batches[step] for step in range(STEPS)]
    return [f"{batch['silhouettes'].long().sum().item()} {batch['rows'].tolist()}\n" for batch in made]


def killed_and_started_again(folder: Path, url: object, cache: object, expected: list[str]) -> None:
    """Twice a reader is killed after some batches, with more under way; the last one reads to the end."""
    arrived: list[str] = []
    for more in (3, 9):
        reader = start(folder, url, cache, len(arrived))
        assert reader.stdout is not None
        arrived += [reader.stdout.readline() for _ in range(more)]
        reader.send_signal(signal.SIGKILL)
        reader.communicate()
        wait_until(lambda group=reader.pid: not alive(group))  # the loader's worker leaves by itself
    last = start(folder, url, cache, len(arrived))
    arrived += last.communicate(timeout=120)[0].splitlines(keepends=True)
    assert last.returncode == 0 and arrived == expected


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_from_a_folder(packed: Path, tmp_path: Path) -> None:
    killed_and_started_again(tmp_path, packed, None, expected_of(packed))


def test_from_a_bucket_with_a_cache(
    packed: Path,
    s3: str,  # noqa: F811
    s3_server: S3Server,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, cache = upload(packed, f"{s3}/set"), tmp_path / "cache"
    with chaos(s3_server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.faults["latency"] = Fault(seconds=0.1)  # something is always under way
        killed_and_started_again(tmp_path, url, cache, expected_of(packed))
    for path in cache.glob("*/*.tar"):
        assert path.read_bytes() == (packed / path.name).read_bytes()
    again = shards.Batches(shards.open(url, cache), "train", 4, 4, 5, 2, seed=3)
    local = shards.Batches(shards.open(packed), "train", 4, 4, 5, 2, seed=3)
    assert all(torch.equal(again[step]["silhouettes"], local[step]["silhouettes"]) for step in range(5))
