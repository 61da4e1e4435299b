"""The fast way to ranks holds every distance, settles what it cannot decide, and comes to the exact figures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics import assess, distances, evaluate, intervals, matching


def exact(probes: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    difference = probes[:, None].astype(np.longdouble) - gallery[None].astype(np.longdouble)
    return np.sqrt((difference**2).sum(-1)).mean(-1)


def nasty(seed: int, offset: float, spread: float, parts: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = offset + rng.standard_normal((1, parts, 16))
    values = (base + spread * rng.standard_normal((30, parts, 16))).astype(np.float32)
    values[20] = values[0]  # the very same
    values[21] = np.nextafter(values[1], np.float32(np.inf))  # the least possible difference
    values[22, 0] *= 1000  # one part far out
    return values


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from([0.0, 1.0, 1e4]), st.sampled_from([0.0, 1e-6, 1.0, 1e4]), st.integers(1, 5)
)
def test_every_distance_lies_in_its_interval(seed, offset, spread, parts):
    values = nasty(seed, offset, spread, parts)
    wanted = exact(values[:20], values[20:])
    (block,) = intervals.blocks(values, np.arange(20), np.arange(20, 30))
    assert (block.low.numpy() <= wanted).all()
    assert (block.high.numpy() >= wanted).all()
    i, j = (axis.ravel() for axis in np.indices(wanted.shape))
    found = block.exact(torch.from_numpy(i), torch.from_numpy(j)).numpy().reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted.astype(np.float64), rtol=1.2e-7)


def test_intervals_are_narrow_where_parts_are_far_apart():
    values = np.random.default_rng(0).standard_normal((80, 50, 256)).astype(np.float32)
    (block,) = intervals.blocks(values, np.arange(40), np.arange(40, 80))
    assert ((block.high - block.low) / block.high).max() < 3e-4


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 2), (512, 512)])
def test_any_tiles_hold_the_same(monkeypatch, rows, columns):
    values = nasty(1, 0.0, 1.0, 3)
    wanted = exact(values[:20], values[20:])
    monkeypatch.setattr(intervals, "TILE_ROWS", rows)
    monkeypatch.setattr(intervals, "TILE_COLUMNS", columns)
    monkeypatch.setattr(intervals, "BLOCK_ROWS", 7)
    seen = 0
    for block in intervals.blocks(values, np.arange(20), np.arange(20, 30)):
        assert (block.low.numpy() <= wanted[block.rows]).all()
        assert (block.high.numpy() >= wanted[block.rows]).all()
        seen += block.rows.stop - block.rows.start
    assert seen == 20


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_lengths_beyond_what_fp32_can_square_are_taken_in_full(factor):
    values = (np.random.default_rng(2).standard_normal((12, 2, 4)) * factor).astype(np.float32)
    (block,) = intervals.blocks(values, np.arange(6), np.arange(6, 12))
    wanted = exact(values[:6], values[6:])
    assert (block.low.numpy() <= wanted * (1 + 1e-6)).all()
    assert (block.high.numpy() >= wanted * (1 - 1e-6)).all()
    assert torch.isfinite(block.high).all()


def data(seed: int, spread: float):
    """Three people who differ by `spread` about one walk: the smaller, the more intervals meet."""
    rng = np.random.default_rng(seed)
    every = [(s, c, v) for s in "abc" for c in ("nm-01", "nm-02", "nm-05", "bg-01", "cl-02") for v in ("000", "090")]
    columns = [list(column) for column in zip(*every, strict=True)]
    embeddings = 100 + spread * rng.integers(0, 3, (len(every), 2, 3)).astype(np.float32)
    return embeddings, *columns


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 2.0**-16, 1.0]), st.sampled_from([0.0, 1.0]))
def test_figures_are_those_of_exact_distances(seed, spread, many):
    values = data(seed, spread)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "MANY", many)  # 0: whole blocks in full, 1: pair by pair
        fast = assess(*values, "casia-b")
        patch.setattr(intervals, "blocks", only_exact(intervals.blocks))
        slow = assess(*values, "casia-b")
    assert fast == slow


def only_exact(blocks):
    return lambda *arguments, **options: blocks(*arguments, **{**options, "exact": True})


def test_a_torch_allowed_to_round_more_gets_exact_distances():
    values = nasty(3, 0.0, 1.0, 2)
    torch.set_float32_matmul_precision("medium")
    try:
        (block,) = intervals.blocks(values, np.arange(20), np.arange(20, 30))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert block.low is block.high


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_cosine_equals_the_naive_loop(seed, parts):
    rng = np.random.default_rng(seed)
    probes = rng.standard_normal((5, parts, 8)).astype(np.float32)
    gallery = rng.standard_normal((6, parts, 8)).astype(np.float32)
    gallery[0] = 3 * probes[0]  # the same direction
    found = distances.distances(probes, gallery, metric="cosine").numpy()
    for i, a in enumerate(probes.astype(np.float64)):
        for j, b in enumerate(gallery.astype(np.float64)):
            angles = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            assert found[i, j] == pytest.approx((1 - angles).mean(), rel=1e-6, abs=1e-13)


def test_cosine_takes_no_notice_of_length():
    values = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[9.0, 1.0]]], np.float32)
    names = ["a", "b", "a"], ["nm-01", "nm-01", "nm-05"], ["000", "000", "090"]
    scaled = values * np.array([1, 10, 100], np.float32)[:, None, None]
    assert evaluate(scaled, *names, "casia-b", distance="cosine")["headline"]["NM"] == 100.0
    assert distances.distances(scaled[2:], scaled[:2], metric="cosine")[0].argmin() == 0


def test_threads_are_as_many_after_as_before():
    before = torch.get_num_threads()
    evaluate(*data(0, 1.0), "casia-b")
    assert torch.get_num_threads() == before
