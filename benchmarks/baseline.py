"""The network and the training step as the release has them: what every ratio of ours is against.

Written from the description, under the release's parameter names, so that a released checkpoint and
`to_released(ours.state_dict())` both load. Kept on purpose: default memory layout, a convolution and a concatenation a
region, the input's gradient, every triplet by its index, transforms of [uint8 -> float, / 255, cut] in the main
process; on a GPU fp16 autocast with a scaler and deterministic, unbenchmarked cuDNN; on a CPU fp32.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.variants import ROWS, Variant

CUT = 10
"""Columns cut off on each side of a 64 wide frame."""


class _Conv(nn.Module):
    """3x3x3, no bias."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(x)


class _ARME(nn.Module):
    """A convolution a region, concatenated, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, regions: Sequence[int]) -> None:
        super().__init__()
        self.regions = list(regions)
        self.conv3d = nn.ModuleList(_Conv(in_channels, out_channels) for _ in regions)

    def forward(self, x: Tensor) -> Tensor:
        bodies = x.split(self.regions, 3)
        return F.leaky_relu(torch.cat([conv(body) for conv, body in zip(self.conv3d, bodies, strict=True)], 3))


class _GeM(nn.Module):
    """Generalised mean of a map over `rows` rows at a time: `[n, c, h, w] -> [n, c, h / rows]`."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 6.5))

    def forward(self, x: Tensor, rows: int) -> Tensor:
        return F.avg_pool2d(x.clamp(min=1e-6).pow(self.p), (rows, x.shape[3])).pow(1 / self.p).squeeze(3)


