"""HSTL: hierarchical spatio-temporal representation learning (Wang et al., ICCV 2023)."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.model import fast
from pipeline.model.hub import HubMixin
from pipeline.model.layers import ARME, ASTP, FTA, GeM, GlobalBatchNorm, PartLinear, maximum_over_time, repeat_short
from pipeline.model.variants import ROWS, VARIANTS, Variant

Precision = Literal["fp32", "bf16"]


class HSTLOutput(NamedTuple):
    """What the network makes of n sequences."""

    embeddings: Tensor
    """fp32 `[n, parts, channels]`, after BatchNorm: what the triplet loss sees and what is compared at test."""
    logits: Tensor
    """`[n, parts, classes]`, one score a training subject and part."""


class HSTL(nn.Module, HubMixin):
    """Part vectors of a walk at several levels of the body, from silhouettes.

    Input: float `[n, frames, 64, width]` in [0, 1], at least 1 frame; 44 wide in every published result.
    `precision="bf16"` runs convolutions and the classifier in bf16 by autocast; parameters, pooling powers,
    the embedding head and BatchNorm stay in fp32, so the same network trains alike under every launcher.
    `micro_batch` runs the convolutions that many sequences at a time and computes them anew in the backward
    pass: the result is the same, since they see each sequence alone; memory no longer grows with the batch.
    """

    def __init__(
        self,
        variant: str | Variant,
        num_classes: int,
        *,
        precision: Precision = "fp32",
        micro_batch: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(variant, str):
            if variant not in VARIANTS:
                raise ValueError(f"unknown HSTL variant {variant!r}; choose one of {', '.join(VARIANTS)}")
            variant = VARIANTS[variant]
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; give the number of training subjects")
        if precision not in get_args(Precision):
            raise ValueError(f"precision is {precision!r}; choose one of {', '.join(get_args(Precision))}")
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(
                f"micro_batch is {micro_batch}; give the sequences convolved at a time, at least 1, or None"
            )
        self.variant, self.num_classes = variant, num_classes
        self.precision, self.micro_batch = precision, micro_batch

        channels = variant.channels
        regions = [(ROWS,), *(level.regions for level in variant.levels)]
        widths = [variant.stem, *(level.widths for level in variant.levels)]
        inputs = [1, *(width[-1] for width in widths)]
        self.arme = nn.ModuleList(ARME(i, w, r) for i, w, r in zip(inputs, widths, regions, strict=False))
        self.astp = nn.ModuleList(ASTP(w[-1], channels, r) for w, r in zip(widths, regions, strict=True))
        self.fta = FTA(widths[1][-1], regions[1])
        self.astp_fta = ASTP(widths[1][-1], channels, regions[1])
        self.strips = GeM([variant.rows // variant.strips] * variant.strips, shared=True)
        self.head = PartLinear(variant.parts, channels, channels)
        self.norm = GlobalBatchNorm(channels)
        self.classifier = PartLinear(variant.parts, channels, num_classes)

    def forward(self, silhouettes: Tensor) -> HSTLOutput:
        parts = self._part_vectors(silhouettes)
        with torch.autocast(parts.device.type, enabled=False):
            embeddings = self.norm(self.head(parts))
        with self._arithmetic(parts):
            logits = self.classifier(embeddings)
        return HSTLOutput(embeddings, logits)

    def embed(self, silhouettes: Tensor) -> Tensor:
        """Embeddings alone, `[n, parts, channels]`: the classifier is not run."""
        with torch.autocast(silhouettes.device.type, enabled=False):
            return self.norm(self.head(self._part_vectors(silhouettes)))

    def _arithmetic(self, tensor: Tensor) -> torch.autocast:
        return torch.autocast(tensor.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _part_vectors(self, silhouettes: Tensor) -> Tensor:
        """`[n, frames, 64, width] -> [n, parts, channels]`."""
        if silhouettes.ndim != 4 or silhouettes.shape[1] < 1:
            raise ValueError(
                f"silhouettes of shape {list(silhouettes.shape)}: HSTL takes [n, frames, {ROWS}, width] with at "
                "least 1 frame"
            )
        if silhouettes.shape[2] != ROWS:
            raise ValueError(
                f"silhouettes are {silhouettes.shape[2]} rows high, but HSTL's body regions are cut out of {ROWS} "
                f"rows; resize the frames to height {ROWS} (shards.silhouettes.normalise does)"
            )
        if self.micro_batch is None or not (self.training and torch.is_grad_enabled()):
            return self._extract(silhouettes)
        chunks = silhouettes.split(self.micro_batch)
        # Nothing in it is random, so there is no state of generators to carry into the second pass.
        return torch.cat(
            [checkpoint(self._extract, chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        )

    def _extract(self, silhouettes: Tensor) -> Tensor:
        with self._arithmetic(silhouettes):
            x = self.arme[0]([repeat_short(silhouettes[:, None])])
            parts = [self.astp[0](maximum_over_time(x))]
            if self.variant.halved:
                x = [fast.pooled(body, (1, 2, 2)) for body in x]
            x = self.arme[1](x)
            parts.append(self.astp[1](maximum_over_time(x)))
            x = self.fta(x)
            maximum = maximum_over_time(x)
            parts.append(self.astp_fta(maximum))
            for arme, astp in zip(self.arme[2:], self.astp[2:], strict=True):
                x = arme(x)
                maximum = maximum_over_time(x)
                parts.append(astp(maximum))
            parts.append(self.strips(maximum))
            return torch.cat(parts, dim=1)
