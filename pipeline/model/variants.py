"""The shapes HSTL was published in, as data. One class builds them all (`pipeline.model.HSTL`)."""

from dataclasses import dataclass

ROWS = 64
"""Height of every input silhouette, in pixels: the regions below are cut out of it."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of the body hierarchy: how the rows are cut, and how wide its convolutions are."""

    regions: tuple[int, ...]
    """Heights of the horizontal body regions, top to bottom, in feature rows."""
    widths: tuple[int, ...]
    """Output channels of the level's regional convolutions, first to last."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A network: the levels from coarse to fine, then strips of equal height."""

    name: str
    stem: tuple[int, ...]
    """Output channels of the convolutions over the whole body (level 1)."""
    halved: bool
    """Whether height and width are max-pooled by two after level 1."""
    levels: tuple[Level, ...]
    """Levels 2 and on; the temporal aggregation (FTA) follows the first of them."""
    strips: int
    """Strips of the last pooling."""

    @property
    def rows(self) -> int:
        """Feature rows after level 1."""
        return ROWS // 2 if self.halved else ROWS

    @property
    def channels(self) -> int:
        """Channels of a part vector."""
        return self.levels[-1].widths[-1]

    @property
    def parts(self) -> int:
        """Part vectors a sequence: one a region of every level (the FTA level twice), one a strip."""
        return 1 + len(self.levels[0].regions) + sum(len(level.regions) for level in self.levels) + self.strips

    def __post_init__(self) -> None:
        for number, level in enumerate(self.levels, start=2):
            if sum(level.regions) != self.rows:
                raise ValueError(
                    f"variant {self.name!r}: the regions of level {number} sum to {sum(level.regions)} rows, "
                    f"but the features have {self.rows}; make them sum to {self.rows}"
                )
        if self.rows % self.strips:
            raise ValueError(f"variant {self.name!r}: {self.strips} strips do not divide {self.rows} rows evenly")


def _casia_b(name: str, strips: int) -> Variant:
    return Variant(
        name=name,
        stem=(32,),
        halved=False,
        levels=(
            Level(regions=(40, 24), widths=(32, 64)),
            Level(regions=(8, 32, 16, 8), widths=(128, 128)),
        ),
        strips=strips,
    )


def _oumvlp(name: str) -> Variant:
    return Variant(
        name=name,
        stem=(32, 32),
        halved=True,
        levels=(
            Level(regions=(4, 24, 4), widths=(64, 64)),
            Level(regions=(4, 4, 12, 8, 4), widths=(128, 128)),
            Level(regions=(4, 4, 12, 4, 4, 4), widths=(256, 256)),
        ),
        strips=32,
    )


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        _casia_b("casia-b", strips=64),
        # The first CASIA-B release pooled the last level into 8 strips; its checkpoints have 17 parts.
        _casia_b("casia-b-17", strips=8),
        _oumvlp("oumvlp"),
        # Nobody published a GREW configuration: ours is OUMVLP's network over GREW's 20,000 subjects.
        _oumvlp("grew"),
        Variant(
            name="gait3d",
            stem=(32, 32),
            halved=True,
            levels=(
                Level(regions=(20, 12), widths=(64, 64)),
                Level(regions=(4, 16, 8, 4), widths=(128, 128)),
                Level(regions=(4, 4, 12, 8, 4), widths=(256, 256)),
            ),
            strips=32,
        ),
        # CASIA-B's regions at half resolution and a quarter of the width: trains on two CPU cores.
        Variant(
            name="demo",
            stem=(8,),
            halved=True,
            levels=(
                Level(regions=(20, 12), widths=(16, 16)),
                Level(regions=(4, 16, 8, 4), widths=(32, 32)),
            ),
            strips=16,
        ),
    )
}
