"""3x3x3 convolution with 4 products for every 2 frames in place of 6: Winograd's F(2, 3) along time.

Two neighbouring frames of the result need four of the input, d0 .. d3, through weights g0, g1, g2. The six products are
had from four 3x3 convolutions of sums of frames with sums of weights (S. Winograd 1980; Lavin and Gray, CVPR 2016):

    m0 = (d0 - d2) * g0                         first  = m0 + m1 + m2
    m1 = (d1 + d2) * (g0 + g1 + g2) / 2         second = m1 - m2 - m3
    m2 = (d2 - d1) * (g0 - g1 + g2) / 2
    m3 = (d1 - d3) * g2

Exact but for rounding (1.7 times that of the plain convolution), in a third fewer operations forward and backward.
Frames are channels-last here, `[n, t / 2, h, w, c]`, so that each is one block of memory.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether it pays: on a CPU, an even number of frames, and channels enough to outweigh the sums."""
    on_cpu = x.device.type == "cpu" and len(x) > 0
    return on_cpu and x.shape[2] % 2 == 0 and weight.shape[0] * weight.shape[1] >= 32 * 64


def conv3d(x: Tensor, weight: Tensor) -> Tensor:
    """As `F.conv3d(x, weight, padding=1)`: `[n, c_in, t, h, w] -> [n, c_out, t, h, w]`, t even, channels last."""
    return _Winograd.apply(x, *(taps.to(x.dtype) for taps in _weights(weight)))


def _weights(weight: Tensor) -> Four:
    """`[c_out, c_in, 3, 3, 3]` -> four of `[c_out, c_in, 3, 3]`."""
    first, middle, last = weight.unbind(2)
    outer, inner = (first + last) / 2, middle / 2
    return first, outer + inner, outer - inner, last


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        weights = tuple(w.contiguous(memory_format=torch.channels_last) for w in weights)
        ctx.save_for_backward(x, *weights)
        m0, m1, m2, m3 = (
            _frames(F.conv2d(_images(v), w, padding=1), len(x)) for v, w in zip(_sums(_rows(x)), weights, strict=True)
        )
        result = _empty_like(x, weights[0].shape[0])
        torch.add(m0.add_(m1), m2, out=_rows(result)[:, 0::2])
        torch.sub(m1.sub_(m2), m3, out=_rows(result)[:, 1::2])
        return result

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        rows = _rows(outer[0])
        first, second = rows[:, 0::2], rows[:, 1::2]
        products = (first.contiguous(), first + second, first - second, -second)
        mask = [ctx.needs_input_grad[0], True, False]
        pairs = [
            torch.ops.aten.convolution_backward(
                _images(g), _images(v), w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
            )
            for g, v, w in zip(products, _sums(_rows(x)), weights, strict=True)
        ]
        gradient = None
        if mask[0]:
            v0, v1, v2, v3 = (_frames(pair[0], len(x)) for pair in pairs)
            gradient = _empty_like(x, x.shape[1])
            even, odd = _rows(gradient)[:, 0::2], _rows(gradient)[:, 1::2]
            torch.sub(v1, v2, out=even).add_(v3)
            even[:, 1:] -= v3[:, :-1]
            torch.add(v1, v2, out=odd).sub_(v0)
            odd[:, :-1] += v0[:, 1:]
        return gradient, *(pair[1] for pair in pairs)


def _sums(x: Tensor) -> Four:
    """Frames `[n, t, h, w, c]` -> the four sums of them, `[n, t / 2, h, w, c]`; frames beyond the ends are zero."""
    even, odd = x[:, 0::2], x[:, 1::2]
    first, last = torch.neg(odd), even.clone(memory_format=torch.contiguous_format)
    first[:, 1:] += odd[:, :-1]
    last[:, :-1] -= even[:, 1:]
    return first, even + odd, odd - even, last


def _rows(x: Tensor) -> Tensor:
    """`[n, c, t, h, w]` -> `[n, t, h, w, c]`, contiguous; shares memory where channels lie last."""
    return x.permute(0, 2, 3, 4, 1).contiguous()


def _empty_like(x: Tensor, channels: int) -> Tensor:
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last_3d)


def _images(x: Tensor) -> Tensor:
    """`[n, t, h, w, c]` -> `[n * t, c, h, w]`, channels last."""
    return x.flatten(0, 1).permute(0, 3, 1, 2)


def _frames(images: Tensor, n: int) -> Tensor:
    """`[n * t, c, h, w]` -> `[n, t, h, w, c]`."""
    return images.permute(0, 2, 3, 1).contiguous().unflatten(0, (n, -1))
