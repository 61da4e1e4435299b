"""Object stores by URL: credentials from the environment's usual places, time limits, errors in words.

`s3://`, `gs://`, `az://`, `http://` and `https://`. For S3 the `AWS_*` variables count, then the profile of
`~/.aws`, then the machine's own role. Nothing here writes a credential anywhere.
"""

import configparser
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SCHEMES = ("s3", "gs", "az", "http", "https")

CONNECT_TIMEOUT = timedelta(seconds=10)
READ_TIMEOUT = timedelta(seconds=20)  # without a byte
# The client's default of 30 s is for a whole body, also of one that is well under way.
WHOLE_TIMEOUT = timedelta(hours=1)

NUM_RETRIES = 8  # with backoff and jitter: 5 to 30 s against a server that is away
RETRY_TIMEOUT = timedelta(minutes=2)
FIRST_BACKOFF, LONGEST_BACKOFF = timedelta(seconds=0.3), timedelta(seconds=10)

_PROFILE_KEYS = {  # of ~/.aws/credentials and ~/.aws/config -> the variable that says the same
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "aws_session_token": "AWS_SESSION_TOKEN",
    "region": "AWS_REGION",
    "endpoint_url": "AWS_ENDPOINT_URL",
}
_SAME_VARIABLE = {
    "AWS_REGION": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "AWS_ENDPOINT_URL": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
}


def is_object_store(url: str | Path) -> bool:
    """Whether `url` names an object store; otherwise it is a local path. Raises ValueError for a scheme that
    is neither.
    """
    if "://" not in str(url):
        return False
    scheme = str(url).split("://", 1)[0]
    if scheme not in SCHEMES:
        raise ValueError(
            f"{url}: {scheme}:// is no known kind of storage; known are a local path, "
            f"{', '.join(f'{known}://' for known in SCHEMES)}."
        )
    return True


def connect(url: str, max_retries: int = NUM_RETRIES) -> Any:
    """The obstore store whose root is `url`; nothing is sent yet.

    max_retries: of the client itself, on 5xx answers, dropped connections and time-outs before the body
    begins; 0 for a caller that retries on its own. Raises ValueError for an URL that names no bucket, or
    settings in the environment that contradict one another.
    """
    from obstore import store  # obstore is not fork-safe: a process that reads no object store never loads it
    from obstore.exceptions import BaseError

    if not is_object_store(url):
        raise ValueError(f"{url} is a local path, not an object store's URL.")
    scheme, host, path = (parts := urlsplit(url)).scheme, parts.netloc, parts.path
    if not host:
        raise ValueError(f"{url} names no bucket: one looks like {scheme}://bucket/folder.")
    if "@" in host:
        shown = parts._replace(netloc=host.rpartition("@")[2], query="", fragment="").geturl()
        raise ValueError(f"{shown}: leave user and password out of the URL, which goes into recipes and logs.")
    if parts.query or parts.fragment:  # not shown: it may be a signature
        shown = parts._replace(query="", fragment="").geturl()
        raise ValueError(f"{shown} was given with ? or #: that names no folder of shards; leave that part out.")
    options: dict[str, Any] = {
        "client_options": {
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": READ_TIMEOUT,
            "timeout": WHOLE_TIMEOUT,
        },
        "retry_config": {
            "max_retries": max_retries,
            "retry_timeout": RETRY_TIMEOUT,
            "backoff": {"init_backoff": FIRST_BACKOFF, "max_backoff": LONGEST_BACKOFF, "base": 2},
        },
    }
    try:
        if scheme in {"http", "https"}:
            options["client_options"]["allow_http"] = scheme == "http"
            return store.HTTPStore.from_url(url.rstrip("/"), **options)
        if scheme == "s3":
            settings: Any = s3_settings()
            options["client_options"]["allow_http"] = settings.get("endpoint", "").startswith("http://")
            return store.S3Store(host, prefix=path.strip("/") or None, config=settings, **options)
        if scheme == "gs":
            return store.GCSStore(host, prefix=path.strip("/") or None, **options)
        endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT") or os.environ.get("AZURE_ENDPOINT") or ""
        options["client_options"]["allow_http"] = endpoint.startswith("http://")
        return store.AzureStore(host, prefix=path.strip("/") or None, **options)
    except (BaseError, ValueError) as error:
        account = " Set AZURE_STORAGE_ACCOUNT_NAME." if "Account must be specified" in str(error) else ""
        raise ValueError(f"{url}: {_plain(error)[:500]}.{account}") from None


