"""Feature maps behind blocks of choice, where timm gives only the last of each stride."""

from __future__ import annotations

import torch
from timm.models import FeatureInfo
from torch import Tensor, nn

PROBE = 64  # side of the image that shows the strides


class BlockFeatures(nn.Module):
    """A timm network made of `conv_stem`, `bn1` and `blocks`: the MobileNet and EfficientNet kin.

    Args:
        network: a whole model of timm.
        taken: numbers of the stages of `blocks` whose output is given, rising; later ones are
            dropped.
    """

    def __init__(self, network: nn.Module, taken: tuple[int, ...]) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = network.conv_stem, network.bn1
        self.blocks = network.blocks[: max(taken) + 1]
        self.taken = taken
        self.eval()
        with torch.no_grad():
            features = self(torch.zeros(1, 3, PROBE, PROBE))
        self.train()
        levels = [
            {"num_chs": f.shape[1], "reduction": PROBE // f.shape[-1], "module": f"blocks.{n}"}
            for n, f in zip(taken, features, strict=True)
        ]
        self.feature_info = FeatureInfo(levels, tuple(range(len(taken))))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to (B, C, h, w) of each stage that is taken."""
        feature = self.bn1(self.conv_stem(images))
        features = []
        for number, stage in enumerate(self.blocks):
            feature = stage(feature)
            if number in self.taken:
                features.append(feature)
        return features
