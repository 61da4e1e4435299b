import multiprocessing
import pickle
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import shards
from shards.batches import (
    Batches,
    SubjectTable,
    _subject_order,
    _subjects_of_step,
    choose_frames,
    draw,
    plan,
    runs,
)
from shards.silhouettes import cut

SIZES = st.lists(st.integers(1, 12), min_size=2, max_size=12)


def table_of(sizes: list[int], seed: int = 0) -> pa.Table:
    """An index with `sizes[i]` train sequences of subject i, shuffled, test subjects between them."""
    subjects = [f"{i:03d}" for i, size in enumerate(sizes) for _ in range(size)] + ["900"] * 5
    order = np.random.default_rng(seed).permutation(len(subjects))
    shuffled = [subjects[i] for i in order]
    return pa.table({"subject": shuffled, "split": ["test" if s == "900" else "train" for s in shuffled]})


@given(SIZES, st.integers(1, 12), st.integers(1, 10), st.integers(0, 2**40), st.integers(0, 10**7), st.data())
@settings(max_examples=150, deadline=None)
def test_a_batch_is_p_subjects_of_k_sequences(sizes, P, K, seed, step, data) -> None:
    P = min(P, len(sizes))
    index = table_of(sizes, seed % 100)
    rows = plan(index, "train", P, K, seed, step)
    subjects = np.array(index["subject"].to_pylist())[rows].reshape(P, K)
    assert rows.dtype == np.int64 and (subjects == subjects[:, :1]).all() and len(set(subjects[:, 0])) == P
    for mine, subject in zip(rows.reshape(P, K), subjects[:, 0], strict=True):
        times = Counter(mine.tolist())
        assert len(times) == min(K, sizes[int(subject)])  # all of them when fewer
        assert max(times.values()) - min(times.values()) <= 1  # topped up evenly
    np.testing.assert_array_equal(plan(index, "train", P, K, seed, step), rows)


