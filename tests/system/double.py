"""Training in float64, where rounding stays rounding for twenty steps; launched in place of `pipeline.train`."""

from torch import Tensor

from pipeline import train
from pipeline.model import HSTL, HSTLOutput


class Double(HSTL):
    """HSTL in float64 from the first weight on."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]
        self.double()

    def forward(self, silhouettes: Tensor) -> HSTLOutput:
        return super().forward(silhouettes.double())


if __name__ == "__main__":
    train.HSTL = Double  # type: ignore[misc]
    train.main()
