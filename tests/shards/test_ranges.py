import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shards.store.ranges import Range, merge

RANGES = st.lists(
    st.builds(
        lambda name, start, size: Range(name, start, start + size),
        st.sampled_from("abc"),
        st.integers(0, 300),
        st.integers(1, 40),
    ),
    max_size=30,
)


@given(RANGES, st.integers(0, 50), st.integers(1, 200))
def test_every_range_lies_in_one_request(wanted: list[Range], gap: int, largest: int) -> None:
    requests = merge(wanted, gap, largest)
    assert sorted(place for request in requests for place in request.places) == list(range(len(wanted)))
    for (name, start, stop), places in requests:
        parts = [wanted[place] for place in places]
        assert {part.name for part in parts} == {name}
        assert start == min(part.start for part in parts) and stop == max(part.stop for part in parts)
        assert stop - start <= largest or len(parts) == 1
        covered = np.zeros(stop - start, bool)
        for part in parts:
            covered[part.start - start : part.stop - start] = True
        holes = "".join("x" if byte else "." for byte in covered).split("x")
        assert max(map(len, holes), default=0) <= gap


@given(RANGES)
def test_neighbours_share_a_request(wanted: list[Range]) -> None:
    assert len(merge(wanted, gap=400, largest=400)) == len({item.name for item in wanted})


def test_by_hand() -> None:
    wanted = [Range("b", 0, 10), Range("a", 100, 110), Range("a", 0, 10), Range("a", 15, 20)]
    assert merge(wanted, gap=5, largest=50) == [
        (Range("a", 0, 20), (2, 3)),
        (Range("a", 100, 110), (1,)),
        (Range("b", 0, 10), (0,)),
    ]
    assert merge([]) == []
