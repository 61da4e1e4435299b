"""What a shard is: silhouette sequences packed into WebDataset tars with an index beside them, and read back.

`open` and `Batches` are loaded on first use: a packing worker needs neither, and `Batches` brings torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.batches import Batches
    from shards.store import ShardSet, open

__all__ = ["Batches", "ShardSet", "open"]

_HOME = {"Batches": "shards.batches", "ShardSet": "shards.store", "open": "shards.store"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'shards' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
