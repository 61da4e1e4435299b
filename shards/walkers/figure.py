"""Flesh on the joints: a walker's head, trunk and limbs as a solid, dressed for the trial."""

import numpy as np

from shards.walkers.body import Trial
from shards.walkers.gait import ANKLE, BALL, HEEL, HIP, KNEE_JOINT, TOE, Array, Pose
from shards.walkers.solid import Segment, Solid
from shards.walkers.wear import add_bag, add_coat_skirt, add_hair


def _between(start: Array, end: Array, share: float) -> Array:
    return start + share * (end - start)


def _add_head(solid: Solid, trial: Trial, pose: Pose) -> int:
    """Adds head and neck, and returns the skull."""
    size = trial.subject.lengths["head"]
    head = Segment(pose.head, pose.head_axes)
    skull = solid.egg(head.at(-0.08 * size, 0, 0.12 * size), head.axes, 0.90 * size, 0.70 * size, 0.86 * size)
    jaw = solid.egg(head.at(0.30 * size, 0, -0.52 * size), head.axes, 0.46 * size, 0.50 * size, 0.46 * size)
    nose = solid.ball(head.at(0.92 * size, 0, -0.16 * size), 0.10 * size)
    brow = solid.ball(head.at(0.72 * size, 0, 0.18 * size), 0.08 * size)
    throat = solid.ball(head.at(-0.14 * size, 0, -0.55 * size), 0.50 * size)
    collar = (0.80 if trial.outfit.coat else 0.54) * size
    base = solid.ball(Segment(pose.neck, pose.trunk_axes).at(up=-0.02), collar)
    solid.part(skull, jaw)
    solid.part(nose, brow, jaw)
    solid.part(throat, base)
    return skull


def _add_trunk(solid: Solid, trial: Trial, pose: Pose) -> tuple[int, int]:
    """Adds a stack of eggs from the hips to the shoulders, and returns the lowest two: pelvis and belly."""
    girths, height, coat = trial.subject.girths, trial.subject.height, trial.outfit.coat
    trunk, shoulders = trial.subject.lengths["trunk"], trial.subject.lengths["shoulders"]
    lower, upper = Segment(pose.pelvis, pose.pelvis_axes), Segment(pose.waist, pose.trunk_axes)
    paunch = 0.5 * (girths["waist_depth"] - 0.052 * height)

    # Segment, place ahead and up, then depth, width and height, from the hips upwards.
    stack = (
        (lower, 0.0, 0.012 * height, girths["pelvis_depth"], girths["pelvis"], 0.055 * height),
        (lower, paunch, 0.24 * trunk, girths["waist_depth"], 1.02 * girths["waist"], 0.050 * height),
        (upper, 0.0, 0.06 * trunk, 0.95 * girths["waist_depth"], girths["waist"], 0.050 * height),
        (upper, 0.006 * height, 0.40 * trunk, girths["chest_depth"], girths["chest"], 0.062 * height),
        (
            upper,
            -0.008 * height,
            0.56 * trunk,
            0.72 * girths["chest_depth"],
            0.80 * shoulders,
            0.026 * height,
        ),
    )
    eggs = [
        solid.egg(segment.at(ahead, 0.0, up), segment.axes, depth + coat, width + coat, tall + 0.3 * coat)
        for segment, ahead, up, depth, width, tall in stack
    ]
    solid.chain(*eggs)
    pelvis, belly, _, chest, top = eggs

    neck = solid.ball(Segment(pose.neck, upper.axes).at(up=-0.006 * height), 0.027 * height + 0.4 * coat)
    for side in (0, 1):
        point = Segment(pose.shoulders[:, side], upper.axes).at(up=-0.018 * height)
        shoulder = solid.ball(point, girths["arm_girth"] + 0.8 * coat)
        solid.part(shoulder, top, neck)
        solid.part(shoulder, chest)
    return pelvis, belly


