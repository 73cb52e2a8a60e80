"""What RetinaFace puts between trunk and heads: a light pyramid and SSH's context modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.layers.face_trunks import conv_bn


class FacePyramid(nn.Module):
    """A pyramid over the trunk's levels that adds none (RetinaFace, arXiv:1905.00641, section 3.2).

    Unlike FPN a level is smoothed before it is handed to the finer one.

    Args:
        channels_in: of the levels, the finest first.
        channels: of every output.
        slope: of the leaky ReLU; 0 is a plain one.
    """

    def __init__(self, channels_in: list[int], channels: int, slope: float) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(conv_bn(c, channels, 1, slope=slope) for c in channels_in)
        self.merges = nn.ModuleList(
            conv_bn(channels, channels, slope=slope) for _ in channels_in[1:]
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """(B, C, h, w) of each level to as many of `channels`, the finest first."""
        laterals = [layer(f) for layer, f in zip(self.laterals, features, strict=True)]
        merged = [laterals[-1]]
        for lateral, merge in zip(laterals[-2::-1], reversed(self.merges), strict=True):
            up = functional.interpolate(merged[0], size=lateral.shape[-2:], mode="nearest")
            merged.insert(0, merge(lateral + up))
        return merged


class ContextModule(nn.Module):
    """SSH's context module (arXiv:1708.03979, section 3.3): 3x3, 5x5 and 7x7 side by side.

    The larger ones are stacks of 3x3 that share their first; half the channels are of 3x3, a
    quarter each of the others.

    Args:
        channels: of input and output, a multiple of 4.
        slope: of the leaky ReLU inside; the output's is a plain one.
    """

    def __init__(self, channels: int, slope: float) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.three = conv_bn(channels, half, slope=None)
        self.shared = conv_bn(channels, quarter, slope=slope)
        self.five = conv_bn(quarter, quarter, slope=None)
        self.seven = nn.Sequential(
            conv_bn(quarter, quarter, slope=slope), conv_bn(quarter, quarter, slope=None)
        )

    def forward(self, feature: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        shared = self.shared(feature)
        parts = (self.three(feature), self.five(shared), self.seven(shared))
        return torch.relu(torch.cat(parts, 1))
