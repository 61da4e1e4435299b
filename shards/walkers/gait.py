"""How a walker moves: joint positions in space over the gait cycle, with a foot that stays where it stands.

Axes: x forwards along the path, y to the walker's left, z up; metres. Phase runs in strides: a leg's heel
strikes at 0.
"""

from dataclasses import dataclass

import numpy as np

from shards.walkers.body import Subject, Trial

FRAMES_PER_SECOND = 25

# Sagittal angles of normal walking, degrees, at every 5 % of the stride from heel strike (after Winter,
# Biomechanics and Motor Control of Human Movement; Perry & Burnfield, Gait Analysis). Thigh: forwards of
# vertical. Knee: flexion. Foot: toes above level; exactly flat in mid-stance, which is what keeps the foot
# planted.
THIGH = (23, 22, 19, 15, 10, 5, 0, -5, -10, -14, -17, -18, -14, -6, 4, 14, 21, 25, 26, 25)
KNEE = (4, 10, 16, 18, 17, 14, 10, 7, 5, 6, 11, 21, 36, 51, 60, 59, 49, 34, 17, 6)
FOOT = (20, 8, 0, 0, 0, 0, 0, -1, -5, -12, -24, -40, -57, -64, -54, -35, -14, 3, 14, 20)

HIP, KNEE_JOINT, ANKLE, HEEL, BALL, TOE = range(6)
NUM_GRID = 64

Array = np.ndarray


@dataclass(frozen=True)
class Pose:
    """A walk in space. Sides are (left, right); the columns of a segment's axes point ahead, left and up."""

    pelvis: Array  # [frames, 3] between the hip joints
    legs: Array  # [frames, side, 6, 3]: hip, knee, ankle, heel, ball, toe
    waist: Array  # [frames, 3]
    shoulders: Array  # [frames, side, 3]
    arms: Array  # [frames, side, 3, 3]: elbow, wrist, end of the hand
    neck: Array  # [frames, 3] its base
    head: Array  # [frames, 3] its centre
    pelvis_axes: Array  # [frames, 3, 3]
    trunk_axes: Array  # [frames, 3, 3]
    head_axes: Array  # [frames, 3, 3]


def rotation(yaw: Array, pitch: Array, roll: Array) -> Array:
    """[n, 3, 3] from angles [n] in degrees: yaw turns left, pitch leans forwards, roll lifts the left."""
    yaw, pitch, roll = (np.radians(np.broadcast_arrays(yaw, pitch, roll))).astype(float)
    (cy, cp, cr), (sy, sp, sr) = np.cos((yaw, pitch, roll)), np.sin((yaw, pitch, roll))
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)


def curve(table: tuple[float, ...], phase: Array, gains: Array, shifts: Array) -> Array:
    """A periodic curve through `table`, its harmonics 0.. scaled by `gains`, shifted by `shifts` radians."""
    terms = np.fft.rfft(table)[: len(gains)] / len(table)
    terms[1:] *= 2
    harmonics = np.arange(len(gains))
    return (terms * gains * np.exp(1j * (2 * np.pi * phase[..., None] * harmonics + shifts))).real.sum(-1)


def _leg_angles(manner: dict[str, float], phase: Array, sign: int) -> tuple[Array, Array, Array]:
    """Thigh, shank and foot angles in degrees; `sign` is +1 left, -1 right."""
    gain = 1 + sign * manner["leg_asymmetry"]
    ones, zeros = np.ones(8), np.zeros(8)
    thigh_gains, thigh_shifts = gain * manner["thigh_gain"] * ones, zeros.copy()
    thigh_gains[2] *= manner["thigh_gain_2"]
    thigh_shifts[2:4] = manner["thigh_phase_2"], manner["thigh_phase_3"]
    knee_gains, knee_shifts = manner["knee_gain"] * ones, zeros.copy()
    knee_gains[2] *= manner["knee_gain_2"]
    knee_shifts[2:4] = manner["knee_phase_2"], manner["knee_phase_3"]
    thigh = curve(THIGH, phase, thigh_gains, thigh_shifts) + manner["thigh_offset"]
    knee = np.maximum(curve(KNEE, phase, knee_gains, knee_shifts) + manner["stance_knee"], 1.0)
    return thigh, thigh - knee, curve(FOOT, phase, manner["foot_gain"] * ones, zeros)


