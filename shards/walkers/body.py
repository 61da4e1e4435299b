"""Who a procedural walker is: a body, a manner of walking, and what is worn in one trial.

Every measure is drawn from one table of (mean, spread over people). A trial draws from the same table again,
around its subject and with a fraction of that spread, so how far people overlap is set by a few numbers at
the top of this file.
"""

from dataclasses import dataclass, replace

import numpy as np

CONDITIONS = ("nm-01", "nm-02", "nm-03", "nm-04", "nm-05", "nm-06", "bg-01", "bg-02", "cl-01", "cl-02")

HAIRSTYLES = ("short", "short", "full", "bun", "tail", "long")
BAGS = ("shoulder", "backpack", "hand")

MANNER_PER_TRIAL = 0.30  # spread within a subject's trials, over the spread between subjects
GIRTH_PER_TRIAL = 0.15  # clothes sit differently from day to day; bones do not change

# Fractions of the body's height (after Drillis & Contini 1966) and the relative spread over people.
LENGTHS = {
    "thigh": (0.243, 0.035),
    "shank": (0.245, 0.035),
    "ankle": (0.040, 0.06),
    "foot": (0.150, 0.05),
    "trunk": (0.280, 0.035),
    "neck": (0.050, 0.10),
    "upper_arm": (0.178, 0.04),
    "forearm": (0.148, 0.045),
    "hand": (0.085, 0.05),
    "shoulders": (0.096, 0.06),
    "hips": (0.053, 0.07),
    "head": (0.066, 0.045),
}
GIRTHS = {
    "chest": (0.083, 0.06),
    "chest_depth": (0.062, 0.08),
    "waist": (0.074, 0.08),
    "waist_depth": (0.055, 0.10),
    "pelvis": (0.092, 0.07),
    "pelvis_depth": (0.058, 0.07),
    "buttocks": (0.052, 0.08),
    "thigh_girth": (0.050, 0.08),
    "knee_girth": (0.034, 0.07),
    "calf_girth": (0.036, 0.09),
    "ankle_girth": (0.022, 0.08),
    "arm_girth": (0.028, 0.10),
    "wrist_girth": (0.017, 0.08),
}
STOUTNESS = 0.09  # spread of one factor common to all girths, most of it at the waist

# Mean and spread over people. Angles in degrees, lengths in metres, gains as factors.
MANNERS = {
    "cadence": (0.92, 0.065),  # strides a second
    "thigh_gain": (1.0, 0.09),
    "knee_gain": (1.0, 0.09),
    "foot_gain": (0.95, 0.08),
    "thigh_offset": (0.0, 2.0),
    "stance_knee": (2.0, 2.5),
    "lean": (2.0, 3.0),
    "hunch": (5.0, 5.5),
    "head_tilt": (4.0, 5.5),
    "head_forward": (0.025, 0.014),
    "toe_out": (8.0, 6.0),
    "step_width": (0.062, 0.018),
    "circumduction": (0.015, 0.010),
    "knock_knee": (0.0, 0.012),
    "bob": (1.0, 0.07),
    "sway": (0.022, 0.009),
    "pelvis_yaw": (5.0, 2.2),
    "pelvis_roll": (3.5, 1.6),
    "trunk_yaw": (6.0, 3.0),
    "trunk_roll": (1.5, 1.5),
    "arm_swing": (19.0, 6.0),
    "arm_offset": (-2.0, 5.0),
    "arm_spread": (8.0, 3.5),
    "arm_lag": (0.0, 0.30),
    "elbow": (19.0, 7.5),
    "elbow_swing": (9.0, 4.0),
    "arm_inward": (0.25, 0.20),
    "arm_asymmetry": (0.0, 0.14),
    "leg_asymmetry": (0.0, 0.025),
    "step_asymmetry": (0.0, 0.010),
    "thigh_phase_2": (0.0, 0.20),
    "thigh_phase_3": (0.0, 0.30),
    "knee_phase_2": (0.0, 0.10),
    "knee_phase_3": (0.0, 0.18),
    "thigh_gain_2": (1.0, 0.25),
    "knee_gain_2": (1.0, 0.10),
}


@dataclass(frozen=True)
class Subject:
    """One person. `lengths` and `girths` are in metres, `manner` as in MANNERS."""

    height: float
    lengths: dict[str, float]
    girths: dict[str, float]
    manner: dict[str, float]
    hairstyle: str
    hair: float


