"""Towers: convolutions that all levels of a pyramid share, and a last one that predicts."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from training.layers.fpn import make_norm

LEVELS = 5  # P3 to P7


class SharedConvs(nn.Module):
    """3x3 convolutions with ReLU, shared by all levels; `num_convs` may be 0.

    With norm "batch" each level keeps statistics of its own: their distributions differ.
    """

    def __init__(self, channels: int, num_convs: int, norm: str) -> None:
        super().__init__()
        has_bias = norm == "none"
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=has_bias) for _ in range(num_convs)
        )
        copies = LEVELS if norm == "batch" else 1
        self.norms = nn.ModuleList(
            nn.ModuleList(
                nn.Identity() if norm == "none" else make_norm(norm, channels)
                for _ in range(copies)
            )
            for _ in range(num_convs)
        )
        for conv in self.convs:
            _start(conv, norm)

    def forward(self, feature: Tensor, level: int) -> Tensor:
        """(B, C, h, w) to the same shape."""
        for conv, norms in zip(self.convs, self.norms, strict=True):
            feature = functional.relu(norms[level % len(norms)](conv(feature)))
        return feature


class Tower(SharedConvs):
    """`SharedConvs`, and a convolution that predicts."""

    def __init__(self, channels: int, num_convs: int, channels_out: int, norm: str) -> None:
        super().__init__(channels, num_convs, norm)
        self.predict = nn.Conv2d(channels, channels_out, 3, padding=1)
        _start(self.predict, norm)

    def features(self, feature: Tensor, level: int) -> Tensor:
        """(B, C, h, w) to what the last convolution reads, of the same shape."""
        return super().forward(feature, level)

    def forward(self, feature: Tensor, level: int) -> Tensor:
        """(B, C, h, w) to (B, channels_out, h, w)."""
        return self.predict(self.features(feature, level))


def _start(conv: nn.Conv2d, norm: str) -> None:
    nn.init.normal_(conv.weight, std=0.01 if norm == "none" else 0.03)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def to_rows(feature: Tensor, width: int) -> Tensor:
    """(B, S * width, h, w) to (B, h * w * S, width): a row for each of the S shapes of a cell."""
    return feature.permute(0, 2, 3, 1).reshape(feature.shape[0], -1, width)
