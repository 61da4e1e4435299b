"""The HSTL network (Wang et al., ICCV 2023): tensors in, tensors out."""

from pipeline.model.hstl import HSTL, HSTLOutput
from pipeline.model.variants import VARIANTS, Level, Variant

__all__ = ["HSTL", "VARIANTS", "HSTLOutput", "Level", "Variant"]
