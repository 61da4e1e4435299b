import numpy as np
import pytest

from pipeline.baselines import gei
from pipeline.metrics import evaluate


def test_gei_is_the_mean_silhouette():
    silhouettes = np.random.default_rng(0).integers(0, 256, (7, 64, 44), dtype=np.uint8)
    image = gei(silhouettes)
    assert (image.shape, image.dtype) == ((1, 64 * 44), np.float32)
    wanted = np.mean([frame.astype(float) for frame in silhouettes], axis=0).ravel() / 255
    np.testing.assert_allclose(image[0], wanted, rtol=1e-6)


def test_gei_goes_through_the_same_evaluation():
    thin, wide = np.zeros((2, 64, 44), np.uint8), np.zeros((2, 64, 44), np.uint8)
    thin[:, :, 20:24], wide[:, :, 10:34] = 255, 255
    embeddings = np.stack([gei(walk) for walk in (thin, wide, thin, wide)])
    conditions, views = ["nm-01", "nm-01", "nm-05", "nm-05"], ["000", "000", "018", "018"]
    assert evaluate(embeddings, ["a", "b", "a", "b"], conditions, views, "casia-b")["headline"]["NM"] == 100


@pytest.mark.parametrize("shape", [(0, 64, 44), (64, 44)])
def test_gei_needs_a_frame(shape):
    with pytest.raises(ValueError, match="a frame at least"):
        gei(np.zeros(shape, np.uint8))
