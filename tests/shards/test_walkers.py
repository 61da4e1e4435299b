"""The procedural walkers: the same people every time, who look and move as people do."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.walkers import CONDITIONS, VIEWS, body, gait, render, walk

NUM_PEOPLE = 5


@cache
def clean(number: int, condition: str = "nm-01", view: str = "090", frames: int = 50) -> np.ndarray:
    silhouettes = walk(number, condition, view, frames=frames, flaws=False)
    silhouettes.setflags(write=False)
    return silhouettes


@cache
def seen(number: int, condition: str = "nm-01", view: str = "090") -> np.ndarray:
    return walk(number, condition, view, frames=50)


def boxes(silhouettes: np.ndarray) -> np.ndarray:
    """Left, top, width, height of the foreground of each frame."""
    return np.array([cv2.boundingRect(silhouette) for silhouette in silhouettes])


def average_shape(silhouettes: np.ndarray) -> np.ndarray:
    """A rough gait-energy image: each person cut out, brought to 32 x 16, and averaged over frames."""
    cut = []
    for silhouette, (_, top, _, height) in zip(silhouettes, boxes(silhouettes), strict=True):
        middle = round(np.nonzero(silhouette)[1].mean())
        half = max(height // 4, 1)
        padded = np.pad(silhouette, ((0, 0), (half, half)))
        cut.append(
            cv2.resize(padded[top : top + height, middle : middle + 2 * half], (16, 32), interpolation=cv2.INTER_AREA)
        )
    return np.mean(cut, 0) / 255


def test_a_walk_is_a_full_black_and_white_frame_sequence() -> None:
    silhouettes = walk(1, "nm-01", "090", frames=12)
    assert silhouettes.shape == (12, 240, 320)
    assert silhouettes.dtype == np.uint8
    assert set(np.unique(silhouettes)) == {0, 255}


def test_the_same_arguments_draw_the_same_pixels_and_another_seed_other_ones() -> None:
    once, again = (walk(3, "bg-02", "054", seed=7) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert walk(3, "bg-02", "054", seed=8, frames=len(once)).tobytes() != once.tobytes()


def test_all_views_of_a_walk_are_equally_long_and_lengths_vary_over_walks() -> None:
    assert len({len(walk(2, "nm-03", view)) for view in VIEWS}) == 1
    lengths = {len(walk(2, condition, "090")) for condition in CONDITIONS}
    assert len(lengths) > 3
    assert min(lengths) >= 30
    assert max(lengths) <= 50


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("condition", ["nm-01", "bg-01", "cl-02"])
def test_the_whole_person_is_in_the_frame_at_a_plausible_size(view: str, condition: str) -> None:
    for number in range(1, NUM_PEOPLE + 1):
        left, top, width, height = boxes(clean(number, condition, view)).T
        assert left.min() > 0
        assert top.min() > 0
        assert (left + width).max() < render.WIDTH
        assert (top + height).max() < render.HEIGHT
        assert height.min() > 60
        assert height.max() < 200
        assert ((width / height) < 0.85).all()


@pytest.mark.parametrize(("number", "condition"), [(36, "bg-01"), (115, "nm-06")])
@pytest.mark.parametrize("frames", [55, 120])
def test_fast_and_long_walks_stay_in_the_frame_too(number: int, condition: str, frames: int) -> None:
    for view in ("054", "090", "126"):
        left, _, width, height = boxes(clean(number, condition, view, frames=frames)).T
        assert left.min() > 0
        assert (left + width).max() < render.WIDTH
        assert height.min() > 30


@pytest.mark.parametrize("view", VIEWS)
def test_segmentation_flaws_leave_one_connected_person(view: str) -> None:
    shares = []
    for number in (1, 2):
        for silhouette in seen(number, view=view):
            if silhouette.any():
                areas = cv2.connectedComponentsWithStats(silhouette)[2][1:, cv2.CC_STAT_AREA]
                shares.append(areas.max() / areas.sum())
    assert np.mean(np.array(shares) > 0.9) > 0.97
    assert np.mean(shares) > 0.99


def test_flaws_change_little_and_some_frames_are_empty_but_few() -> None:
    filled, differing = [], []
    for number in range(1, NUM_PEOPLE + 1):
        for view in VIEWS[::5]:
            flawed, perfect = seen(number, view=view), clean(number, view=view, frames=50)
            whole = flawed.any((1, 2))
            filled += whole.tolist()
            changed = (flawed[whole] != perfect[whole]).sum((1, 2)) / (perfect[whole] > 0).sum((1, 2))
            differing.append(changed.mean())
    assert 0.002 < 1 - np.mean(filled) < 0.04
    assert 0.01 < np.mean(differing) < 0.15


def test_the_walker_crosses_the_side_view_and_grows_while_coming_nearer() -> None:
    left, _, width, _ = boxes(clean(1)).T
    middles = left + width / 2
    assert middles[0] > 200 > 120 > middles[-1]
    coming, going = (boxes(clean(1, view=view))[:, 3] for view in ("000", "180"))
    assert coming[-1] > 1.3 * coming[0]
    assert going[0] > 1.3 * going[-1]


def test_the_person_is_widest_from_the_side_in_stride() -> None:
    side, front = boxes(clean(1))[:, 2], boxes(clean(1, view="000"))[:, 2]
    assert side.max() > 1.5 * np.median(front)
    assert side.max() > 1.6 * side.min()


@pytest.mark.parametrize("number", range(1, NUM_PEOPLE + 1))
def test_the_gait_cycle_shows_in_the_side_view(number: int) -> None:
    """Feet are apart twice a stride: their width repeats after half a stride of that walker's cadence."""
    legs = clean(number, frames=120)
    widths = []
    for silhouette, (_, top, _, height) in zip(legs, boxes(legs), strict=True):
        columns = np.flatnonzero(silhouette[top + height * 3 // 4 : top + height].any(0))
        widths.append(columns.max() - columns.min())
    signal = np.array(widths) - np.mean(widths)
    correlation = np.array([np.dot(signal[:-lag], signal[lag:]) / (len(signal) - lag) for lag in range(1, 24)])
    cadence = body.trial(number, "nm-01").subject.manner["cadence"]
    expected = gait.FRAMES_PER_SECOND / cadence / 2
    peak = 8 + np.argmax(correlation[7:19])
    assert abs(peak - expected) <= 1.5
    assert correlation[peak - 1] > 0.4 * signal.var()


@pytest.mark.parametrize("number", range(1, NUM_PEOPLE + 1))
def test_the_standing_foot_stands_still_on_the_ground(number: int) -> None:
    trial = body.trial(number, "nm-01")
    pose = gait.pose(trial, 75)
    phase = trial.phase + np.arange(75) * trial.subject.manner["cadence"] / gait.FRAMES_PER_SECOND
    ball = pose.legs[:, 0, gait.BALL]
    flat = (phase % 1 > 0.15) & (phase % 1 < 0.40)
    planted = flat[1:] & flat[:-1]
    slide = np.linalg.norm(np.diff(ball[:, :2], axis=0), axis=1)[planted]
    step = np.linalg.norm(np.diff(pose.pelvis[:, :2], axis=0), axis=1).mean()
    assert planted.sum() > 5
    assert np.median(slide) < 0.15 * step
    assert np.abs(ball[flat, 2]).max() < 0.03
    assert pose.legs[:, :, gait.HEEL :, 2].min() > -0.05


def test_arms_oppose_the_legs() -> None:
    pose = gait.pose(body.trial(1, "nm-01"), 60)
    leg = pose.legs[:, 0, gait.ANKLE, 0] - pose.legs[:, 1, gait.ANKLE, 0]
    arm = pose.arms[:, 0, 1, 0] - pose.arms[:, 1, 1, 0]
    assert np.corrcoef(leg, arm)[0, 1] < -0.8


def test_limbs_keep_their_lengths() -> None:
    trial = body.trial(4, "nm-02")
    pose = gait.pose(trial, 40)
    thigh = np.linalg.norm(pose.legs[:, :, gait.KNEE_JOINT] - pose.legs[:, :, gait.HIP], axis=-1)
    np.testing.assert_allclose(thigh, trial.subject.lengths["thigh"], rtol=0.02)
    arm = np.linalg.norm(pose.arms[:, :, 0] - pose.shoulders, axis=-1)
    np.testing.assert_allclose(arm, trial.subject.lengths["upper_arm"], rtol=1e-6)


def relative_area(number: int, condition: str) -> float:
    """Foreground over squared height, averaged over frames and three views."""
    ratios = []
    for view in ("018", "090"):
        silhouettes = clean(number, condition, view)
        ratios.append(((silhouettes > 0).sum((1, 2)) / boxes(silhouettes)[:, 3] ** 2).mean())
    return float(np.mean(ratios))


def test_a_bag_adds_area_and_a_coat_adds_more() -> None:
    people = range(1, NUM_PEOPLE + 1)
    normal, bag, coat = (
        np.array([np.mean([relative_area(number, f"{kind}-{i:02d}") for i in (1, 2)]) for number in people])
        for kind in ("nm", "bg", "cl")
    )
    assert (bag > normal).mean() > 0.8
    assert (coat > 1.05 * normal).all()
    assert bag.mean() > 1.03 * normal.mean()
    assert coat.mean() > bag.mean()


def test_outfits_belong_to_their_conditions() -> None:
    outfits = {(n, c): body.trial(n, c).outfit for n in range(1, 30) for c in CONDITIONS}
    assert all(bool(outfit.bag) == condition.startswith("bg") for (_, condition), outfit in outfits.items())
    assert all((outfit.coat > 0) == condition.startswith("cl") for (_, condition), outfit in outfits.items())
    assert {outfit.bag for outfit in outfits.values()} == {"", *body.BAGS}


def test_people_differ_more_than_the_trials_of_one_person_but_not_by_everything() -> None:
    """In mean shape, from the side: the identity signal is there, and it is not a giveaway."""
    trials = ("nm-01", "nm-02", "nm-03")
    shapes = np.array([[average_shape(clean(n, c)) for c in trials] for n in range(1, 13)]).reshape(12, 3, -1)
    distances = np.linalg.norm(shapes[:, None, :, None] - shapes[None, :, None, :], axis=-1)
    same = distances[np.eye(12, dtype=bool)][:, ~np.eye(3, dtype=bool)]
    other = distances[~np.eye(12, dtype=bool)]
    assert other.mean() > 1.3 * same.mean()
    assert other.min() < same.max()


def test_trials_of_one_person_differ() -> None:
    first, second = body.trial(1, "nm-01"), body.trial(1, "nm-02")
    assert first.phase != second.phase
    assert first.subject.manner["cadence"] != second.subject.manner["cadence"]
    assert first.subject.lengths == second.subject.lengths


def test_people_are_of_human_size() -> None:
    people = [body.subject(number) for number in range(1, 200)]
    heights = np.array([person.height for person in people])
    assert heights.min() > 1.4
    assert heights.max() < 2.0
    assert np.std(heights) > 0.05
    assert len({person.hairstyle for person in people}) == len(set(body.HAIRSTYLES))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((1, "nm-09", "090"), "nm-09"),
        ((1, "nm-01", "091"), "091"),
        ((1, "nm-01", "090", 0, 0), "frames=0"),
        ((1, "nm-01", "090", 0, (50, 30)), r"\(50, 30\)"),
    ],
)
def test_a_walk_there_is_not_is_named(arguments: tuple, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        walk(*arguments)


def test_a_part_is_the_hull_of_its_ellipsoids() -> None:
    """Against OpenCV's own hull of two projected spheres."""
    eye, axes = render.camera("090", 1)
    centres = np.array([[[0.3, 0.0, 1.2], [-0.2, 0.1, 0.7]]])
    radii = np.array([0.10, 0.22])
    shapes = (radii**2)[None, :, None, None] * np.eye(3)
    mask = render.filled(render.outlines(centres, shapes, np.array([[0, 1]]), eye, axes))[0] > 0
    seen_at = (centres[0] - eye) @ axes.T
    pixels = seen_at[:, :2] * (render.FOCAL_LENGTH / seen_at[:, 2:]) + (render.WIDTH / 2, render.HEIGHT / 2)
    angles = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angles), np.sin(angles)], -1)
    rim = pixels[:, None] + (radii * render.FOCAL_LENGTH / seen_at[:, 2])[:, None, None] * circle
    hull = cv2.convexHull(rim.reshape(-1, 2).astype(np.float32)).reshape(-1, 2)
    expected = (
        cv2.fillConvexPoly(np.zeros((240, 320), np.uint8), np.round((hull - 0.5) * 16).astype(np.int32), 1, shift=4) > 0
    )
    assert (mask & expected).sum() / (mask | expected).sum() > 0.95


def test_files_stay_short() -> None:
    files = sorted(Path(body.__file__).parent.glob("*.py"))
    assert len(files) == 8
    for file in files:
        assert len(file.read_text().splitlines()) <= 350
