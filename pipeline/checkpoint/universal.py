"""DeepSpeed's universal checkpoints: a state written by some processes, taken up by another number of them."""

import shutil
import subprocess
import sys
from pathlib import Path

STATE = "pytorch_model"
"""Accelerate's name of DeepSpeed's folder in a state."""


def convert(state: Path, to: Path) -> Path:
    """Writes the state folder `state` (of `Accelerator.save_state`) to `to`, for any number of processes.

    To be called by one process; `to` must be seen by all. Takes one to two times the size of the state on disk.
    Raises RuntimeError with DeepSpeed's output where the conversion fails.
    """
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    # A program of its own: it starts processes, and reads pickles of DeepSpeed's classes.
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(state / STATE), "--output_folder", str(to / STATE)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(to, ignore_errors=True)
        raise RuntimeError(f"DeepSpeed could not convert {state} for another number of processes:\n{done.stderr}")
    return to
