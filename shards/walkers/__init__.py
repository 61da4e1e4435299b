"""Procedural walkers: people who walk, drawn from nothing but a seed, as a raw CASIA-B tree of silhouettes.

The embedded data of this project: `body` says who walks, `gait` how, `figure` puts flesh on the joints (of
`solid` parts), `wear` dresses it, `render` looks at it through a camera, `tree` writes the frames.
"""

from shards.walkers.body import CONDITIONS
from shards.walkers.render import VIEWS
from shards.walkers.tree import WalkersSummary, walk, write

__all__ = ["CONDITIONS", "VIEWS", "WalkersSummary", "walk", "write"]
