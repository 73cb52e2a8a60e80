"""Trunks of the small published face detectors: MobileNet x0.25, slim and RFB.

Each gives feature maps from stride 8 on, and says how many channels they have.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

RFB_SHRINK = 8  # channels of a branch's first convolution, as a share of the block's


def conv_bn(
    channels_in: int,
    channels_out: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    slope: float | None = 0.0,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """A convolution that keeps the size (or halves it, rounding up), normalised, and its ReLU.

    Args:
        slope: of the leaky ReLU below 0; 0 is a plain one, None leaves it out.
    """
    padding = dilation * (kernel // 2)
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(channels_out),
    ]
    if slope is not None:
        layers.append(nn.LeakyReLU(slope) if slope else nn.ReLU())
    return nn.Sequential(*layers)


def separable(
    channels_in: int, channels_out: int, *, stride: int = 1, slope: float = 0.0
) -> nn.Sequential:
    """A depthwise and a pointwise convolution (MobileNet, arXiv:1704.04861, figure 3)."""
    return nn.Sequential(
        *conv_bn(channels_in, channels_in, stride=stride, slope=slope, groups=channels_in),
        *conv_bn(channels_in, channels_out, 1, slope=slope),
    )


def separable_plain(
    channels_in: int, channels_out: int, *, stride: int = 1, has_relu: bool = False
) -> nn.Sequential:
    """The same without normalisation: depthwise, ReLU, pointwise, and a ReLU where asked."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in),
        nn.ReLU(),
        nn.Conv2d(channels_in, channels_out, 1),
    ]
    return nn.Sequential(*layers, nn.ReLU()) if has_relu else nn.Sequential(*layers)


class QuarterMobileNet(nn.Module):
    """MobileNet v1 of a quarter of its channels, with leaky ReLUs: strides 8, 16, 32."""

    channels: ClassVar[tuple[int, ...]] = (64, 128, 256)
    # (channels out, stride) of the separable convolutions; each stage ends a level.
    stages: ClassVar[tuple[tuple[tuple[int, int], ...], ...]] = (
        ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)),
        ((128, 2), (128, 1), (128, 1), (128, 1), (128, 1), (128, 1)),
        ((256, 2), (256, 1)),
    )

    def __init__(self, slope: float) -> None:
        super().__init__()
        width = 8
        self.stem = conv_bn(3, width, stride=2, slope=slope)
        stages = []
        for stage in self.stages:
            blocks = []
            for channels, stride in stage:
                blocks.append(separable(width, channels, stride=stride, slope=slope))
                width = channels
            stages.append(nn.Sequential(*blocks))
        self.levels = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to (B, C, h, w) of strides 8, 16, 32."""
        feature, features = self.stem(images), []
        for level in self.levels:
            feature = level(feature)
            features.append(feature)
        return features


class ReceptiveField(nn.Module):
    """Receptive field block (arXiv:1711.07767, section 3.1) in the small form that RFB uses.

    Three branches of growing dilation, joined by a 1x1 convolution and added to a shortcut.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        thin = channels // RFB_SHRINK
        double, middle = 2 * thin, thin // 2 * 3
        widths = ((thin, double), (thin, double), (thin, middle, double))
        branches = []
        for path, dilation in zip(widths, (2, 3, 5), strict=True):
            layers: list[nn.Module] = [conv_bn(channels, path[0], 1, slope=None)]
            layers += [conv_bn(a, b) for a, b in zip(path[:-1], path[1:], strict=True)]
            layers.append(conv_bn(double, double, slope=None, dilation=dilation))
            branches.append(nn.Sequential(*layers))
        self.branches = nn.ModuleList(branches)
        self.join = conv_bn(3 * double, channels, 1, slope=None)
        self.shortcut = conv_bn(channels, channels, 1, slope=None)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        joined = self.join(torch.cat([branch(feature) for branch in self.branches], 1))
        return torch.relu(joined + self.shortcut(feature))


class SlimTrunk(nn.Module):
    """The trunk of slim and, with a receptive field block, of RFB: strides 8, 16, 32, 64."""

    channels: ClassVar[tuple[int, ...]] = (64, 128, 256, 256)
    widths: ClassVar[tuple[int, ...]] = (32, 32, 32, 64, 64, 64, 64, 128, 128, 128, 256, 256)
    halved: ClassVar[tuple[int, ...]] = (1, 3, 7, 10)  # blocks of stride 2, beside the stem
    ends: ClassVar[tuple[int, ...]] = (6, 9, 11)  # blocks that end a level

    def __init__(self, *, has_receptive_field: bool = False) -> None:
        super().__init__()
        width = 16
        self.stem = conv_bn(3, width, stride=2)
        blocks: list[nn.Module] = []
        for number, channels in enumerate(self.widths):
            if has_receptive_field and number == self.ends[0]:
                blocks.append(ReceptiveField(width))
            else:
                blocks.append(separable(width, channels, stride=1 + (number in self.halved)))
            width = channels
        self.blocks = nn.ModuleList(blocks)
        self.squeeze = nn.Conv2d(width, width // 4, 1)
        self.last = separable_plain(width // 4, self.channels[-1], stride=2, has_relu=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to (B, C, h, w) of strides 8, 16, 32, 64."""
        feature, features = self.stem(images), []
        for number, block in enumerate(self.blocks):
            feature = block(feature)
            if number in self.ends:
                features.append(feature)
        return [*features, self.last(torch.relu(self.squeeze(feature)))]
