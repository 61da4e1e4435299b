"""URLs, settings and errors of object stores, against a real S3 server."""

# ruff: noqa: F811

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import shards
from shards.object_store import connect, explain, is_object_store, s3_settings
from tests.processes import free_port
from tests.shards.s3_server import S3Server, s3, s3_server  # noqa: F401

VARIABLES = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "REGION", "DEFAULT_REGION", "PROFILE",
             "ENDPOINT_URL", "ENDPOINT_URL_S3", "ENDPOINT", "VIRTUAL_HOSTED_STYLE_REQUEST")  # fmt: skip


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No AWS_* variable, and an empty home, which it returns."""
    for name in VARIABLES:
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def error_of(url: str, name: str = "x") -> OSError:
    from obstore.exceptions import BaseError

    with pytest.raises((BaseError, FileNotFoundError)) as caught:
        connect(url, max_retries=1).get(name)
    return explain(caught.value, f"{url}/{name}")


def test_which_is_which() -> None:
    assert not is_object_store("runs/set") and not is_object_store(Path("/data"))
    assert all(is_object_store(f"{scheme}://b/x") for scheme in ("s3", "gs", "az", "http", "https"))
    with pytest.raises(ValueError, match=r"ftp:// is no known kind of storage; known are a local path, s3://"):
        is_object_store("ftp://b/x")
    for url, message in (("s3://", "names no bucket"), ("s3://b/x?y", "leave that part out"), ("x", "local")):
        with pytest.raises(ValueError, match=message):
            connect(url)


def test_azure_without_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ValueError, match=r"az://c/x: .*Set AZURE_STORAGE_ACCOUNT_NAME"):
        connect("az://c/x")


def test_profile_is_read_and_variables_win(no_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = no_settings / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text(
        "[default]\naws_access_key_id = A\naws_secret_access_key = B\naws_session_token = C\n"
        "[lab]\naws_access_key_id = L\naws_secret_access_key = M\n"
    )
    (folder / "config").write_text("[default]\nregion = eu-west-1\n[profile lab]\nendpoint_url = http://lab:9\n")
    found = s3_settings()
    assert (found["access_key_id"], found["session_token"], found["region"]) == ("A", "C", "eu-west-1")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    found = s3_settings()
    assert (found["access_key_id"], found["endpoint"], found["region"]) == ("L", "http://lab:9", "us-east-1")
    monkeypatch.setenv("AWS_PROFILE", "default")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "E")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "F")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    found = s3_settings()
    assert (found["access_key_id"], found["secret_access_key"], found["region"]) == ("E", "F", "us-west-2")
    assert "session_token" not in found  # never of another place than the keys
    (folder / "config").write_text("no profile")
    with pytest.raises(ValueError, match="is no readable AWS profile file"):
        s3_settings()


def test_missing_object_and_bucket(s3: str) -> None:
    assert "does not exist (404)" in str(error_of(f"{s3}/set"))
    error = error_of("s3://no-such-bucket/set")
    assert isinstance(error, FileNotFoundError) and "there is no bucket no-such-bucket" in str(error)


@pytest.mark.parametrize(
    ("variable", "code"),
    [("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"), ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch")],
)
def test_wrong_keys(s3: str, monkeypatch: pytest.MonkeyPatch, variable: str, code: str) -> None:
    monkeypatch.setenv(variable, "not-the-right-one")
    error = error_of(s3)
    assert isinstance(error, PermissionError)
    assert f"does not accept the credentials ({code}): check AWS_ACCESS_KEY_ID" in str(error)
    assert "not-the-right-one" not in str(error)


def test_no_credentials(no_settings: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    from obstore.exceptions import BaseError

    with pytest.raises(BaseError):
        connect("s3://bucket/set", max_retries=0).get("x")
    error = explain(BaseError("Error performing PUT http://169.254.169.254/latest/api/token"), "s3://bucket/set")
    assert isinstance(error, PermissionError)
    assert "no credentials found: set AWS_ACCESS_KEY_ID" in str(error)


def test_no_server(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    error = error_of(s3)
    assert isinstance(error, ConnectionError) and f"{endpoint} cannot be reached" in str(error)


class OfAnotherRegion(BaseHTTPRequestHandler):
    """Answers as Amazon does for a bucket that lies elsewhere."""

    answer: tuple[int, bytes]

    def do_GET(self) -> None:
        status, said = self.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "said", "remedy"),
    [
        (
            400,
            "<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is malformed; the "
            "region 'us-east-1' is wrong; expecting 'eu-central-1'</Message><Region>eu-central-1</Region></Error>",
            "set AWS_REGION to eu-central-1",
        ),
        (301, "<Error><Code>PermanentRedirect</Code></Error>", "set AWS_REGION to the bucket's"),
    ],
)
def test_wrong_region(status: int, said: str, remedy: str, no_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OfAnotherRegion, "answer", (status, said.encode()), raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), OfAnotherRegion)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "B")
    with pytest.raises(PermissionError, match=f"the bucket is not in region us-east-1: {remedy}"):
        shards.open("s3://bucket/set", patience=2)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("url", ["http://me:secret@host/set", "https://host/set?sv=2021&sig=secret", "az://c/x#secret"])
def test_no_secret_of_an_url_is_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"leave .* out") as caught:
        connect(url)
    assert "secret" not in str(caught.value) and urlsplit(url).scheme in str(caught.value)


def test_a_401_is_called_one() -> None:
    from obstore.exceptions import BaseError

    error = explain(BaseError("Server returned non-2xx status code: 401 Unauthorized: "), "gs://sets/a")
    assert isinstance(error, PermissionError) and "refuses access (401)" in str(error)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(error)


def test_signed_addresses_and_internals_are_left_out() -> None:
    said = "cannot GET http://h/x?X-Amz-Signature=abc123&X-Amz-Credential=me\n\nDebug source:\nsecret"
    text = str(explain(RuntimeError(said), "s3://bucket/set"))
    assert "abc123" not in text and "=me" not in text and "secret" not in text