def _add_leg(solid: Solid, trial: Trial, pose: Pose, side: int, pelvis: int, belly: int) -> None:
    """Adds buttock, thigh, shank and foot of one side."""
    girths, lengths, coat = trial.subject.girths, trial.subject.lengths, trial.outfit.coat
    hip, knee, ankle = (pose.legs[:, side, joint] for joint in (HIP, KNEE_JOINT, ANKLE))
    left = (1 - 2 * side) * 0.88 * lengths["hips"]
    seat = Segment(pose.pelvis, pose.pelvis_axes).at(-0.34 * girths["buttocks"], left, -0.2 * girths["buttocks"])
    upper = solid.ball(_between(hip, knee, 0.25), 0.95 * girths["thigh_girth"])
    solid.part(solid.ball(seat, girths["buttocks"] + 0.8 * coat), upper, belly)

    shin = ankle - knee
    behind = np.stack([shin[:, 2], np.zeros(len(shin)), -shin[:, 0]], -1) / lengths["shank"]
    bone = solid.ball(ankle, girths["ankle_girth"])
    solid.chain(
        pelvis,
        solid.ball(_between(hip, knee, 0.06), girths["thigh_girth"]),
        solid.ball(_between(hip, knee, 0.48), 0.86 * girths["thigh_girth"]),
        solid.ball(knee, girths["knee_girth"]),
        solid.ball(knee + 0.30 * shin + 0.22 * girths["calf_girth"] * behind, girths["calf_girth"]),
        solid.ball(_between(knee, ankle, 0.80), 1.02 * girths["ankle_girth"]),
        bone,
    )
    _add_foot(solid, pose.legs[:, side], bone, lengths["foot"])


def _add_foot(solid: Solid, leg: Array, bone: int, length: float) -> None:
    thick, flat, thin = 0.120 * length, 0.125 * length, 0.067 * length
    up = np.array([0.0, 0.0, 1.0])
    heel = solid.ball(leg[:, HEEL] + 0.90 * thick * up, thick)
    sole = solid.ball(leg[:, BALL] + 0.60 * flat * up, flat)
    toe = solid.ball(leg[:, TOE] + thin * up, thin)
    solid.part(heel, sole, bone)
    solid.part(sole, toe)


def _add_arm(solid: Solid, trial: Trial, pose: Pose, side: int) -> None:
    """Adds upper arm, forearm and hand of one side."""
    arm, wrist = trial.subject.girths["arm_girth"], trial.subject.girths["wrist_girth"]
    sleeve = trial.outfit.sleeve
    shoulder = pose.shoulders[:, side]
    elbow, hand, tip = (pose.arms[:, side, joint] for joint in range(3))
    solid.chain(
        solid.ball(_between(shoulder, elbow, 0.16), arm + sleeve),
        solid.ball(_between(shoulder, elbow, 0.50), 0.90 * arm + sleeve),
        solid.ball(elbow, 0.78 * arm + sleeve),
        solid.ball(_between(elbow, hand, 0.28), 0.82 * arm + sleeve),
        solid.ball(hand, wrist + 0.8 * sleeve),
        solid.ball(_between(hand, tip, 0.45), 1.30 * wrist),
        solid.ball(_between(hand, tip, 0.85), 0.80 * wrist),
    )


def figure(trial: Trial, pose: Pose) -> tuple[Array, Array, Array]:
    """The dressed walker over the frames of `pose`.

    Returns centres [frames, n, 3] in metres, shape matrices [frames, n, 3, 3] (squared half-lengths along the
    ellipsoid's axes) and parts [m, LARGEST_PART], row numbers of the ellipsoids whose hull each part is.
    """
    solid = Solid(len(pose.pelvis))
    skull = _add_head(solid, trial, pose)
    add_hair(solid, trial, pose, skull)
    pelvis, belly = _add_trunk(solid, trial, pose)
    for side in (0, 1):
        _add_leg(solid, trial, pose, side, pelvis, belly)
        _add_arm(solid, trial, pose, side)
    if trial.outfit.coat:
        add_coat_skirt(solid, trial, pose, pelvis)
    if trial.outfit.bag:
        add_bag(solid, trial, pose)
    return solid.stacked()
