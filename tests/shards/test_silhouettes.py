from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import silhouettes
from shards.silhouettes import cut, empty_reason, normalise, normalise_frame, read_frame
from tests.shards.raw_tree import draw_frame


def naive(frame: np.ndarray) -> np.ndarray | None:
    """The standard as `benchmarks-facts` words it, a step a line, with explicit padding."""
    if frame.astype(np.int64).sum() < 10_000:
        return None
    rows = [y for y in range(frame.shape[0]) if frame[y].any()]
    person = frame[rows[0] : rows[-1] + 1]
    width = int(64 * person.shape[1] / person.shape[0])
    person = cv2.resize(person, (width, 64), interpolation=cv2.INTER_CUBIC).astype(np.int64)
    centre = next(x for x in range(width) if person[:, : x + 1].sum() > person.sum() / 2)
    padded = np.pad(person, ((0, 0), (32, 32)))
    return padded[:, centre : centre + 64].astype(np.uint8)


@given(st.integers(0, 10_000), st.integers(40, 240), st.integers(45, 320))
@settings(max_examples=60, deadline=None)
def test_equals_naive(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    frame = np.zeros((height, width), np.uint8)
    for _ in range(3):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.ellipse(frame, centre, (int(rng.integers(1, 40)), int(rng.integers(1, 60))), 0, 0, 360, 255, -1)
    expected, found = naive(frame), normalise_frame(frame)
    if expected is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found, expected)


def test_threshold_is_ten_thousand() -> None:
    frame = np.zeros((100, 100), np.uint8)
    frame[:50, 10] = 200
    assert frame.sum() == 10_000 and normalise_frame(frame) is not None
    frame[0, 10] = 199
    assert normalise_frame(frame) is None and empty_reason(frame) == silhouettes.ALMOST_EMPTY


def test_normalise_keeps_order_and_drops_empty_frames() -> None:
    frames = [draw_frame(1), np.zeros((60, 80), np.uint8), draw_frame(2, 90, 70)]
    out = normalise(frames)
    assert out.shape == (2, 64, 64) and out.dtype == np.uint8
    np.testing.assert_array_equal(out[1], normalise_frame(frames[2]))
    assert normalise([]).shape == (0, 64, 64)


def test_person_fills_the_height_and_stands_in_the_middle() -> None:
    out = normalise([draw_frame(3)])[0]
    assert out[0].any() and out[-1].any()
    halves = out[:, :32].astype(int).sum(), out[:, 33:].astype(int).sum()
    assert max(halves) <= out.astype(int).sum() / 2


def test_a_person_wider_than_the_picture_is_cut() -> None:
    frame = np.zeros((40, 320), np.uint8)
    frame[:, 10:310] = 255
    assert (normalise_frame(frame) == 255).all()


def test_thin_line_does_not_vanish() -> None:
    frame = np.full((240, 1), 255, np.uint8)
    assert normalise_frame(frame)[:, 32].all()


def test_zero_one_masks_are_named() -> None:
    assert empty_reason((draw_frame(1) > 0).astype(np.uint8)) == silhouettes.ZERO_ONE


def test_one_bit_png_reads_as_0_and_255(tmp_path: Path) -> None:
    frame = draw_frame(5)
    cv2.imwrite(str(tmp_path / "bilevel.png"), frame, [cv2.IMWRITE_PNG_BILEVEL, 1])
    cv2.imwrite(str(tmp_path / "colour.png"), cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
    for name in ("bilevel.png", "colour.png"):
        read, reason = read_frame(tmp_path / name)
        np.testing.assert_array_equal(read, frame)
        assert reason == ""


def test_unreadable_files_are_told_apart(tmp_path: Path) -> None:
    whole = cv2.imencode(".png", draw_frame(1))[1].tobytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 8
    cases = {
        b"": silhouettes.ZERO_BYTES,
        b"hello": silhouettes.UNREADABLE,
        whole[: len(whole) // 2]: silhouettes.TORN,
        bytes(flipped): silhouettes.UNREADABLE,
    }
    for content, expected in cases.items():
        (tmp_path / "x.png").write_bytes(content)
        assert read_frame(tmp_path / "x.png") == (None, expected)
    assert read_frame(tmp_path) == (None, silhouettes.UNREADABLE)
    with pytest.raises(FileNotFoundError):
        read_frame(tmp_path / "gone.png")


def test_cut() -> None:
    x = np.arange(2 * 64 * 64).reshape(2, 64, 64)
    np.testing.assert_array_equal(cut(x), x[:, :, 10:54])
    assert cut(cut(x)).shape == (2, 64, 44)
    assert cut(torch.from_numpy(x)).shape == (2, 64, 44)
    with pytest.raises(ValueError, match="64 or 44 columns wide, these are 50"):
        cut(np.zeros((1, 64, 50)))


def test_frames_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        normalise_frame(np.zeros((4, 4)))
