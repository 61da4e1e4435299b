"""Weights and training states on disk: what is written, when it counts as written, and how it is read back."""

from pipeline.checkpoint.folders import is_due, latest
from pipeline.checkpoint.training import Resumable, find, save, take_up
from pipeline.checkpoint.weights import Weights, load_weights, read_weights, save_weights, to_network

__all__ = [
    "Resumable",
    "Weights",
    "find",
    "is_due",
    "latest",
    "load_weights",
    "read_weights",
    "save",
    "save_weights",
    "take_up",
    "to_network",
]
