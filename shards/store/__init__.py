"""Read a data set: folders and object stores behind one reader, every sequence checked against the index.

ranges      which bytes, and by how few requests (pure)     local    a folder
retry       how long to wait, when to give up (pure)        remote   an object store: concurrent, resuming
statistics  counters over processes                         cache    whole shards on the node's disk
shard_set   rows -> checked, decoded silhouettes            cached   an object store behind that cache
"""

from shards.store.local import LocalStore, local_folder
from shards.store.shard_set import DamagedShardError, ShardSet, open, read_manifest

__all__ = ["DamagedShardError", "LocalStore", "ShardSet", "local_folder", "open", "read_manifest"]
