"""From ellipsoids in space to silhouettes: perspective, filled hulls, and the flaws of segmentation."""

from functools import lru_cache

import cv2
import numpy as np

from shards.walkers.gait import Array

HEIGHT, WIDTH = 240, 320
VIEWS = tuple(f"{degrees:03d}" for degrees in range(0, 181, 18))

CAMERA_DISTANCE = 5.2  # metres from the middle of the path
CAMERA_HEIGHT = 1.15
FOCAL_LENGTH = 330.0  # pixels
AIM = (0.0, 0.0, 0.93)  # the point in the middle of the picture
CLOSE_REACH = 2.05  # metres either way along the path; longer walks are seen from further off, to fit the picture

NUM_DIRECTIONS = 24
SUB_PIXEL_BITS = 4

_ANGLES = 2 * np.pi * np.arange(NUM_DIRECTIONS) / NUM_DIRECTIONS
_DIRECTIONS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)])


def camera(view: str, reach: float) -> tuple[Array, Array]:
    """Eye [3] in metres and axes [3, 3] (rows: right, down, forwards) of the camera of one view.

    At 090 the walker crosses the picture from right to left, as in CASIA-B; at 000 they come, at 180 they go.
    `reach` is how far the walk gets from the middle of the path, in metres: the camera stands back to see it.
    """
    angle = np.radians(float(view))
    distance = CAMERA_DISTANCE * max(1.0, reach / CLOSE_REACH)
    eye = np.array([distance * np.cos(angle), distance * np.sin(angle), CAMERA_HEIGHT])
    forwards = np.array(AIM) - eye
    forwards /= np.linalg.norm(forwards)
    right = np.cross(forwards, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    return eye, np.stack([right, np.cross(forwards, right), forwards])


def placed(centres: Array, shapes: Array, heading: float, offset: tuple[float, float]) -> tuple[Array, Array]:
    """The same ellipsoids, turned by `heading` degrees about the path's middle, moved by `offset` metres."""
    c, s = np.cos(np.radians(heading)), np.sin(np.radians(heading))
    turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    return centres @ turn.T + np.array([*offset, 0.0]), turn @ shapes @ turn.T


def outlines(centres: Array, shapes: Array, parts: Array, eye: Array, axes: Array) -> Array:
    """Polygons [frames, parts, NUM_DIRECTIONS, 2] in pixels: the hull of each part's projected ellipsoids.

    An ellipsoid's picture is an ellipse (to first order of the projection at its centre); the hull's furthest
    point in a direction is that of whichever ellipse reaches furthest.
    """
    seen = (centres - eye) @ axes.T
    scale = FOCAL_LENGTH / seen[..., 2]
    middle = seen[..., :2] * scale[..., None]
    jacobian = scale[..., None, None] * (axes[:2] - (middle / FOCAL_LENGTH)[..., None] * axes[2])
    ellipses = jacobian @ shapes @ np.swapaxes(jacobian, -1, -2)
    pulled = (ellipses @ _DIRECTIONS).astype(np.float32)
    reach = np.sqrt((pulled * _DIRECTIONS.astype(np.float32)).sum(-2))
    middle = middle.astype(np.float32)
    support = middle @ _DIRECTIONS.astype(np.float32) + reach
    points = np.swapaxes(pulled / reach[..., None, :], -1, -2) + middle[..., None, :]
    furthest = support[:, parts].argmax(2)
    chosen = parts[np.arange(len(parts))[None, :, None], furthest]
    frame = np.arange(len(centres))[:, None, None]
    direction = np.arange(NUM_DIRECTIONS)[None, None, :]
    return points[frame, chosen, direction] + np.array([WIDTH / 2, HEIGHT / 2], np.float32)


def filled(polygons: Array) -> Array:
    """Silhouettes uint8 [frames, 240, 320], 0 or 255, of polygons [frames, parts, points, 2] in pixels."""
    fixed = np.round((polygons - 0.5) * (1 << SUB_PIXEL_BITS)).astype(np.int32)
    silhouettes = np.zeros((len(polygons), HEIGHT, WIDTH), np.uint8)
    for silhouette, parts in zip(silhouettes, fixed, strict=True):
        for part in parts:
            cv2.fillConvexPoly(silhouette, part, 255, shift=SUB_PIXEL_BITS)
    return silhouettes


@lru_cache(maxsize=1)
def _textures() -> tuple[Array, Array]:
    """Two fixed fields larger than a picture: noise int16 of spread 64, and a mask uint8 with rare holes."""
    rng = np.random.default_rng(20230928)
    shape = (2 * HEIGHT, 2 * WIDTH)
    rough = cv2.GaussianBlur(rng.standard_normal(shape).astype(np.float32), (0, 0), 1.1)
    patches = cv2.GaussianBlur(rng.standard_normal(shape).astype(np.float32), (0, 0), 1.6)
    holes = np.where(patches > 3.25 * patches.std(), 0, 255).astype(np.uint8)
    return np.round(64 * rough / rough.std()).astype(np.int16), holes


def _bounds(silhouette: Array) -> tuple[slice, slice]:
    """Rows and columns that hold the person, with room for a ragged edge."""
    x, y, width, height = cv2.boundingRect(silhouette)
    return (
        slice(max(y - 2, 0), min(y + height + 2, HEIGHT)),
        slice(max(x - 2, 0), min(x + width + 2, WIDTH)),
    )


def empty_frames(num_frames: int, rng: np.random.Generator) -> Array:
    """Bool [frames]: where the segmentation found nobody, at the start of some walks and seldom elsewhere."""
    empty = rng.random(num_frames) < 0.006
    if rng.random() < 0.2:
        empty[: rng.integers(1, 3)] = True
    empty[num_frames // 2] = False
    return empty


def flawed(silhouettes: Array, rng: np.random.Generator) -> Array:
    """Changes silhouettes in place as a real segmentation would, and returns them.

    Ragged edges, a bias towards too thin or too thick for the whole sequence, small holes, a blob of the body
    missing for some frames, and frames with nobody.
    """
    rough, holes = _textures()
    num_frames = len(silhouettes)
    empty = empty_frames(num_frames, rng)
    threshold, strength = rng.uniform(100, 150), rng.uniform(0.18, 0.45)
    noise = np.round(rough * strength).astype(np.int16)
    corners = rng.integers(0, (HEIGHT, WIDTH), (num_frames, 2))
    blobs = rng.random((num_frames, 5))
    for i, silhouette in enumerate(silhouettes):
        if empty[i]:
            silhouette[:] = 0
            continue
        rows, columns = _bounds(silhouette)
        person = silhouette[rows, columns]
        height, width = person.shape
        top, left = corners[i]
        window = slice(top, top + height), slice(left, left + width)
        soft = cv2.add(cv2.GaussianBlur(person, (5, 5), 1.1), noise[window], dtype=cv2.CV_16S)
        torn = (soft > threshold) * holes[window]
        if blobs[i, 0] < 0.03:
            centre = int(blobs[i, 1] * width), int(blobs[i, 2] * height)
            size = int(2 + 5 * blobs[i, 3]), int(2 + 7 * blobs[i, 4])
            cv2.ellipse(torn, centre, size, 0, 0, 360, 0, -1)
        silhouette[rows, columns] = torn
    return silhouettes
