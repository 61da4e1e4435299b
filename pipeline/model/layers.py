"""HSTL's building blocks, named as in the paper (section 3): ARME, ASTP, FTA, GeM and the part-wise head.

Shapes: n sequences, c channels, t frames, h rows, w columns, p parts. Parameters of the regions of one level
are stacked along their first dimension. Features are lists: the regions of the body, top to bottom, each
`[n, c, t, h, w]`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model import fast
from pipeline.model.global_batch import gather


def exact(tensor: Tensor) -> torch.autocast:
    """A block in which autocast is off: what must stay in fp32 runs inside."""
    return torch.autocast(tensor.device.type, enabled=False)


class RegionalConv3d(nn.Module):
    """A 3x3x3 convolution of its own for each horizontal region, then LeakyReLU (paper 3.2).

    Regions `[n, c_in, t, h, w] -> [n, c_out, t, h, w]`; `weight` is `[regions, c_out, c_in, 3, 3, 3]`, no bias.
    Regions do not see one another's rows: each is padded with zeros on its own.
    """

    def __init__(self, in_channels: int, out_channels: int, regions: Sequence[int]) -> None:
        super().__init__()
        self.regions = list(regions)
        self.weight = nn.Parameter(torch.empty(len(self.regions), out_channels, in_channels, 3, 3, 3))
        for weight in self.weight.data:
            nn.init.xavier_uniform_(weight)

    def forward(self, bodies: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(fast.recut(bodies, self.regions), self.weight.unbind(), strict=True)
        convolved = fast.apart([fast.conv3d(body, weight) for body, weight in pairs])
        # In place, and so in here: what leaves a module may be a view by ZeRO-3's hooks.
        return [F.leaky_relu(body, inplace=True) for body in convolved]


class ARME(nn.ModuleList):
    """Adaptive region-based motion extractor: regional convolutions one after another (paper 3.2)."""

    def __init__(self, in_channels: int, widths: Sequence[int], regions: Sequence[int]) -> None:
        inputs = [in_channels, *widths[:-1]]
        super().__init__(RegionalConv3d(a, b, regions) for a, b in zip(inputs, widths, strict=True))

    def forward(self, bodies: Sequence[Tensor]) -> Sequence[Tensor]:
        for conv in self:
            bodies = conv(bodies)
        return bodies


def maximum_over_time(bodies: Sequence[Tensor]) -> Tensor:
    """Of regions `[n, c, t, h, w]`, the whole body's `[n, c, h, w]`."""
    return torch.cat([fast.maximum_over_time(body) for body in bodies], dim=2)


class GeM(nn.Module):
    """Generalised mean over each region of rows: `[n, c, h, w] -> [n, regions, c]`, in fp32.

    The power is learnt, one for all regions (`shared`) or one a region; it starts at 6.5. Raising to it in
    bf16 would lose the pooled value's last two digits, so this runs in fp32 under any autocast.
    """

    EPSILON = 1e-6

    def __init__(self, regions: Sequence[int], *, shared: bool = False) -> None:
        super().__init__()
        self.regions = list(regions)
        self.power = nn.Parameter(torch.full((1 if shared else len(self.regions),), 6.5))

    def forward(self, x: Tensor) -> Tensor:
        with exact(x):
            # A region of background alone underflows once the power passes 7.5; the root of 0 has no gradient.
            pooled = self._means(x).clamp(min=torch.finfo(self.power.dtype).tiny)
            return pooled.pow(1 / self.power[:, None])

    def _means(self, x: Tensor) -> Tensor:
        if fast.on("gem"):
            return fast.power_means(x, self.power, self.regions, self.EPSILON)
        bodies = x.to(self.power.dtype).clamp(min=self.EPSILON).split(self.regions, dim=2)
        powers = self.power.expand(len(self.regions))
        return torch.stack([body.pow(p).mean(dim=(2, 3)) for body, p in zip(bodies, powers, strict=True)], dim=1)


