"""Faster ways to the same numbers, and the switch that turns each off.

`HSTL_PLAIN=channels_last,gem` in the environment, or `with without("gem"):`, takes the plain way where a fast one is
named. docs/performance.md has each one's figure. Where a graph is traced (export, `torch.compile`), or a path does not
suit the device, the plain way is taken unasked.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.model import winograd

PATHS = {
    "channels_last": "the channels of a pixel lie together in memory, as convolutions and pools want them",
    "apart": "regions stay tensors of their own from level to level: none are concatenated only to be split again",
    "gem": "GeM keeps logarithm and power of its forward pass for the backward one",
    "winograd": "convolutions of many channels take 4 products where the plain way takes 6 (CPU; not in fp32)",
}
_off = frozenset(filter(None, os.environ.get("HSTL_PLAIN", "").split(",")))
if not _off <= PATHS.keys():
    raise ValueError(f"HSTL_PLAIN names {sorted(_off - PATHS.keys())}; the fast paths are {', '.join(PATHS)}")


def on(path: str) -> bool:
    """Whether a path is on; none is while a graph is traced."""
    return path not in _off and not torch.compiler.is_compiling()


@contextmanager
def without(*paths: str) -> Iterator[None]:
    """Turns paths off inside the block, where the backward pass must be, too: `micro_batch` computes anew in it."""
    global _off
    before, _off = _off, _off.union(paths)
    try:
        yield
    finally:
        _off = before


def laid_out(x: Tensor) -> Tensor:
    """`[n, c, t, h, w]` in the memory format that is on."""
    if not on("channels_last"):
        return x.contiguous()
    if x.shape[1] == 1:  # lies either way; what comes of it follows its strides
        return x.reshape(x.shape[0], *x.shape[2:], 1).permute(0, 4, 1, 2, 3)
    return x.contiguous(memory_format=torch.channels_last_3d)


def apart(bodies: list[Tensor]) -> list[Tensor]:
    """Regions as they are; one whole where that path is off."""
    return bodies if on("apart") else [torch.cat(bodies, dim=3)]


def recut(bodies: Sequence[Tensor], regions: Sequence[int]) -> list[Tensor]:
    """Regions `[n, c, t, h, w]`, top to bottom, cut anew along height; copies nothing where they are cut finer."""
    heights = [body.shape[3] for body in bodies]
    if heights == list(regions):
        return list(bodies)
    finer, rest = [], list(regions)
    for height in heights:
        own: list[int] = []
        while rest and sum(own) < height:
            own.append(rest.pop(0))
        finer.append(own)
    if [sum(own) for own in finer] != heights:
        return list(torch.cat(list(bodies), dim=3).split(list(regions), dim=3))
    return [piece for body, own in zip(bodies, finer, strict=True) for piece in body.split(own, dim=3)]


def conv3d(x: Tensor, weight: Tensor) -> Tensor:
    """3x3x3 convolution, padded by one: `[n, c_in, t, h, w] -> [n, c_out, t, h, w]`."""
    # Autocast does not reach into the function: it is asked here. It leaves float64 alone.
    cast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype("cpu") if cast else x.dtype
    # Not in fp32, which people ask for when they want the release's numbers: one part of 50 was 1e-4 off.
    if dtype != torch.float32 and on("winograd") and on("channels_last") and winograd.fits(x, weight):
        return winograd.conv3d(x.to(dtype), weight)
    if dtype == torch.bfloat16 and x.device.type == "cpu" and x.shape[2] == 2:
        # torch 2.13's backward pass of just this, bf16 on a CPU at a depth of 2, gives wrong gradients, often NaN.
        with torch.autocast("cpu", enabled=False):
            return F.conv3d(laid_out(x.float()), laid_out(weight.float()), padding=1).to(dtype)
    return F.conv3d(laid_out(x), laid_out(weight), padding=1)


def pooled(x: Tensor, *window: Any, **options: Any) -> Tensor:
    """`F.max_pool3d` in the type that `x` has."""
    # Autocast on CPUs would have it in fp32, where a maximum is the same and every pass takes twice the memory.
    with torch.autocast(x.device.type, enabled=False):
        return F.max_pool3d(x, *window, **options)


def maximum_over_time(x: Tensor) -> Tensor:
    """`[n, c, t, h, w] -> [n, c, h, w]`; among equal frames the first gets the gradient, as in the release."""
    if on("channels_last") and x.device.type == "cpu":
        # The pool is fast where channels lie innermost: ten times so against `max`.
        return pooled(x, (x.shape[2], 1, 1)).squeeze(2)
    return x.max(dim=2).values


def mean_over_space(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`[n, c, t, h, w] -> [n, c, t]`, summed and given in `dtype`."""
    return _MeanOverSpace.apply(x, dtype) if on("channels_last") else x.mean(dim=(3, 4), dtype=dtype)


class _MeanOverSpace(torch.autograd.Function):
    """Its gradient has channels last, too: torch's own would lie otherwise, and be slow to add to others."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return x.mean(dim=(3, 4), dtype=dtype)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        n, c, t, h, w = ctx.shape
        each = (outer[0] / (h * w)).to(ctx.dtype).transpose(1, 2)
        return each[:, :, None, None].expand(n, t, h, w, c).contiguous().permute(0, 4, 1, 2, 3), None


def power_means(x: Tensor, power: Tensor, regions: Sequence[int], epsilon: float) -> Tensor:
    """Means of `clamp(x)^p` over regions of rows, `[n, c, h, w] -> [n, regions, c]`, in the dtype of `power`.

    `power` holds one for all regions, or one a region.
    """
    if len(power) == 1 and len(set(regions)) == 1:
        bodies = [x.unflatten(2, (len(regions), regions[0]))]
    else:
        bodies, power = [body[:, :, None] for body in x.split(list(regions), dim=2)], power.expand(len(regions))
    means = [_PowerMean.apply(body, p, epsilon) for body, p in zip(bodies, power, strict=True)]
    return torch.cat(means, dim=2).transpose(1, 2)


def _least_exponent(dtype: torch.dtype) -> float:
    """Below it the exponential has fewer digits than the type's (fp32: -87.3)."""
    return math.log(torch.finfo(dtype).tiny)


class _PowerMean(torch.autograd.Function):
    """`[n, c, regions, h, w] -> [n, c, regions]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, power: Tensor, epsilon: float) -> Tensor:
        logarithm = x.to(power.dtype).clamp(min=epsilon).log_()
        # Background underflows: its powers, 1e-39, are added to 1e-6 and more, and cost 25 times as long as a zero.
        raised = F.threshold(logarithm * power, _least_exponent(power.dtype), -torch.inf, inplace=True).exp_()
        ctx.save_for_backward(x, logarithm, raised, power)
        ctx.epsilon = epsilon
        return raised.mean(dim=(3, 4))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, None]:
        x, logarithm, raised, power = ctx.saved_tensors
        raised = raised * (outer[0] / (x.shape[3] * x.shape[4]))[..., None, None]
        by_power = (raised * logarithm).sum()
        by_x = raised.mul_(power).div_(x.clamp(min=ctx.epsilon)).masked_fill_(x < ctx.epsilon, 0.0)
        return by_x.to(x.dtype), by_power, None