def _leg(subject: Subject, phase: Array, sign: int) -> Array:
    """[n, 6, 3]: one leg's joints relative to the point between the hips, before the pelvis sways."""
    lengths, manner = subject.lengths, subject.manner
    thigh, shank, foot = (np.radians(angle) for angle in _leg_angles(manner, phase, sign))
    toe_pitch = foot * np.where(foot < 0, 0.45, 1.0)  # the toes bend as the heel comes up
    swing = np.clip((phase % 1 - 0.6) / 0.4, 0, 1)
    cycle = 2 * np.pi * (phase if sign > 0 else phase - 0.5)
    yaw, roll = (
        np.radians(-manner["pelvis_yaw"]) * np.cos(cycle),
        np.radians(manner["pelvis_roll"]) * np.sin(cycle),
    )
    track = sign * (manner["step_width"] + manner["circumduction"] * np.sin(np.pi * swing) ** 2)
    track = track - manner["sway"] * np.sin(cycle)
    out = np.radians(manner["toe_out"])

    points = np.zeros((len(phase), 6, 3))
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    x[:, HIP] = -sign * lengths["hips"] * np.sin(yaw)
    y[:, HIP] = sign * lengths["hips"]
    z[:, HIP] = sign * lengths["hips"] * np.sin(roll)
    x[:, KNEE_JOINT] = x[:, HIP] + lengths["thigh"] * np.sin(thigh)
    z[:, KNEE_JOINT] = z[:, HIP] - lengths["thigh"] * np.cos(thigh)
    x[:, ANKLE] = x[:, KNEE_JOINT] + lengths["shank"] * np.sin(shank)
    z[:, ANKLE] = z[:, KNEE_JOINT] - lengths["shank"] * np.cos(shank)
    # Sideways the leg leans from the hip to the foot's own track, so that sway never drags the standing foot.
    y[:, ANKLE] = track
    y[:, KNEE_JOINT] = (y[:, HIP] + track) / 2 - sign * manner["knock_knee"]
    drop = lengths["ankle"]
    for joint, ahead in ((HEEL, -0.24), (BALL, 0.48)):
        reach = ahead * lengths["foot"]
        level = reach * np.cos(foot) + drop * np.sin(foot)
        x[:, joint] = x[:, ANKLE] + level * np.cos(out)
        y[:, joint] = track + sign * level * np.sin(out)
        z[:, joint] = z[:, ANKLE] + reach * np.sin(foot) - drop * np.cos(foot)
    reach = 0.28 * lengths["foot"]
    x[:, TOE] = x[:, BALL] + reach * np.cos(toe_pitch) * np.cos(out)
    y[:, TOE] = y[:, BALL] + sign * reach * np.cos(toe_pitch) * np.sin(out)
    z[:, TOE] = z[:, BALL] + reach * np.sin(toe_pitch)
    return points


def legs(subject: Subject, phase: Array) -> Array:
    """[n, side, 6, 3]: both legs' joints, from the point between the hips. `phase` [n] is the left leg's."""
    right = phase + 0.5 + subject.manner["step_asymmetry"]
    return np.stack([_leg(subject, phase, 1), _leg(subject, right, -1)], 1)


def _series(values: Array, num_harmonics: int) -> Array:
    terms = np.fft.rfft(values) / len(values)
    terms[1:] *= 2
    return terms[: num_harmonics + 1]


def root(subject: Subject, strides: Array) -> Array:
    """[n, 3]: the point between the hips after `strides` [n], such that the foot on the ground stands still.

    Whatever touches the ground (heel, ball or toe) carries the body over it: the pelvis is as high above it,
    and moves forwards as fast, as the leg says.
    """
    grid = np.arange(NUM_GRID) / NUM_GRID
    contacts = legs(subject, grid)[:, :, HEEL:, :].reshape(NUM_GRID, 6, 3)
    x, z = contacts[..., 0], contacts[..., 2]
    stands = np.stack([grid, grid + 0.5 + subject.manner["step_asymmetry"]], 1) % 1 < 0.66
    z = np.where(np.repeat(stands, 3, 1), z, np.inf)  # a toe that scuffs in swing carries nobody
    weights = np.exp(-(z - z.min(1, keepdims=True)) / 0.006)
    weights /= weights.sum(1, keepdims=True)
    speed = -(weights * (np.roll(x, -1, 0) - np.roll(x, 1, 0)) * NUM_GRID / 2).sum(1)
    height, advance = _series(-z.min(1), 8), _series(speed, 4)
    harmonics = 2j * np.pi * np.arange(1, 9)
    turns = np.exp(harmonics * strides[:, None])
    rise = (height[1:] * turns).real.sum(1)
    surge = (advance[1:] / harmonics[:4] * turns[:, :4]).real.sum(1)
    sway = subject.manner["sway"] * np.sin(2 * np.pi * strides)
    ahead = advance[0].real * strides + surge
    return np.stack([ahead, sway, height[0].real + subject.manner["bob"] * rise], -1)