class PixelLinear(nn.Conv2d):
    """The same linear layer at every pixel, no bias, as a 1x1 convolution: `[n, c_in, h, w] -> [n, c_out, h, w]`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=False)
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        # Through a view of the weight, whose gradient then has the weight's strides whatever those of `x`: from others
        # DDP warns and copies.
        return F.conv2d(x, self.weight.flatten(1)[..., None, None])


class ASTP(nn.Module):
    """Adaptive spatio-temporal pooling: a level's part vectors, `[n, c, h, w] -> [n, regions, channels]` (paper 3.3).

    Of the maximum over time: a 1x1 convolution to the width of the last level (none at the last level itself), GeM.
    """

    def __init__(self, in_channels: int, channels: int, regions: Sequence[int]) -> None:
        super().__init__()
        self.project: nn.Module = nn.Identity()
        if in_channels != channels:
            self.project = PixelLinear(in_channels, channels)
        self.pool = GeM(regions)

    def forward(self, maximum: Tensor) -> Tensor:
        return self.pool(self.project(maximum))


class FTA(nn.Module):
    """Frame-level temporal aggregation: regions `[n, c, t, h, w] -> [n, c, t // 3, h, w]` (paper 3.4).

    Each region weighs two temporal max-pools, of 3 and of 5 frames, both with stride 3, channel by channel and
    step by step: a softmax over the two of what a linear layer each makes of their summed mean over space.
    """

    def __init__(self, channels: int, regions: Sequence[int]) -> None:
        super().__init__()
        self.regions = list(regions)
        self.weight = nn.Parameter(torch.empty(len(self.regions), 2, channels, channels))
        self.bias = nn.Parameter(torch.zeros(len(self.regions), 2, channels))
        for weight in self.weight.data.flatten(0, 1):
            nn.init.xavier_uniform_(weight)

    def forward(self, bodies: Sequence[Tensor]) -> list[Tensor]:
        parameters = zip(fast.recut(bodies, self.regions), self.weight.unbind(), self.bias.unbind(), strict=True)
        return fast.apart([self._blend(*region) for region in parameters])

    @staticmethod
    def _blend(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        short = fast.pooled(x, (3, 1, 1), stride=(3, 1, 1))
        long = fast.pooled(x, (5, 1, 1), stride=(3, 1, 1), padding=(1, 0, 0))
        with exact(short):
            summary = fast.mean_over_space(short + long, weight.dtype)
            scores = torch.einsum("koc,nct->nkot", weight, summary) + bias[:, :, None]
            share = (scores[:, 0] - scores[:, 1]).sigmoid().to(short.dtype)[..., None, None]
        return torch.lerp(long, short, share)


class PartLinear(nn.Module):
    """A linear layer of its own for each part, no bias: `[n, p, c_in] -> [n, p, c_out]`; `weight [p, c_in, c_out]`."""

    def __init__(self, parts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(parts, in_features, out_features))
        # Xavier as the release has it: torch's fans of the 3-d tensor, not of one part's matrix.
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.transpose(0, 1), self.weight).transpose(0, 1)


class GlobalBatchNorm(nn.Module):
    """BatchNorm over sequences of all ranks and parts, per channel: `[n, p, c] -> [n, p, c]`, in fp32.

    Equal to `nn.BatchNorm1d` on the whole batch, whatever the number of ranks and on any backend (torch's
    SyncBatchNorm refuses CPU tensors). Variance is taken about the global mean, in a second pass.
    """

    MOMENTUM = 0.1
    EPSILON = 1e-5
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels).normal_(1.0, 0.02))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        with exact(x):
            x = x.to(self.weight.dtype)
            mean, variance = self._statistics(x) if self.training else (self.running_mean, self.running_var)
            return (x - mean) * (torch.rsqrt(variance + self.EPSILON) * self.weight) + self.bias

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        per_rank = gather(x.sum(dim=(0, 1))[None])
        count = per_rank.shape[0] * x.shape[0] * x.shape[1]
        mean = per_rank.sum(dim=0) / count
        variance = gather((x - mean).square().sum(dim=(0, 1))[None]).sum(dim=0) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.MOMENTUM)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.MOMENTUM)
        return mean, variance


def repeat_short(x: Tensor) -> Tensor:
    """Repeats sequences of under 3 frames in time, as the release does: 1 frame x3, 2 frames x2; `[n, c, t, h, w]`."""
    frames = x.shape[2]
    return x if frames >= 3 else x.repeat(1, 1, math.ceil(3 / frames), 1, 1)
