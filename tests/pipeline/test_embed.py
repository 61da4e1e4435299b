"""Every sequence gets the embedding it gets alone, whatever the batches, the processes and the interruptions."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import shards
from pipeline import world
from pipeline.checkpoint import read_weights, to_network
from pipeline.embed import FRAMES_AT_ONCE, Work, deal, embed, equal_lengths, frames_at_once, middle, network_embedder
from pipeline.long_sequences import embed_long, halo
from pipeline.model import HSTL, VARIANTS
from shards.silhouettes import cut
from tests.pipeline.evaluating import ROOT, Bench, make
from tests.processes import run as run_processes

LENGTHS = st.lists(st.integers(1, 12), min_size=0, max_size=60).map(lambda values: np.array(values, np.int64))


@given(LENGTHS, st.integers(1, 40))
def test_batches_hold_every_sequence_once_each_of_one_length_within_the_bound(frames, most):
    batches = equal_lengths(frames, most)
    assert sorted(np.concatenate([np.zeros(0, int), *batches]).tolist()) == list(range(len(frames)))
    for batch in batches:
        assert len(set(frames[batch].tolist())) == 1
        assert len(batch) == 1 or frames[batch].sum() <= most
    lengths = [frames[batch[0]] for batch in batches]
    assert lengths == sorted(lengths, reverse=True)


@given(LENGTHS, st.integers(1, 40), st.integers(1, 9))
def test_each_batch_is_dealt_once_and_the_shares_differ_by_a_batch_at_most(frames, most, world_size):
    batches = equal_lengths(frames, most)
    hands = deal(batches, frames, world_size)
    assert len(hands) == world_size
    assert sorted(number for hand in hands for number in hand) == list(range(len(batches)))
    loads = [sum(int(frames[batches[n]].sum()) for n in hand) for hand in hands]
    assert max(loads) - min(loads) <= max((int(frames[batch].sum()) for batch in batches), default=0)


@given(st.integers(1, 50), st.one_of(st.none(), st.integers(1, 60)))
def test_a_frames_limit_keeps_the_middle(length, limit):
    sequence = np.arange(length)
    kept = middle(sequence, limit)
    assert len(kept) == (length if limit is None else min(length, limit))
    assert kept.tolist() == list(range(kept[0], kept[0] + len(kept)))
    assert abs((kept[0] - 0) - (length - 1 - kept[-1])) <= 1


def test_frames_at_once_by_device():
    assert frames_at_once(torch.device("cuda", 1)) == FRAMES_AT_ONCE["cuda"]
    assert frames_at_once(torch.device("meta")) == FRAMES_AT_ONCE["cpu"]


@pytest.mark.parametrize("most", [3, 7, 15])
@pytest.mark.parametrize("length", [3, 16, 17, 18, 31, 44])
def test_piece_by_piece_along_time_is_the_whole(length, most):
    torch.manual_seed(length)
    network = HSTL("demo", 2).eval().double()
    silhouettes = torch.randint(0, 256, (2, length, 64, 4), dtype=torch.uint8)
    with torch.inference_mode():
        whole = network.embed(silhouettes.double() / 255)
        pieces = embed_long(network, silhouettes, most)
    torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=1e-12)


# The other two have these networks' convolutions.
@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - {"casia-b-17", "grew"}))
def test_piece_by_piece_is_the_whole_for_every_network(variant):
    torch.manual_seed(0)
    network = HSTL(variant, 2).eval().double()
    length = halo(network) + 17
    silhouettes = torch.randint(0, 256, (1, length, 64, 2), dtype=torch.uint8)
    with torch.inference_mode():
        whole = network.embed(silhouettes.double() / 255)
        pieces = embed_long(network, silhouettes, 12)
    torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=1e-12)


def test_a_shorter_halo_would_not_do(monkeypatch):
    torch.manual_seed(0)
    network = HSTL("demo", 2).eval().double()
    silhouettes = torch.randint(0, 256, (1, 60, 64, 8), dtype=torch.uint8)
    right = halo(network)
    with torch.inference_mode():
        whole = network.embed(silhouettes.double() / 255)
        monkeypatch.setattr("pipeline.long_sequences.halo", lambda network: right - 6)
        pieces = embed_long(network, silhouettes, 6)
    assert (pieces - whole).abs().max() > 1e-9


PEAK = """
import resource, sys, torch
from pipeline.model import HSTL
from pipeline.embed import network_embedder
torch.set_num_threads(1)
embedder = network_embedder(HSTL("demo", 2).eval(), 64)
embedder(torch.zeros(1, 65, 64, 44, dtype=torch.uint8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
embedder(torch.zeros(1, int(sys.argv[1]), 64, 44, dtype=torch.uint8))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_a_long_sequence_takes_little_more_memory_than_a_piece():
    result = subprocess.run([sys.executable, "-c", PEAK, "1500"], capture_output=True, text=True, cwd=ROOT, check=True)
    # In one go the first level alone is 1500 frames x 8 channels x 64 x 44 floats: 135 MB, several times over.
    assert float(result.stdout) < 60


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make(tmp_path_factory.mktemp("embed"))


def work_at(bench: Bench, folder: Path, most_frames: int = 24, frames_limit: int | None = None) -> Work:
    shard_set = shards.open(bench.shards)
    return Work.at(folder, shard_set, np.arange(len(shard_set)), "demo", most_frames, frames_limit)


def embed_all(bench: Bench, folder: Path, most_frames: int = 24, frames_limit: int | None = None) -> np.ndarray | None:
    os.environ["ACCELERATE_USE_CPU"] = "true"  # as `accelerate launch` says it to processes without GPUs
    network = to_network(read_weights(bench.weights))
    work = work_at(bench, folder, most_frames, frames_limit)
    found = embed(work, network_embedder(network, most_frames), world.start(), 0, "test")
    return None if found is None else np.array(found)


@pytest.fixture(scope="module")
def alone(bench: Bench) -> np.ndarray:
    """Each sequence by itself, as a whole."""
    network = to_network(read_weights(bench.weights))
    shard_set = shards.open(bench.shards)
    with torch.inference_mode():
        made = [network.embed(torch.tensor(cut(s))[None] / 255) for s in shard_set.read(range(len(shard_set)))]
    return torch.cat(made).numpy()


@pytest.mark.parametrize("most_frames", [1, 9, 24, 1000])
def test_a_batch_is_exactly_each_alone(bench, alone, tmp_path, most_frames):
    found = embed_all(bench, tmp_path, most_frames)
    assert found.shape == alone.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, alone, atol=1e-5 * np.abs(alone).max())


def test_in_bf16_a_batch_points_where_each_alone_does():
    torch.manual_seed(0)
    network = HSTL("demo", 2, precision="bf16").eval()
    embedder = network_embedder(network, 1000)
    for length in (1, 7, 25):
        silhouettes = 255 * torch.randint(0, 2, (6, length, 64, 44), dtype=torch.uint8)
        together, alone = embedder(silhouettes), torch.cat([embedder(one[None]) for one in silhouettes])
        assert (1 - torch.cosine_similarity(together.double(), alone.double(), dim=2)).max() < 1e-5


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_processes_gives_the_same_bytes(bench, tmp_path, world_size):
    (tmp_path / "ranks").mkdir()
    one = embed_all(bench, tmp_path / "one")
    found = run_processes(embed_all, world_size, tmp_path / "ranks", bench, tmp_path / "many")
    assert [rank is None for rank in found] == [False] + [True] * (world_size - 1)
    assert (found[0] == one).all()


def _embed_two(bench: Bench, folder: Path) -> np.ndarray | None:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    shard_set = shards.open(bench.shards)
    work = Work.at(folder, shard_set, np.arange(2), "demo", 1000)
    network = to_network(read_weights(bench.weights))
    found = embed(work, network_embedder(network, 1000), world.start(), 0, "test")
    return None if found is None else np.array(found)


def test_fewer_batches_than_processes(bench, alone, tmp_path):
    found = run_processes(_embed_two, 3, tmp_path, bench, tmp_path / "e")
    np.testing.assert_allclose(found[0], alone[:2], atol=1e-5 * np.abs(alone).max())


def test_loader_processes_change_nothing(bench, alone, tmp_path):
    network = to_network(read_weights(bench.weights))
    found = embed(work_at(bench, tmp_path), network_embedder(network, 24), world.start(), 2, "test")
    np.testing.assert_allclose(found, alone, atol=1e-5 * np.abs(alone).max())


def test_what_is_kept_is_believed_only_for_the_same_question(bench, tmp_path):
    asked = 0

    def counting(silhouettes: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += len(silhouettes)
        return silhouettes.float().mean((1, 2, 3))[:, None, None]

    work = work_at(bench, tmp_path)
    first = embed(work, counting, world.start(), 0, "test")
    again = embed(work, counting, world.start(), 0, "test")
    assert asked == len(work.rows) and (np.array(first) == again).all()
    shard_set = work.shard_set
    others = [
        Work.at(tmp_path, shard_set, work.rows, "another network", 24),
        Work.at(tmp_path, shard_set, work.rows[1:], "demo", 24),
        Work.at(tmp_path, shard_set, work.rows, "demo", 25),
        Work.at(tmp_path, shard_set, work.rows, "demo", 24, frames_limit=5),
    ]
    assert len({other.folder for other in [work, *others]}) == 5
    assert list(work.folder.iterdir()) == [work.whole]


def test_a_frames_limit_embeds_the_middle_frames(bench, tmp_path):
    limited = embed_all(bench, tmp_path, frames_limit=5)
    network = to_network(read_weights(bench.weights))
    shard_set = shards.open(bench.shards)
    with torch.inference_mode():
        for row in range(6):
            frames = middle(cut(shard_set.read([row])[0]), 5)
            wanted = network.embed(torch.tensor(frames)[None] / 255)
            np.testing.assert_allclose(limited[row], wanted[0].numpy(), atol=1e-6)


def test_nothing_to_embed_is_said(bench, tmp_path):
    work = Work.at(tmp_path, shards.open(bench.shards), np.zeros(0, np.int64), "demo", 24)
    with pytest.raises(ValueError, match="no sequence to embed"):
        embed(work, lambda x: x, world.start(), 0, "gallery")


SLOW = """
import sys, time, pathlib, torch
import pipeline.embed as module
from pipeline.checkpoint import read_weights
from tests.pipeline.evaluating import Bench
from tests.pipeline.test_embed import embed_all
write = module._write
def slowly(path, embeddings):
    time.sleep(0.1)
    write(path, embeddings)
module._write = slowly
embed_all(Bench(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])), pathlib.Path(sys.argv[3]))
"""


def test_killed_and_started_again_it_goes_on_and_ends_the_same(bench, tmp_path):
    whole = embed_all(bench, tmp_path / "whole")
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", SLOW, str(bench.shards), str(bench.weights), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*/batch-*.npy"))) < 4:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*/batch-*.npy")}
    work = work_at(bench, folder)
    assert 4 <= len(done) < len(equal_lengths(work.frames, 24))
    (work.folder / "batch-0000001.partial").write_bytes(b"half")

    written = []
    network = to_network(read_weights(bench.weights))
    embedder = network_embedder(network, 24)

    def watched(silhouettes: torch.Tensor) -> torch.Tensor:
        written.append(len(silhouettes))
        return embedder(silhouettes)

    again = embed(work, watched, world.start(), 0, "test")
    assert (np.array(again) == whole).all()
    assert len(written) == len(equal_lengths(work.frames, 24)) - len(done)
