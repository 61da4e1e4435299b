"""HSTL's building blocks, named as in the paper (section 3): ARME, ASTP, FTA, GeM and the part-wise head.

Shapes: n sequences, c channels, t frames, h rows, w columns, p parts. Parameters of the regions of one level
are stacked along their first dimension.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.global_batch import gather


def exact(tensor: Tensor) -> torch.autocast:
    """A block in which autocast is off: what must stay in fp32 runs inside."""
    return torch.autocast(tensor.device.type, enabled=False)


class RegionalConv3d(nn.Module):
    """A 3x3x3 convolution of its own for each horizontal region, then LeakyReLU (paper 3.2).

    `[n, c_in, t, h, w] -> [n, c_out, t, h, w]`; `weight` is `[regions, c_out, c_in, 3, 3, 3]`, no bias. Regions
    do not see one another's rows: each is padded with zeros on its own.
    """

    def __init__(self, in_channels: int, out_channels: int, regions: Sequence[int]) -> None:
        super().__init__()
        self.regions = list(regions)
        self.weight = nn.Parameter(torch.empty(len(self.regions), out_channels, in_channels, 3, 3, 3))
        for weight in self.weight.data:
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor) -> Tensor:
        bodies = x.split(self.regions, dim=3)
        weights = self.weight.unbind()
        convolved = [F.conv3d(body, weight, padding=1) for body, weight in zip(bodies, weights, strict=True)]
        return F.leaky_relu(torch.cat(convolved, dim=3), inplace=True)


class ARME(nn.Sequential):
    """Adaptive region-based motion extractor: regional convolutions one after another (paper 3.2)."""

    def __init__(self, in_channels: int, widths: Sequence[int], regions: Sequence[int]) -> None:
        inputs = [in_channels, *widths[:-1]]
        super().__init__(*(RegionalConv3d(a, b, regions) for a, b in zip(inputs, widths, strict=True)))


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
            x = x.to(self.power.dtype).clamp(min=self.EPSILON)
            if len(self.power) == 1:
                x = x.pow(self.power)
                means = [body.mean(dim=(2, 3)) for body in x.split(self.regions, dim=2)]
            else:
                bodies = x.split(self.regions, dim=2)
                means = [body.pow(p).mean(dim=(2, 3)) for body, p in zip(bodies, self.power, strict=True)]
            # A region of background alone underflows once the power passes 7.5; the root of 0 has no gradient.
            pooled = torch.stack(means, dim=1).clamp(min=torch.finfo(x.dtype).tiny)
            return pooled.pow(1 / self.power[:, None])


class ASTP(nn.Module):
    """Adaptive spatio-temporal pooling: a level's part vectors, `[n, c, t, h, w] -> [n, regions, channels]` (3.3).

    Maximum over time, a 1x1 convolution to the width of the last level (none at the last level itself), GeM.
    """

    def __init__(self, in_channels: int, channels: int, regions: Sequence[int]) -> None:
        super().__init__()
        self.project: nn.Module = nn.Identity()
        if in_channels != channels:
            self.project = nn.Conv2d(in_channels, channels, kernel_size=1, bias=False)
            nn.init.xavier_uniform_(self.project.weight)
        self.pool = GeM(regions)

    def forward(self, x: Tensor) -> Tensor:
        # max, not amax: among equal frames one gets the gradient, as in the release; half the time on CPU.
        return self.pool(self.project(x.max(dim=2).values))


class FTA(nn.Module):
    """Frame-level temporal aggregation: `[n, c, t, h, w] -> [n, c, t // 3, h, w]` (paper 3.4).

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

    def forward(self, x: Tensor) -> Tensor:
        short = F.max_pool3d(x, (3, 1, 1), stride=(3, 1, 1))
        long = F.max_pool3d(x, (5, 1, 1), stride=(3, 1, 1), padding=(1, 0, 0))
        parameters = zip(
            short.split(self.regions, dim=3),
            long.split(self.regions, dim=3),
            self.weight.unbind(),
            self.bias.unbind(),
            strict=True,
        )
        return torch.cat([self._blend(*region) for region in parameters], dim=3)

    @staticmethod
    def _blend(short: Tensor, long: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with exact(short):
            summary = (short + long).mean(dim=(3, 4), dtype=weight.dtype)
            scores = torch.einsum("koc,nct->nkot", weight, summary) + bias[:, :, None]
            shares = scores.softmax(dim=1).to(short.dtype)[..., None, None]
        return short * shares[:, 0] + long * shares[:, 1]


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
