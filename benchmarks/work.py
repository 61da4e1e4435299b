"""What a step must do, by calculation: multiplications and bytes, from the variant alone."""

from collections.abc import Iterator

from pipeline.model.variants import ROWS, Variant


def feature_maps(variant: Variant, frames: int, width: int = 44) -> Iterator[tuple[int, int, int]]:
    """Channels in, channels out and voxels of each 3x3x3 convolution of one sequence, in order."""
    voxels, channels = frames * ROWS * width, 1
    for out in variant.stem:
        yield channels, out, voxels
        channels = out
    if variant.halved:
        width //= 2
    for number, level in enumerate(variant.levels):
        steps = frames if number == 0 else frames // 3
        for out in level.widths:
            yield channels, out, steps * variant.rows * width
            channels = out


def multiplications(variant: Variant, frames: int, num_classes: int, width: int = 44) -> int:
    """Multiply-adds of one sequence's forward pass, convolutions counted as they are defined."""
    convolutions = sum(27 * a * b * voxels for a, b, voxels in feature_maps(variant, frames, width))
    halves = 2 if variant.halved else 1
    first = variant.levels[0].widths[-1]
    maps = [(variant.stem[-1], ROWS * width)]
    maps += [(w, variant.rows * width // halves) for w in (first, first, *(v.widths[-1] for v in variant.levels[1:]))]
    projections = sum(c * variant.channels * pixels for c, pixels in maps if c != variant.channels)
    head = variant.parts * variant.channels * (variant.channels + num_classes)
    return convolutions + projections + head


def step_operations(variant: Variant, frames: int, num_classes: int, sequences: int) -> float:
    """Floating-point operations of a training step: two a multiply-add, forward once and backward twice."""
    return 6.0 * multiplications(variant, frames, num_classes) * sequences


def step_bytes(variant: Variant, frames: int, sequences: int, num_parameters: int, bytes_a_value: int) -> float:
    """Least bytes of a training step between memory and cores, nothing between two operations kept in the cache.

    A feature map is written and read going forward, read again going back, and its gradient written once and read
    for each of two products; Adam reads four fp32 values a parameter and writes three.
    """
    values = sum(out * voxels for _, out, voxels in feature_maps(variant, frames))
    return 6.0 * values * bytes_a_value * sequences + 7 * 4 * num_parameters