class _Projection(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _ASTP(nn.Module):
    """Maximum over time, projection, GeM of each region: `[n, c, t, h, w] -> [n, channels, regions]`."""

    def __init__(self, in_channels: int, channels: int, regions: Sequence[int]) -> None:
        super().__init__()
        self.regions = list(regions)
        self.proj: nn.Module = _Projection(in_channels, channels) if in_channels != channels else nn.Identity()
        self.hpp = nn.ModuleList(_GeM() for _ in regions)

    def forward(self, x: Tensor) -> Tensor:
        bodies = self.proj(torch.max(x, 2)[0]).split(self.regions, 2)
        return torch.cat([gem(body, body.shape[2]) for gem, body in zip(self.hpp, bodies, strict=True)], 2)


class _Blend(nn.Module):
    """Softmax over the two temporal pools of a region, channel by channel and step by step."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fcs = nn.ModuleList(nn.Conv1d(channels, channels, kernel_size=1) for _ in range(2))

    def forward(self, short: Tensor, long: Tensor) -> Tensor:
        summary = (short + long).mean((3, 4))
        shares = torch.stack([fc(summary) for fc in self.fcs]).softmax(0)[..., None, None]
        return (torch.stack([short, long]) * shares).sum(0)


class _FTA(nn.Module):
    def __init__(self, channels: int, regions: Sequence[int]) -> None:
        super().__init__()
        self.regions = list(regions)
        self.short = nn.MaxPool3d((3, 1, 1), stride=(3, 1, 1))
        self.long = nn.MaxPool3d((5, 1, 1), stride=(3, 1, 1), padding=(1, 0, 0))
        self.mma = nn.ModuleList(_Blend(channels) for _ in regions)

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.short(x).split(self.regions, 3), self.long(x).split(self.regions, 3), strict=True)
        return torch.cat([blend(*pair) for blend, pair in zip(self.mma, pairs, strict=True)], 3)


class _PartwiseFC(nn.Module):
    """`[n, c_in, p] -> [n, c_out, p]`."""

    def __init__(self, parts: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.fc_bin = nn.Parameter(nn.init.xavier_uniform_(torch.zeros(parts, in_channels, out_channels)))

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(2, 0, 1).contiguous().matmul(self.fc_bin).permute(1, 2, 0).contiguous()


class Baseline(nn.Module):
    """HSTL as released: float `[n, frames, 64, 44]` -> embeddings `[n, channels, parts]`, logits `[n, classes, parts]`.

    One class for the three published networks, whose release has a file each; the operations are theirs.
    """

    arme2: nn.Module  # added by name, as the levels above it
    astp2: nn.Module

    def __init__(self, variant: Variant, num_classes: int) -> None:
        super().__init__()
        self.variant = variant
        channels, levels = variant.channels, variant.levels
        stem: list[nn.Module] = []
        for a, b in zip((1, *variant.stem), variant.stem, strict=False):
            stem += [_Conv(a, b), nn.LeakyReLU()]
        self.arme1 = nn.Sequential(*stem)
        self.astp1 = _ASTP(variant.stem[-1], channels, (ROWS,))
        width = variant.stem[-1]
        for number, level in enumerate(levels, start=2):
            inputs = (width, *level.widths)
            arme = nn.Sequential(*(_ARME(a, b, level.regions) for a, b in zip(inputs, level.widths, strict=False)))
            width = level.widths[-1]
            self.add_module(f"arme{number}", arme)
            self.add_module(f"astp{number}", _ASTP(width, channels, level.regions))
        first = levels[0]
        self.fta = _FTA(first.widths[-1], first.regions)
        self.astp2_fta = _ASTP(first.widths[-1], channels, first.regions)
        self.HPP = _GeM()
        self.Head0 = _PartwiseFC(variant.parts, channels, channels)
        self.Bn = nn.BatchNorm1d(channels)
        self.Head1 = _PartwiseFC(variant.parts, channels, num_classes)

    def forward(self, silhouettes: Tensor) -> tuple[Tensor, Tensor]:
        x = silhouettes[:, None]
        if x.shape[2] < 3:
            x = x.repeat(1, 1, -(-3 // x.shape[2]), 1, 1)
        x = self.arme1(x)
        parts = [self.astp1(x)]
        if self.variant.halved:
            x = F.max_pool3d(x, (1, 2, 2))
        x = self.arme2(x)
        parts.append(self.astp2(x))
        x = self.fta(x)
        parts.append(self.astp2_fta(x))
        for number in range(3, len(self.variant.levels) + 2):
            x = self.get_submodule(f"arme{number}")(x)
            parts.append(self.get_submodule(f"astp{number}")(x))
        parts.append(self.HPP(torch.max(x, 2)[0], self.variant.rows // self.variant.strips))
        embeddings = self.Bn(self.Head0(torch.cat(parts, 2)))
        return embeddings, self.Head1(embeddings)


def at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def triplet(embeddings: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Batch-all triplets, each built by its indices; embeddings `[n, channels, parts]`. The batch is P x K exactly."""
    x = at_least_fp32(embeddings).permute(2, 0, 1).contiguous()
    squared = x.square().sum(2)
    distances = F.relu(squared[:, :, None] + squared[:, None] - 2 * x.matmul(x.transpose(1, 2))).sqrt()
    same = labels[:, None] == labels[None]
    anchors, positives = torch.where(same)
    others, negatives = torch.where(~same)
    parts, n = distances.shape[:2]
    near = distances[:, anchors, positives].view(parts, n, -1, 1)
    far = distances[:, others, negatives].view(parts, n, 1, -1)
    hinges = F.relu((near - far).view(parts, -1) + margin)
    return (hinges.sum(1) / ((hinges != 0).sum(1).float() + 1e-8)).mean()


def cross_entropy(logits: Tensor, labels: Tensor, scale: float, smoothing: float) -> Tensor:
    """Mean over parts and sequences; logits `[n, classes, parts]`."""
    n, _, parts = logits.shape
    return F.cross_entropy(at_least_fp32(logits) * scale, labels[:, None].expand(n, parts), label_smoothing=smoothing)


def transformed(walks: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """uint8 `[frames, 64, 64]` each -> float `[n, frames, 64, 44]`, its gradient required, as the release has it."""
    cut = [(walk / 255.0)[..., CUT:-CUT] for walk in walks]
    return torch.from_numpy(np.asarray(cut)).to(device).float().requires_grad_()


class Step:
    """One training step of the release: transforms, forward, losses, backward, update."""

    def __init__(self, network: Baseline, optimizer: torch.optim.Optimizer, scale: float, smoothing: float) -> None:
        self.network, self.optimizer, self.scale, self.smoothing = network, optimizer, scale, smoothing
        self.device = next(network.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.device.type == "cuda")

    def __call__(self, walks: Sequence[np.ndarray], labels: Tensor) -> float:
        """Takes the step; returns the loss."""
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            embeddings, logits = self.network(transformed(walks, self.device))
        loss = triplet(embeddings, labels, 0.2) + cross_entropy(logits, labels, self.scale, self.smoothing)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()


@contextlib.contextmanager
def release_backends() -> Iterator[None]:
    """cuDNN as the release sets it: deterministic algorithms, none tried out."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
        yield