@given(SIZES, st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_an_epoch_deals_out_every_subject_once(sizes, P, seed) -> None:
    P = min(P, len(sizes))
    table = SubjectTable.of(table_of(sizes), "train")
    stream = np.concatenate([draw(table, P, 1, seed, step)[1] for step in range(3 * len(sizes))])
    for epoch in stream.reshape(-1, len(sizes)):
        assert sorted(epoch) == list(range(len(sizes)))


@given(st.integers(1, 90), st.integers(1, 40), st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_no_subject_comes_twice_in_a_batch_or_more_often_than_another(num_subjects, P, seed, start) -> None:
    P = min(P, num_subjects)
    counts = np.zeros(num_subjects, int)
    for step in range(120):
        batch = _subjects_of_step(num_subjects, P, seed, step)
        assert len(set(batch.tolist())) == P
        counts[batch] += 1
        assert counts.max() - counts.min() <= 1
    _subject_order.cache_clear()  # from any start, knowing nothing of the steps before
    np.testing.assert_array_equal(_subjects_of_step(num_subjects, P, seed, 119), batch)
    far = np.concatenate([_subjects_of_step(num_subjects, P, seed, start + step) for step in range(num_subjects)])
    assert (np.bincount(far) == P).all() or start * P % num_subjects  # whole epochs, when begun with one
    assert np.ptp(np.bincount(far, minlength=num_subjects)) <= 2


def test_subjects_stand_anywhere_in_an_epoch() -> None:
    """The repair at an epoch's start must not show: every subject comes everywhere equally often."""
    places = np.zeros((7, 7))
    for seed in range(700):
        for epoch in range(3):
            places[_subject_order(7, 3, seed, epoch), np.arange(7)] += 1
    assert np.abs(places / 300 - 1).max() < 0.25


def test_subjects_and_sequences_come_equally_often_in_the_long_run() -> None:
    table = SubjectTable.of(table_of([6] * 10), "train")
    rows, labels = map(np.concatenate, zip(*(draw(table, 4, 2, 1, step) for step in range(3_000)), strict=True))
    assert (np.bincount(labels) == 2 * 3_000 * 4 // 10).all()
    sequences = np.bincount(rows, minlength=65)[table.rows] / (3_000 * 0.4 * 2 / 6)
    assert np.abs(sequences - 1).max() < 0.2


def test_order_depends_on_seed_and_epoch() -> None:
    table = SubjectTable.of(table_of([4] * 50), "train")
    batches = {draw(table, 8, 4, seed, step)[0].tobytes() for seed in range(5) for step in range(20)}
    assert len(batches) == 100


def test_table_by_hand() -> None:
    index = pa.table({"subject": ["b", "a", "c", "b"], "split": ["train", "train", "test", "train"]})
    table = SubjectTable.of(index, "train")
    assert table.subjects.tolist() == ["a", "b"]
    assert table.rows.tolist() == [1, 0, 3] and table.starts.tolist() == [0, 1, 3]
    with pytest.raises(ValueError, match="no split 'valid', it has: test, train"):
        SubjectTable.of(index, "valid")


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 10), st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_frames_are_sorted_within_a_window_of_the_repeated_sequence(num_frames, frames, skip, seed) -> None:
    several = choose_frames(np.array([num_frames, 7, num_frames]), frames, skip, np.random.default_rng(seed))
    assert several.shape == (3, frames)
    chosen = several[2]
    assert chosen.min() >= 0 and chosen.max() < num_frames
    steps = np.diff(chosen) % num_frames  # how far time moves on, where the sequence repeats too
    assert steps.sum() <= frames + skip - 1
    if num_frames >= frames + skip:
        assert (np.diff(chosen) > 0).all() and chosen[-1] - chosen[0] < frames + skip
    if skip == 0:
        assert (np.diff(chosen) % num_frames == 1 % num_frames).all()


def test_every_window_is_possible() -> None:
    generator = np.random.default_rng(0)
    starts = set(choose_frames(np.full(200, 12), 10, 0, generator)[:, 0])
    assert starts == {0, 1, 2}
    frames = set(map(tuple, choose_frames(np.full(500, 4), 2, 1, generator)))
    assert frames == {(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)}


def global_batch(shard_set: shards.ShardSet, step: int, world_size: int = 1) -> dict[str, torch.Tensor]:
    parts = [
        Batches(shard_set, "train", 4, 6, 5, 2, seed=3, rank=rank, world_size=world_size)[step]
        for rank in range(world_size)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_contents(packed: Path) -> None:
    shard_set = shards.open(packed)
    batches = Batches(shard_set, "train", 4, 6, 5, 2, seed=3)
    batch = batches[11]
    assert batches.num_classes == 5
    assert batch["silhouettes"].shape == (24, 5, 64, 44) and batch["silhouettes"].dtype == torch.uint8
    assert batch["labels"].dtype == batch["rows"].dtype == torch.int64
    index = shard_set.index.to_pylist()
    for silhouettes, label, row in zip(*batch.values(), strict=True):
        assert index[row]["subject"] == f"{int(label) + 1:03d}" and index[row]["split"] == "train"
        whole = {frame.tobytes() for frame in cut(shard_set.read([int(row)])[0])}
        assert all(frame.numpy().tobytes() in whole for frame in silhouettes)


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_global_batch_does_not_depend_on_the_world(packed: Path, world_size: int) -> None:
    shard_set = shards.open(packed)
    for step in (0, 1, 7, 1_000_000):
        assert_same(global_batch(shard_set, step, world_size), global_batch(shard_set, step))


@pytest.mark.parametrize(
    ("num_workers", "context"),
    [
        (0, None),
        (1, "fork"),
        (2, "forkserver"),
        pytest.param(3, "forkserver", marks=pytest.mark.slow),
        pytest.param(4, "forkserver", marks=pytest.mark.slow),
    ],
)
def test_loader_gives_the_same_from_every_start(packed: Path, num_workers: int, context: str | None) -> None:
    shard_set = shards.open(packed)
    expected = [global_batch(shard_set, step) for step in range(5)]
    for start in (0, 3):
        loader = torch.utils.data.DataLoader(
            Batches(shard_set, "train", 4, 6, 5, 2, seed=3),
            batch_size=None,
            sampler=range(start, 5),
            num_workers=num_workers,
            multiprocessing_context=multiprocessing.get_context(context) if context else None,
        )
        found = list(loader)
        assert len(found) == 5 - start
        for a, b in zip(found, expected[start:], strict=True):
            assert_same(a, b)


def test_pickles_small(packed: Path) -> None:
    assert len(pickle.dumps(Batches(shards.open(packed), "train", 2, 2, 5))) < 5_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"subjects_per_batch": 6},
            r"batch.subjects is 6, split 'train' of .* has 5 subjects: set batch.subjects to 5",
        ),
        (
            {"world_size": 3},
            r"batch.subjects 2 x batch.sequences 4 = 8 sequences cannot be shared evenly by 3 processes",
        ),
        ({"split": "valid"}, "no split 'valid'"),
        ({"rank": 2, "world_size": 2}, "rank is 2, it must be from 0 to 1"),
        ({"frames": 0}, "batch.frames must be at least 1, it is 0"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_mistakes(packed: Path, change: dict, message: str) -> None:
    options = {"split": "train", "subjects_per_batch": 2, "sequences_per_subject": 4, "frames": 5, **change}
    with pytest.raises(ValueError, match=message):
        Batches(shards.open(packed), **options)


def test_a_batch_is_drawn_in_about_a_millisecond_from_a_million_rows() -> None:
    subjects = np.char.zfill((np.arange(1_000_000) % 20_000).astype(str), 5)
    table = SubjectTable.of(pa.table({"subject": subjects, "split": ["train"] * 1_000_000}), "train")
    seconds = []
    for step in range(50):
        started = time.perf_counter()
        draw(table, 32, 8, 0, step)
        seconds.append(time.perf_counter() - started)
    assert np.median(seconds) < 2e-3  # measured 0.4 ms of CPU; the rest is room for a busy machine


@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 6), st.integers(0, 99))
def test_runs_copy_what_gathering_would(lengths, frames, frames_skip, seed) -> None:
    chosen = choose_frames(np.array(lengths), frames, frames_skip, np.random.default_rng(seed))
    for mine, pieces in zip(chosen, runs(chosen), strict=True):
        copied = np.full(frames, -1)
        for start, stop, first in pieces:
            copied[start:stop] = np.arange(first, first + stop - start)
        np.testing.assert_array_equal(copied, mine)
