"""Weights and training states on disk: what is written, when it counts as written, and how it is read back."""

from pipeline.checkpoint.training import latest, resume, save, versions
from pipeline.checkpoint.weights import Weights, load_weights, read_weights, save_weights, to_network

__all__ = [
    "Weights",
    "latest",
    "load_weights",
    "read_weights",
    "resume",
    "save",
    "save_weights",
    "to_network",
    "versions",
]
