"""Distances are exact where ranks need it, and the same in any blocks."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics import distances as module
from pipeline.metrics import evaluate, ranks
from pipeline.metrics.distances import blocks, distances


def exact(probes: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    difference = probes[:, None].astype(np.longdouble) - gallery[None].astype(np.longdouble)
    return np.sqrt((difference**2).sum(-1)).mean(-1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 1.0, 1e3, 1e5]),
    st.sampled_from([1e-7, 1e-4, 1.0, 1e4]),
    st.integers(1, 4),
)
def test_right_to_a_unit_in_the_last_place_far_from_the_origin_and_near_each_other(seed, offset, spread, parts):
    rng = np.random.default_rng(seed)
    base = offset + rng.standard_normal((1, parts, 16))
    probes = (base + spread * rng.standard_normal((7, parts, 16))).astype(np.float32)
    gallery = (base + spread * rng.standard_normal((9, parts, 16))).astype(np.float32)
    gallery[0] = probes[0]  # the very same
    gallery[1] = np.nextafter(probes[1], np.float32(np.inf))  # the least possible difference, everywhere
    wanted = exact(probes, gallery)
    found = distances(probes, gallery).numpy()
    assert found.dtype == np.float32
    assert found[0, 0] == 0
    np.testing.assert_allclose(found, wanted.astype(np.float64), rtol=1.2e-7, atol=0)


def test_fp32_expansion_would_rank_near_duplicates_wrongly_and_this_does_not():
    rng = np.random.default_rng(0)
    probe = rng.standard_normal((1, 4, 128)).astype(np.float32) * 10
    steps = np.linspace(1e-4, 1e-2, 50, dtype=np.float32)
    gallery = np.concatenate([probe + step for step in steps] + [rng.standard_normal((20, 4, 128)).astype(np.float32)])
    order = ranks.nearest(distances(probe, gallery), 50)[1][0].tolist()
    assert order == list(range(50))
    a, b = torch.from_numpy(probe[:, 0]), torch.from_numpy(gallery[:, 0])
    naive = (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0).sqrt()
    assert naive[0, :50].argsort().tolist() != order


def test_all_the_same_embedding_is_at_distance_zero():
    same = np.full((5, 3, 8), 0.1, np.float32)
    assert distances(same, same).abs().max() == 0


@pytest.mark.parametrize(("block_elements", "tile"), [(1, 2), (40, 3), (95, 5), (1 << 24, 1 << 11)])
def test_any_blocks_give_the_whole_matrix_in_order_and_within_bounds(monkeypatch, block_elements, tile):
    rng = np.random.default_rng(1)
    embeddings = rng.standard_normal((50, 3, 8)).astype(np.float32)
    probe_rows, gallery_rows = rng.permutation(50)[:23], rng.permutation(50)[:19]
    whole = exact(embeddings[probe_rows], embeddings[gallery_rows]).astype(np.float64)
    monkeypatch.setattr(module, "TILE", tile)
    seen = []
    for rows, block in blocks(embeddings, probe_rows, gallery_rows, block_elements=block_elements):
        assert block.numel() <= max(block_elements, 19)
        np.testing.assert_allclose(block.numpy(), whole[rows], rtol=1.2e-7)
        seen.extend(range(rows.start, rows.stop))
    assert seen == list(range(23))


def test_a_memory_mapped_file_is_read_a_tile_at_a_time(tmp_path, monkeypatch):
    values = np.random.default_rng(2).standard_normal((60, 2, 4)).astype(np.float32)
    np.save(tmp_path / "e.npy", values)
    monkeypatch.setattr(module, "TILE", 8)
    monkeypatch.setattr(module, "SPREAD", 4)
    largest = 0

    class Watched(np.memmap):
        def __getitem__(self, key):
            nonlocal largest
            got = np.asarray(super().__getitem__(key))
            largest = max(largest, len(got))
            return got

    mapped = np.load(tmp_path / "e.npy", mmap_mode="r").view(Watched)
    got = torch.cat([block for _, block in blocks(mapped, np.arange(30), np.arange(30, 60), block_elements=90)])
    np.testing.assert_allclose(got.numpy(), exact(values[:30], values[30:]).astype(np.float64), rtol=1.2e-7)
    assert 0 < largest <= 8


def test_pages_of_a_memory_mapped_file_are_given_back(tmp_path):
    values = np.random.default_rng(4).standard_normal((2000, 10, 512)).astype(np.float32)
    np.save(tmp_path / "e.npy", values)

    def resident() -> float:
        """MB of mapped files in memory."""
        status = Path("/proc/self/status")
        if not status.exists():
            pytest.skip("no /proc here")
        return int(re.search(r"RssFile:\s+(\d+)", status.read_text())[1]) / 1024

    mapped = np.load(tmp_path / "e.npy", mmap_mode="r")
    before = resident()
    subjects = [str(i // 4) for i in range(2000)]
    evaluate(mapped, subjects, ["nm-01", "nm-05"] * 1000, ["000", "018", "018", "000"] * 500, "casia-b")
    assert resident() - before < 8  # of 41
    assert (np.array(mapped) == values).all()


def test_empty_sides():
    embeddings = np.zeros((3, 2, 4), np.float32)
    assert list(blocks(embeddings, np.arange(0), np.arange(3))) == []
    ((rows, block),) = blocks(embeddings, np.arange(3), np.arange(0))
    assert (rows, tuple(block.shape)) == (slice(0, 3), (3, 0))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 15), st.sampled_from([2, 1000]))
def test_ranks_equal_sorting(seed, n, k, levels):
    rng = np.random.default_rng(seed)
    matrix = torch.from_numpy(rng.integers(0, levels, (4, n)).astype(np.float32)) / 7
    matrix[0, 0] = -0.0
    right = torch.from_numpy(rng.random((4, n)) < 0.3)
    keys = ranks.keys(matrix)
    near, where = ranks.nearest(matrix, k)
    first = ranks.first_match(keys, right)
    average, negative = ranks.precision(keys, right)
    for i in range(4):
        order = sorted(range(n), key=lambda j, i=i: (float(matrix[i, j]), j))
        assert where[i].tolist() == order[:k]
        assert near[i].tolist() == [float(matrix[i, j]) for j in order[:k]]
        hits = [rank for rank, j in enumerate(order, 1) if right[i, j]]
        assert first[i] == (hits[0] if hits else ranks.NO_MATCH)
        wanted = np.mean([m / rank for m, rank in enumerate(hits, 1)]) if hits else 0
        assert average[i] == pytest.approx(wanted)
        assert negative[i] == pytest.approx(len(hits) / hits[-1] if hits else 0)


def test_top_k_of_blocks_is_top_k_of_the_whole():
    embeddings = np.random.default_rng(3).standard_normal((40, 2, 4)).astype(np.float32)
    pieces = blocks(embeddings, np.arange(25), np.arange(25, 40), block_elements=45)
    near, where = ranks.nearest_of_blocks(pieces, 5)
    whole_near, whole_where = ranks.nearest(distances(embeddings[:25], embeddings[25:]), 5)
    assert torch.equal(where, whole_where)
    torch.testing.assert_close(near, whole_near, rtol=2e-7, atol=0)


def test_cumulative_match_leaves_out_probes_that_met_no_gallery():
    first = np.array([1, 3, ranks.NO_MATCH, ranks.NO_GALLERY], np.int32)
    assert ranks.cumulative_match(first, 3) == pytest.approx([100 / 3, 100 / 3, 200 / 3])
    assert np.isnan(ranks.cumulative_match(first[3:], 2)).all()
    assert ranks.first_match(torch.zeros(2, 0).long(), torch.zeros(2, 0).bool()).tolist() == [ranks.NO_GALLERY] * 2