@dataclass(frozen=True)
class Outfit:
    """What is worn in one trial. Lengths in metres; `side` is +1 left, -1 right; `bag` is "" for none."""

    bag: str = ""
    side: int = 1
    bag_size: tuple[float, float, float] = (0.0, 0.0, 0.0)  # half-lengths forwards, sideways and upwards
    coat: float = 0.0  # thickness over the trunk
    sleeve: float = 0.0  # thickness over the arms
    hem: float = 0.0  # where the coat ends: 0 at the hip, 1 at the knee


@dataclass(frozen=True)
class Trial:
    """One walk, seen from all views: who walks it, as they are that day, and where they start."""

    subject: Subject
    outfit: Outfit
    phase: float  # of the left leg at the first frame, in strides
    heading: float  # degrees off the marked path
    offset: tuple[float, float]  # metres off the centre of the path, forwards and sideways


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _spread(rng: np.random.Generator) -> float:
    """A normal number without its far tails: nobody has one leg half as long as the other."""
    return float(np.clip(rng.standard_normal(), -2.2, 2.2))


def subject(number: int, seed: int = 0) -> Subject:
    """The person with this number: the same one whatever the number of people drawn."""
    rng = _generator(seed, number)
    build = _spread(rng)  # narrow-shouldered and wide-hipped at one end, the reverse at the other
    height = 1.70 + 0.055 * build + 0.055 * _spread(rng)
    stout = STOUTNESS * _spread(rng)
    lengths = {name: height * mean * np.exp(sd * _spread(rng)) for name, (mean, sd) in LENGTHS.items()}
    girths = {name: height * mean * np.exp(stout + sd * _spread(rng)) for name, (mean, sd) in GIRTHS.items()}
    lengths["shoulders"] *= 1 + 0.03 * build
    girths["pelvis"] *= 1 - 0.03 * build
    for name in ("waist", "waist_depth"):
        girths[name] *= np.exp(0.8 * stout)
    manner = {name: mean + sd * _spread(rng) for name, (mean, sd) in MANNERS.items()}
    hairstyle = HAIRSTYLES[rng.integers(len(HAIRSTYLES))]
    return Subject(height, lengths, girths, manner, hairstyle, float(rng.uniform(0.3, 1.0)))


def _outfit(kind: str, rng: np.random.Generator) -> Outfit:
    side = 1 if rng.random() < 0.5 else -1
    if kind == "bg":
        bag = BAGS[rng.integers(len(BAGS))]
        low, high = {
            "shoulder": ((0.13, 0.04, 0.10), (0.18, 0.07, 0.15)),
            "backpack": ((0.06, 0.12, 0.17), (0.11, 0.16, 0.24)),
            "hand": ((0.13, 0.04, 0.10), (0.20, 0.07, 0.16)),
        }[bag]
        size = rng.uniform(low, high)
        return Outfit(bag, side, (float(size[0]), float(size[1]), float(size[2])))
    if kind == "cl":
        coat, sleeve, hem = rng.uniform((0.028, 0.014, 0.60), (0.055, 0.032, 1.20))
        return Outfit(side=side, coat=float(coat), sleeve=float(sleeve), hem=float(hem))
    return Outfit(side=side)


def trial(number: int, condition: str, seed: int = 0) -> Trial:
    """The walk of subject `number` in `condition`, one of CONDITIONS: the person that day, outfit, start."""
    if condition not in CONDITIONS:
        raise ValueError(f"no condition {condition!r} among the walkers': use one of {', '.join(CONDITIONS)}")
    rng = _generator(seed, number, CONDITIONS.index(condition))
    person = subject(number, seed)
    manner = {name: person.manner[name] + MANNER_PER_TRIAL * sd * _spread(rng) for name, (_, sd) in MANNERS.items()}
    girths = {
        name: person.girths[name] * np.exp(GIRTH_PER_TRIAL * sd * _spread(rng)) for name, (_, sd) in GIRTHS.items()
    }
    outfit = _outfit(condition[:2], rng)
    if outfit.coat:
        manner["arm_swing"] *= 0.85
        manner["arm_spread"] += 3.0
    return Trial(
        subject=replace(person, manner=manner, girths=girths),
        outfit=outfit,
        phase=float(rng.random()),
        heading=1.5 * _spread(rng),
        offset=(float(rng.uniform(-0.15, 0.15)), float(rng.uniform(-0.12, 0.12))),
    )
