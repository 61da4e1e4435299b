"""What servers of the tests have in common: the wait until they answer, and a bucket's name."""

import re
import socket
import subprocess
import time
from pathlib import Path

import pytest

START_SECONDS = 60


def wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Raises RuntimeError with the end of the log for a server that ends or stays silent."""
    deadline = time.monotonic() + START_SECONDS
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def _answers(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def name_of_test(request: pytest.FixtureRequest) -> str:
    """A bucket's name that no other has, from the test's."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())
    return f"test-{re.sub('-+', '-', name)[:40].strip('-')}-{time.time_ns() % 10**9}"