def s3_settings() -> dict[str, Any]:
    """What obstore must be told beyond the `AWS_*` variables, which it reads itself.

    Path-style addresses unless AWS_VIRTUAL_HOSTED_STYLE_REQUEST asks otherwise: own servers rarely have a
    name for each bucket.
    """
    given = {}
    for name, variable in _PROFILE_KEYS.items():
        for same in _SAME_VARIABLE.get(variable, (variable,)):
            if value := os.environ.get(same):
                given[name] = value
                break
    profile = _read_profile()
    if "aws_access_key_id" in given:  # keys of one place are never mixed with those of another
        profile = {name: value for name, value in profile.items() if not name.startswith("aws_")}
    merged = {**profile, **given}
    settings: dict[str, Any] = {
        "virtual_hosted_style_request": os.environ.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "false"),
        "region": merged.get("region", "us-east-1"),
        # Few servers but Amazon's own answer a delete of many as it should; one at a time works everywhere.
        "disable_bulk_delete": "true",
    }
    if "endpoint_url" in merged:
        settings["endpoint"] = merged["endpoint_url"]
    for name in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token"):
        if name in merged:
            settings[name.removeprefix("aws_")] = merged[name]
    return settings


def _read_profile() -> dict[str, str]:
    """The static keys, region and endpoint of AWS_PROFILE (or `default`) in the files of ~/.aws."""
    name = os.environ.get("AWS_PROFILE", "default")
    home = Path.home() / ".aws"
    places = (
        (Path(os.environ.get("AWS_CONFIG_FILE", home / "config")), f"profile {name}"),
        (Path(os.environ.get("AWS_CONFIG_FILE", home / "config")), name),
        (Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", home / "credentials")), name),
    )
    found: dict[str, str] = {}
    for path, section in places:
        parser = configparser.RawConfigParser()
        try:
            parser.read(path)
        except configparser.Error:
            raise ValueError(f"{path} is no readable AWS profile file: correct it or move it away.") from None
        if parser.has_section(section):
            found.update({key: value for key, value in parser[section].items() if key in _PROFILE_KEYS})
    return found


class NoBucketError(FileNotFoundError):
    """Not an object is missing, but the whole bucket (Azure: container)."""


_REFUSED_CREDENTIALS = (
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken",  # S3
    "AuthenticationFailed", "InvalidAuthenticationInfo",  # Azure; Google answers in S3's words, or a bare 401
)  # fmt: skip
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or the profile in ~/.aws",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_TOKEN",
}


def explain(error: Exception, url: str) -> OSError:
    """An error of obstore about `url` -> FileNotFoundError, PermissionError or ConnectionError, its cause and
    its remedy in words, credentials left out.
    """
    text = _plain(error)
    if _has(text, "NoSuchBucket", "ContainerNotFound"):  # listing says so in a general error
        parts = urlsplit(url)
        what = "container" if parts.scheme == "az" else "bucket"
        return NoBucketError(f"{url}: there is no {what} {parts.netloc}: create it, or correct the name.")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{url} does not exist (404).")
    where = _endpoint(url)
    place = _CREDENTIALS.get(urlsplit(url).scheme, "how it is served")
    if _has(text, *_REFUSED_CREDENTIALS):
        return PermissionError(f"{url}: {where} does not accept the credentials ({_answer(text)}): check {place}.")
    # The client answers S3's 301, which has no LOCATION, in its own words.
    if _has(text, "AuthorizationHeaderMalformed", "IllegalLocation", "redirect without LOCATION"):
        region = re.search(r"<Region>([\w-]+)</Region>|expecting '([\w-]+)'", text)
        right = f" to {region[1] or region[2]}" if region else " to the bucket's"
        asked = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return PermissionError(f"{url}: the bucket is not in region {asked}: set AWS_REGION{right}.")
    if _has(text, "169.254.169.254", "metadata.google", "MissingCredential", "token request", "/v2/credentials"):
        return PermissionError(
            f"{url}: no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3), "
            f"GOOGLE_APPLICATION_CREDENTIALS (gs) or AZURE_STORAGE_ACCOUNT_NAME and "
            f"AZURE_STORAGE_ACCOUNT_KEY (az), or a profile in ~/.aws."
        )
    if _has(text, "status code: 401", "status code: 403"):
        return PermissionError(
            f"{url}: {where} refuses access ({_answer(text)}): the credentials are wrong or have no right to this; "
            f"check {place}, ask the bucket's owner, or correct the name."
        )
    return ConnectionError(f"{url}: {where} cannot be reached or broke off: {text[:500]}")


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return str(s3_settings().get("endpoint", "Amazon S3"))
    return {"gs": "Google Cloud Storage", "az": "Azure"}.get(parts.scheme, parts.netloc)


def _has(text: str, *signs: str) -> bool:
    return any(sign in text for sign in signs)


def _answer(text: str) -> str:
    """The code in a store's answer, or the answer's number."""
    found = re.search(r"<Code>(\w+)</Code>", text) or re.search(r"status code: (\d+)", text)
    return found[1] if found else "no reason given"


def _plain(error: Exception) -> str:
    """What the client says without its dump of internals, which may hold a signed address."""
    said = re.split(r"\n\nDebug source", str(error), maxsplit=1)[0].strip()
    return re.sub(r"(X-Amz-[A-Za-z]+|sig|Signature)=[^&\s]+", r"\1=...", said)
