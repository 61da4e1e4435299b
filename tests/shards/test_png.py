"""The one-bit decoder against OpenCV's, and against Pillow's way of writing."""

import zlib
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.png import END, SIGNATURE, decode_one_bit
from tests.shards.raw_tree import draw_frame


def write_png(pixels: np.ndarray, kinds: list[int], num_chunks: int = 1, extra: bytes = b"") -> bytes:
    """bool [height, width] -> a one-bit PNG whose rows are filtered by `kinds`, written by the standard's words."""
    height, width = pixels.shape
    rows = np.packbits(pixels, axis=1).astype(int)
    stored = b""
    for y in range(height):
        kind = kinds[y % len(kinds)]
        left = np.concatenate([[0], rows[y, :-1]])
        above = rows[y - 1] if y else np.zeros_like(rows[0])
        before = {0: 0, 1: left, 2: above, 3: (left + above) // 2}[kind]
        stored += bytes([kind]) + ((rows[y] - before) % 256).astype(np.uint8).tobytes()
    packed = zlib.compress(stored)
    cuts = np.linspace(0, len(packed), num_chunks + 1).astype(int)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    chunks = [(b"IHDR", header), *((b"IDAT", packed[a:b]) for a, b in pairwise(cuts))]
    body = b"".join(
        len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
        for name, content in chunks
    )
    return SIGNATURE + body + extra + b"\0\0\0\0" + END


@given(
    st.integers(1, 40),
    st.integers(1, 70),
    st.lists(st.integers(0, 2), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(0, 1000),
    st.sampled_from([0.5, 0.99, 1.0]),
)
@settings(deadline=None)
def test_equals_opencv(height: int, width: int, kinds: list[int], num_chunks: int, seed: int, density: float) -> None:
    pixels = np.random.default_rng(seed).random((height, width)) > density
    data = write_png(pixels, kinds, num_chunks)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(expected > 0, pixels)
    np.testing.assert_array_equal(decode_one_bit(data), expected)
    filled = np.flatnonzero(pixels.any(axis=1))
    cut = expected[filled[0] : filled[-1] + 1] if len(filled) else expected[:1]
    np.testing.assert_array_equal(decode_one_bit(data, whole=False), cut)


def test_other_kinds_are_left_to_the_general_decoder() -> None:
    frame = draw_frame(1)
    assert decode_one_bit(cv2.imencode(".png", frame)[1].tobytes()) is None
    assert decode_one_bit(write_png(frame > 0, [3])) is None  # Average
    colours = b"\0\0\0\x06PLTE" + b"\0" * 6 + b"\0\0\0\0"
    assert decode_one_bit(write_png(frame > 0, [0], extra=colours)) is None
    one_bit = cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes()
    np.testing.assert_array_equal(decode_one_bit(one_bit), frame)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_damage_is_never_decoded(kind: int) -> None:
    whole = write_png(draw_frame(2) > 0, [kind])
    expected = decode_one_bit(whole)
    for end in range(len(whole)):
        assert decode_one_bit(whole[:end]) is None
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            found = decode_one_bit(bytes(damaged))
            assert found is None or np.array_equal(found, expected), (place, bit)
