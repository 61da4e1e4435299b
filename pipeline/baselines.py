"""What a network has to beat: nearest neighbour on gait energy images."""

import numpy as np


def gei(silhouettes: np.ndarray) -> np.ndarray:
    """Gait energy image, the mean silhouette, as an embedding: float32 [1 part, height * width] in 0..1.

    `silhouettes` uint8 [frames, height, width]. ValueError: no frame. Source: Han and Bhanu, TPAMI 2006.
    """
    if silhouettes.ndim != 3 or not len(silhouettes):
        raise ValueError(
            f"silhouettes have shape {silhouettes.shape}: give [frames, height, width] with a frame at least"
        )
    return (silhouettes.mean(0, dtype=np.float64) / 255).astype(np.float32).reshape(1, -1)
