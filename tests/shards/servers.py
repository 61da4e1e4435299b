"""What servers of the tests have in common: they start, answer on a port, and end at once; and a bucket's name."""

import os
import re
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

START_SECONDS = 60


@dataclass
class Server:
    """Runs until `stop`; `stop` and `start` again keep what lies in its folder: an outage."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def variables(self) -> dict[str, str]:
        """Of the server's own environment."""
        raise NotImplementedError

    def start(self) -> None:
        """Raises RuntimeError with the end of its log where it does not answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "server.log"
        environment = {**os.environ, **self.variables()}
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                self.command(), env=environment, stdout=file, stderr=file, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def stop(self, with_signal: int = signal.SIGKILL) -> None:
        """The whole group, for some start a child."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, with_signal)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        with socket.socket() as sock:
            sock.settimeout(1)
            return sock.connect_ex(("127.0.0.1", self.port)) == 0


def name_of_test(request: pytest.FixtureRequest) -> str:
    """A bucket's name that no other has, from the test's."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())
    return f"test-{re.sub('-+', '-', name)[:40].strip('-')}-{time.time_ns() % 10**9}"
