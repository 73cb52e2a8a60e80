"""Heads that predict maps from the features of one stack: CenterNet's (arXiv:1904.07850)."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

PRIOR = 0.1  # probability of a peak at every cell before training


class PointHeads(nn.Module):
    """A 3x3 convolution with ReLU and a 1x1 that predicts, for each map (section 5).

    Args:
        channels_in: of the features.
        channels: of the 3x3 convolutions.
        maps: name -> number of channels. Of names that end in "heatmap" the first answer is
            `PRIOR` everywhere.
        is_shared: one 3x3 convolution for all maps.
    """

    def __init__(
        self, channels_in: int, channels: int, maps: dict[str, int], *, is_shared: bool
    ) -> None:
        super().__init__()
        self.is_shared = is_shared
        names = ["all"] if is_shared else list(maps)
        self.convs = nn.ModuleDict(
            {name: nn.Conv2d(channels_in, channels, 3, padding=1) for name in names}
        )
        self.predict = nn.ModuleDict(
            {name: nn.Conv2d(channels, width, 1) for name, width in maps.items()}
        )
        for name, conv in self.predict.items():
            nn.init.normal_(conv.weight, std=0.001)
            is_heatmap = name.endswith("heatmap")
            nn.init.constant_(conv.bias, -math.log((1 - PRIOR) / PRIOR) if is_heatmap else 0.0)

    def forward(self, feature: Tensor) -> dict[str, Tensor]:
        """(B, channels_in, h, w) to name -> (B, width, h, w) float32."""
        hidden = {name: functional.relu(conv(feature)) for name, conv in self.convs.items()}
        return {
            name: conv(hidden["all" if self.is_shared else name]).float()
            for name, conv in self.predict.items()
        }
