"""A real Azure Blob server for tests: Azurite, Microsoft's own, on a free port, with real keys.

    from tests.shards.azure_server import azure, azure_server  # noqa: F401
    def test(azure: str): ...                                  # az://test-..., credentials in the environment

It is npm's `azurite`; tests skip without `azurite-blob` on PATH.
"""

import base64
import hashlib
import hmac
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate

import pytest

from tests.processes import free_port
from tests.shards.servers import Server, name_of_test

ACCOUNT = "testaccount"
KEY = base64.b64encode(b"a key of the tests").decode()
API_VERSION = "2021-12-02"


@dataclass
class AzureServer(Server):
    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    def environment(self, **changes: str) -> dict[str, str]:
        """What a client needs. `changes` override, such as AZURE_STORAGE_ACCOUNT_KEY=another."""
        return {
            "AZURE_STORAGE_ENDPOINT": self.endpoint,
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            **changes,
        }

    def create_container(self, name: str) -> str:
        """Returns its URL `az://name`. By hand: obstore makes no containers."""
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": API_VERSION}
        # Microsoft Learn, "Authorize with Shared Key": verb, eleven empty headers, x-ms-*, the resource.
        signed = [f"{key}:{value}" for key, value in headers.items()]
        text = "\n".join(["PUT", *[""] * 11, *signed, f"/{ACCOUNT}/{ACCOUNT}/{name}", "restype:container"])
        digest = hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        headers["Content-Length"] = "0"  # an empty one is signed as none
        address = f"{self.endpoint}/{name}?restype=container"
        urllib.request.urlopen(urllib.request.Request(address, method="PUT", headers=headers), timeout=10).close()
        return f"az://{name}"

    def command(self) -> list[str]:
        return [
            "azurite-blob", "--blobHost", "127.0.0.1", "--blobPort", str(self.port),
            "--location", str(self.folder / "blobs"), "--silent", "--skipApiVersionCheck", "--disableTelemetry",
        ]  # fmt: skip

    def variables(self) -> dict[str, str]:
        return {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """One server for the whole test run."""
    if shutil.which("azurite-blob") is None:
        pytest.skip("no Azure Blob server here: npm install --global azurite (tests only)")
    server = AzureServer(tmp_path_factory.mktemp("azure"), free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def azure(azure_server: AzureServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """URL of an empty container of the test's own, credentials in the environment."""
    for name, value in azure_server.environment().items():
        monkeypatch.setenv(name, value)
    return azure_server.create_container(name_of_test(request))
