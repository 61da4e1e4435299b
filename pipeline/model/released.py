"""Names of the published checkpoints <-> ours, both ways, without loss.

The release keeps one tensor a region (`arme2.0.conv3d.1.conv3d.weight`); we stack the regions of a level.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.model.variants import ROWS, Variant

Place = tuple[str, tuple[int, ...]]
"""Our parameter, and the index into its first dimensions where a released tensor goes."""


def places(variant: Variant) -> dict[str, Place]:
    """Released name -> place in our state dict, for every tensor of the variant."""
    names: dict[str, Place] = {}
    for i in range(len(variant.stem)):
        # The release's level 1 is a Sequential that counts its activations, too.
        names[f"arme1.{2 * i}.conv3d.weight"] = (f"arme.0.{i}.weight", (0,))
    for number, level in enumerate(variant.levels, start=1):
        for i in range(len(level.widths)):
            for r in range(len(level.regions)):
                names[f"arme{number + 1}.{i}.conv3d.{r}.conv3d.weight"] = (f"arme.{number}.{i}.weight", (r,))
    pools: list[tuple[tuple[int, ...], int, str, str]] = [((ROWS,), variant.stem[-1], "astp1", "astp.0")]
    pools += [
        (level.regions, level.widths[-1], f"astp{number + 1}", f"astp.{number}")
        for number, level in enumerate(variant.levels, start=1)
    ]
    pools.append((variant.levels[0].regions, variant.levels[0].widths[-1], "astp2_fta", "astp_fta"))
    for regions, width, theirs, ours in pools:
        for r in range(len(regions)):
            names[f"{theirs}.hpp.{r}.p"] = (f"{ours}.pool.power", (r,))
        if width != variant.channels:
            names[f"{theirs}.proj.conv.weight"] = (f"{ours}.project.weight", ())
    for r in range(len(variant.levels[0].regions)):
        for branch in range(2):
            names[f"fta.mma.{r}.fcs.{branch}.weight"] = ("fta.weight", (r, branch))
            names[f"fta.mma.{r}.fcs.{branch}.bias"] = ("fta.bias", (r, branch))
    names["HPP.p"] = ("strips.power", ())
    names["Head0.fc_bin"] = ("head.weight", ())
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        names[f"Bn.{name}"] = (f"norm.{name}", ())
    names["Head1.fc_bin"] = ("classifier.weight", ())
    return names


def to_released(state: Mapping[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Our state dict under the release's names and shapes."""
    released = {}
    for theirs, (ours, index) in places(variant).items():
        tensor = state[ours][index] if index else state[ours]
        if theirs.endswith(".p"):
            tensor = tensor.reshape(1)
        elif ".fcs." in theirs and theirs.endswith("weight"):
            tensor = tensor[..., None]
        released[theirs] = tensor.clone()
    return released


def from_released(released: Mapping[str, Tensor], like: Mapping[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """A released `model` entry under our names; `like` is a state dict of ours that gives the shapes.

    Raises ValueError, naming every difference at once, where names or shapes are another network's.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in to_released(like, variant).items()}
    given = {name: tuple(tensor.shape) for name, tensor in released.items()}
    if given != expected:
        raise ValueError(_difference(given, expected, variant))
    state = {name: torch.empty_like(tensor) for name, tensor in like.items()}
    for theirs, (ours, index) in places(variant).items():
        target = state[ours][index] if index else state[ours]
        target.copy_(released[theirs].reshape(target.shape))
    return state


def _difference(given: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], variant: Variant) -> str:
    lines = [f"these are not the weights of the {variant.name!r} network:"]
    parts, wanted = given.get("Head0.fc_bin", (0,))[0], variant.parts
    if parts != wanted:
        lines.append(f"  they have {parts} parts, this variant has {wanted}" + _seventeen(parts, wanted))
    classes, expected_classes = given.get("Head1.fc_bin", (0,))[-1], expected["Head1.fc_bin"][-1]
    if classes != expected_classes:
        lines.append(f"  they were trained on {classes} subjects, this network has {expected_classes} classes")
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    shapes = [f"{n} {given[n]} instead of {expected[n]}" for n in expected if n in given and given[n] != expected[n]]
    for label, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes)):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            lines.append(f"  {label}: {', '.join(names[:4])}{more}")
    return "\n".join(lines)


def _seventeen(parts: int, wanted: int) -> str:
    if {parts, wanted} == {17, 73}:
        return " (CASIA-B was released twice: 17 parts is variant 'casia-b-17', 73 parts 'casia-b')"
    return ""
