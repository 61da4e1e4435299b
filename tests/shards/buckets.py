"""An empty bucket on a real server of each kind: what is true of one object store is true of all.

from tests.shards.buckets import azure, azure_server, bucket, s3, s3_server  # noqa: F401
"""

import pytest

from tests.shards.azure_server import azure, azure_server
from tests.shards.s3_server import s3, s3_server

__all__ = ["azure", "azure_server", "bucket", "s3", "s3_server"]


@pytest.fixture(params=["s3", "azure"])
def bucket(request: pytest.FixtureRequest) -> str:
    """Its URL, `s3://test-...` and `az://test-...`; credentials are in the environment."""
    url: str = request.getfixturevalue(request.param)
    return url