def _arm(trial: Trial, phase: Array, shoulder: Array, trunk: Array, sign: int) -> Array:
    """[n, 3, 3]: elbow, wrist and end of the hand of one arm. `phase` is that side's leg, opposed by it."""
    manner, lengths, outfit = trial.subject.manner, trial.subject.lengths, trial.outfit
    swing = manner["arm_swing"] * (1 + sign * manner["arm_asymmetry"])
    bend, spread = manner["elbow"], manner["arm_spread"]
    if outfit.bag in ("shoulder", "hand") and outfit.side == sign:
        swing *= 0.4
        bend, spread = (55.0, spread + 8) if outfit.bag == "shoulder" else (6.0, spread + 4)
    cycle = 2 * np.pi * phase + manner["arm_lag"]
    upper = np.radians(manner["arm_offset"] - swing * np.cos(cycle) - 0.08 * swing * np.cos(2 * cycle))
    elbow = np.maximum(bend - manner["elbow_swing"] * (swing / 19) * np.cos(cycle - 0.3), 2.0)
    lower = upper + np.radians(elbow)
    out = np.radians(spread)
    inward = manner["arm_inward"] * np.sin(np.radians(elbow))

    def along(angle: Array, aside: Array) -> Array:
        direction = np.stack([np.sin(angle) * np.cos(aside), sign * np.sin(aside), -np.cos(angle) * np.cos(aside)], -1)
        return np.einsum("nij,nj->ni", trunk, direction)

    elbow_at = shoulder + lengths["upper_arm"] * along(upper, np.full_like(upper, out))
    wrist = elbow_at + lengths["forearm"] * along(lower, out * 0.4 - inward)
    hand = wrist + lengths["hand"] * along(lower + 0.12, out * 0.2 - inward)
    return np.stack([elbow_at, wrist, hand], 1)


def pose(trial: Trial, num_frames: int) -> Pose:
    """The whole walk at FRAMES_PER_SECOND, from the trial's start phase, centred on the path's middle."""
    subject = trial.subject
    manner, lengths, height = subject.manner, subject.lengths, subject.height
    strides = trial.phase + np.arange(num_frames) * manner["cadence"] / FRAMES_PER_SECOND
    cycle = 2 * np.pi * strides
    pelvis = root(subject, strides)
    pelvis[:, 0] -= (pelvis[0, 0] + pelvis[-1, 0]) / 2
    joints = legs(subject, strides) + pelvis[:, None, None]

    lean = manner["lean"] + 0.8 * np.cos(2 * cycle)
    pelvis_axes = rotation(-manner["pelvis_yaw"] * np.cos(cycle), 0.4 * lean, manner["pelvis_roll"] * np.sin(cycle))
    trunk_axes = rotation(
        manner["trunk_yaw"] * np.cos(cycle), lean + manner["hunch"], -manner["trunk_roll"] * np.sin(cycle)
    )
    lower_axes = rotation(np.zeros(num_frames), lean - 0.5 * manner["hunch"], np.zeros(num_frames))
    head_axes = rotation(0.15 * manner["trunk_yaw"] * np.cos(cycle), manner["head_tilt"] + 0 * lean, 0 * lean)

    waist = pelvis + 0.36 * lengths["trunk"] * lower_axes[..., 2]
    neck = waist + (0.64 * lengths["trunk"] + 0.030 * height) * trunk_axes[..., 2]
    across, up = trunk_axes[..., 1], trunk_axes[..., 2]
    middle = waist + 0.64 * lengths["trunk"] * up
    shoulders = np.stack([middle + lengths["shoulders"] * across, middle - lengths["shoulders"] * across], 1)
    arms = np.stack(
        [
            _arm(trial, strides, shoulders[:, 0], trunk_axes, 1),
            _arm(trial, strides + 0.5 + manner["step_asymmetry"], shoulders[:, 1], trunk_axes, -1),
        ],
        1,
    )
    head = neck + (lengths["neck"] + 0.75 * lengths["head"]) * head_axes[..., 2]
    head[:, 0] += manner["head_forward"]
    return Pose(pelvis, joints, waist, shoulders, arms, neck, head, pelvis_axes, trunk_axes, head_axes)
