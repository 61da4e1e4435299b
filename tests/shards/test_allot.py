import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.allot import BYTES_PER_FRAME, BYTES_PER_SEQUENCE, ShardPlan, allot
from shards.partition import Partition
from shards.skips import Skips
from shards.sources import RawSequence

NAMES = [f"{i:03d}" for i in range(40)]
PARTITION = Partition("mine", frozenset(NAMES[:20]), frozenset(NAMES[20:35]))


def sequence(subject: str, view: str = "000", num_frames: int = 10) -> RawSequence:
    return RawSequence(subject, "nm-01", view, f"{subject}/nm-01/{view}", num_frames)


def shards_of(sequences: list[RawSequence], shard_bytes: int = 50_000) -> list[ShardPlan]:
    return allot(sequences, PARTITION, "casia-b", shard_bytes, Skips())


@given(
    st.dictionaries(st.sampled_from(NAMES[:35]), st.integers(1, 6), min_size=1),
    st.randoms(),
    st.integers(9_000, 10**6),  # the largest subject weighs 33,600
)
def test_every_sequence_once_subjects_whole_order_of_finding_irrelevant(sizes, random, shard_bytes) -> None:
    sequences = [sequence(s, f"{v:03d}") for s, num_views in sizes.items() for v in range(num_views)]
    plans = shards_of(sequences, shard_bytes)
    assert sorted(itertools.chain(*(plan.sequences for plan in plans))) == sorted(sequences)
    homes = [{s.subject for s in plan.sequences} for plan in plans]
    assert sum(map(len, homes)) == len(sizes)
    for plan, home in zip(plans, homes, strict=True):
        assert {PARTITION.split_of(subject) for subject in home} == {plan.split}
        weight = sum(BYTES_PER_FRAME * s.num_raw_frames + BYTES_PER_SEQUENCE for s in plan.sequences)
        assert weight <= shard_bytes or len(home) == 1
    random.shuffle(sequences)
    assert shards_of(sequences, shard_bytes) == plans


def test_names_and_order() -> None:
    plans = shards_of([sequence(name) for name in NAMES[:35]], shard_bytes=20_000)
    assert [plan.name for plan in plans] == [f"train-{i:06d}.tar" for i in range(7)] + [
        f"test-{i:06d}.tar" for i in range(5)
    ]
    order = [s.subject for plan in plans if plan.split == "train" for s in plan.sequences]
    assert order != sorted(order)


def test_a_subject_far_larger_than_a_shard_goes_on_over_several() -> None:
    probes = [sequence("020", f"{i:05d}") for i in range(100)]
    plans = shards_of([*probes, sequence("021"), sequence("001")], shard_bytes=50_000)
    tests = [plan for plan in plans if plan.split == "test"]
    assert len(tests) > 10
    assert sorted(s for plan in tests for s in plan.sequences) == [*probes, sequence("021")]
    for plan in tests:
        assert sum(BYTES_PER_FRAME * s.num_raw_frames + BYTES_PER_SEQUENCE for s in plan.sequences) <= 50_000


def test_digest_follows_content() -> None:
    before = shards_of([sequence("001"), sequence("002")])
    assert shards_of([sequence("002"), sequence("001")]) == before
    assert shards_of([sequence("001"), sequence("002", num_frames=11)])[0].digest != before[0].digest


def test_subject_in_neither_list_is_counted() -> None:
    skips = Skips()
    allot([sequence("001"), sequence("039"), sequence("039", "090")], PARTITION, "casia-b", 1, skips)
    assert list(skips) == [("sequence of a subject in neither train nor test of partition mine", 2, ["039"])]


def test_no_subject_in_the_partition() -> None:
    with pytest.raises(ValueError, match=r"none of the 1 subjects found \(such as 039\) is in partition mine"):
        shards_of([sequence("039")])


def test_two_sequences_of_one_key() -> None:
    one = RawSequence("a-b", "nm-01", "000", "first", 1)
    two = RawSequence("a", "b-nm-01", "000", "second", 1)
    with pytest.raises(ValueError, match="first and second both have the key 'a-b-nm-01-000'"):
        shards_of([one, two])
