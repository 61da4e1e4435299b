import gzip
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shards import sequence
from shards.sequence import decode, encode, make_key

SEQUENCES = arrays.arrays(np.uint8, st.tuples(st.integers(0, 4), st.integers(1, 8), st.integers(1, 8)))


@given(SEQUENCES)
def test_round_trip_and_others_read_it(silhouettes: np.ndarray) -> None:
    payload = encode(silhouettes)
    np.testing.assert_array_equal(decode(payload), silhouettes)
    np.testing.assert_array_equal(np.load(io.BytesIO(gzip.decompress(payload))), silhouettes)


@given(SEQUENCES)
def test_reads_what_numpy_and_gzip_wrote(silhouettes: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, silhouettes)
    np.testing.assert_array_equal(decode(gzip.compress(buffer.getvalue())), silhouettes)


def test_same_array_same_bytes_whatever_its_memory() -> None:
    silhouettes = np.random.default_rng(0).integers(0, 2, (5, 64, 64), np.uint8) * 255
    fortran = np.asfortranarray(silhouettes)
    assert encode(silhouettes) == encode(fortran) == encode(np.flip(np.flip(silhouettes, 2).copy(), 2))
    assert encode(silhouettes)[4:8] == bytes(4)  # gzip's modification time


def test_without_libdeflate(monkeypatch: pytest.MonkeyPatch) -> None:
    silhouettes = np.random.default_rng(0).integers(0, 255, (3, 64, 64), np.uint8)
    fast = encode(silhouettes)
    monkeypatch.setattr(sequence, "deflate", None)
    np.testing.assert_array_equal(decode(fast), silhouettes)
    np.testing.assert_array_equal(decode(encode(silhouettes)), silhouettes)
    with pytest.raises(ValueError, match="not a readable gzip"):
        decode(fast[:-9])


def test_decoded_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        decode(encode(np.zeros((1, 2, 2), np.uint8)))[0] = 1


@pytest.mark.parametrize("position", range(10, 60, 7))
def test_a_flipped_bit_never_passes(position: int) -> None:
    payload = bytearray(encode(np.random.default_rng(0).integers(0, 2, (3, 64, 64), np.uint8)))
    payload[position] ^= 1
    with pytest.raises(ValueError, match="gzip"):
        decode(bytes(payload))


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.uint8), np.zeros((1, 2, 2), np.float32)])
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[frames, height, width\]"):
        encode(array)
    buffer = io.BytesIO()
    np.save(buffer, array)
    with pytest.raises(ValueError, match=r"uint8 \[frames, height, width\]"):
        decode(gzip.compress(buffer.getvalue()))


def test_key() -> None:
    assert make_key("001", "nm-01", "090") == "001-nm-01-090"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("0.1", "nm-01", "090"), "subject '0.1' holds a dot"),
        (("001", "nm/01", "090"), "condition 'nm/01' holds a slash"),
        (("001", "nm-01", ""), "view '' is empty"),
        (("001", "nm 01", "090"), "blank"),
        (("s" * 90, "nm-01", "090"), "leaves room for 88"),
    ],
)
def test_bad_key(parts: tuple[str, str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_key(*parts)
