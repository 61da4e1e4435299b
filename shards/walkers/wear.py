"""What a walker wears and carries: hair, the skirt of a coat, and three kinds of bag."""

import numpy as np

from shards.walkers.body import Trial
from shards.walkers.gait import ANKLE, HIP, KNEE_JOINT, Array, Pose
from shards.walkers.solid import Segment, Solid

_UP = np.array([0.0, 0.0, 1.0])


def add_hair(solid: Solid, trial: Trial, pose: Pose, skull: int) -> None:
    """Adds what shows of the subject's hair; short hair does not."""
    size, hair, style = trial.subject.lengths["head"], trial.subject.hair, trial.subject.hairstyle
    head = Segment(pose.head, pose.head_axes)
    if style == "full":
        radius = (0.95 + 0.22 * hair) * size
        crown = head.at(ahead=-0.16 * size, up=0.22 * size)
        solid.part(solid.egg(crown, head.axes, radius, 0.86 * radius, 0.95 * radius))
    elif style == "bun":
        knot = head.at(ahead=-(0.85 + 0.20 * hair) * size, up=0.55 * size)
        solid.part(skull, solid.ball(knot, (0.25 + 0.20 * hair) * size))
    elif style == "tail":
        knot = head.at(ahead=-0.95 * size, up=0.35 * size)
        tip = head.at(ahead=-(1.10 + 0.10 * hair) * size, up=-(0.70 + 0.80 * hair) * size)
        solid.chain(skull, solid.ball(knot, 0.20 * size), solid.ball(tip, 0.13 * size))
    elif style == "long":
        ends = head.at(ahead=-0.42 * size, up=-(0.90 + 0.90 * hair) * size)
        solid.part(skull, solid.egg(ends, head.axes, 0.30 * size, 0.74 * size, 0.25 * size))


def add_coat_skirt(solid: Solid, trial: Trial, pose: Pose, pelvis: int) -> None:
    """Adds the skirt of the coat: it hangs from the hips to the hem, and follows the legs only in part."""
    outfit = trial.outfit
    hips, knees, ankles = (pose.legs[:, :, joint] for joint in (HIP, KNEE_JOINT, ANKLE))
    below_knee = max(outfit.hem - 1, 0.0)
    legs = hips + min(outfit.hem, 1.0) * (knees - hips) + below_knee * (ankles - knees)
    hems = 0.75 * legs + 0.25 * legs.mean(1, keepdims=True)
    hems[..., 2] = legs[..., 2].mean(1, keepdims=True)
    radius = 0.95 * trial.subject.girths["thigh_girth"] + 0.9 * outfit.coat
    solid.part(pelvis, *(solid.egg(hems[:, side], pose.pelvis_axes, radius, radius, 0.02) for side in (0, 1)))


def _add_box(solid: Solid, box: Segment, half: tuple[float, float, float], rounding: float) -> None:
    """Adds a box about the segment's origin: four eggs along its long edges, each as wide as the box."""
    depth, width, height = half
    corners = [
        solid.egg(box.at(x * (depth - rounding), 0.0, z * (height - rounding)), box.axes, rounding, width, rounding)
        for x in (-1, 1)
        for z in (-1, 1)
    ]
    solid.part(*corners)


def add_bag(solid: Solid, trial: Trial, pose: Pose) -> None:
    """Adds the outfit's bag and its straps."""
    outfit, girths = trial.outfit, trial.subject.girths
    depth, width, tall = outfit.bag_size
    side = 0 if outfit.side > 0 else 1
    if outfit.bag == "backpack":
        trunk = Segment(pose.waist, pose.trunk_axes)
        behind = girths["chest_depth"] + 0.75 * depth
        centre = trunk.at(ahead=-behind, up=0.30 * trial.subject.lengths["trunk"])
        _add_box(solid, Segment(centre, trunk.axes), outfit.bag_size, 0.6 * depth)
    elif outfit.bag == "shoulder":
        hips = Segment(pose.pelvis, pose.pelvis_axes)
        centre = hips.at(ahead=-0.03, left=outfit.side * (girths["pelvis"] + 0.7 * width), up=0.02)
        _add_box(solid, Segment(centre, hips.axes), outfit.bag_size, 0.04)
        solid.chain(solid.ball(pose.shoulders[:, side], 0.022), solid.ball(centre + tall * _UP, 0.022))
    else:
        grip = pose.arms[:, side, 2]
        hanging: Array = np.broadcast_to(np.eye(3), pose.trunk_axes.shape)
        bag = Segment(grip - (tall + 0.07) * _UP, hanging)
        _add_box(solid, bag, outfit.bag_size, 0.035)
        for end in (-0.5 * depth, 0.5 * depth):
            solid.chain(solid.ball(grip, 0.012), solid.ball(bag.at(ahead=end, up=tall), 0.010))
