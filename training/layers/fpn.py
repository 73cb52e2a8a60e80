"""Feature pyramid P3 to P7 (FPN, arXiv:1612.03144; P6 and P7 as in RetinaNet)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def conv_norm(
    channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, norm: str = "none"
) -> nn.Sequential:
    """A convolution that keeps the size (or halves it, rounding up), and its normalisation.

    Args:
        norm: "none", "batch" or "group".
    """
    has_bias = norm == "none"
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=has_bias)
    ]
    if norm != "none":
        layers.append(make_norm(norm, channels_out))
    return nn.Sequential(*layers)


def make_norm(norm: str, channels: int) -> nn.Module:
    """A normalisation layer: "batch", or "group" (32 groups, fewer below 8 channels each)."""
    if norm == "batch":
        return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)
    groups = min(32, max(1, channels // 8))  # one value a group would be normalised to nothing
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


class FeaturePyramid(nn.Module):
    """C3, C4, C5 to P3 ... P7, all with the same number of channels.

    Args:
        channels_in: of C3, C4, C5.
        channels: of every output.
        norm: "none", "batch" or "group".
        upsample: of the coarser level, "nearest" or "bilinear".
        has_output_relu: P3 to P5 end in a ReLU, before P6 reads P5.
        has_p7_relu: P7 reads P6 through a ReLU.
    """

    def __init__(
        self,
        channels_in: list[int],
        channels: int,
        norm: str = "none",
        *,
        upsample: str = "nearest",
        has_output_relu: bool = False,
        has_p7_relu: bool = True,
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.has_output_relu, self.has_p7_relu = has_output_relu, has_p7_relu
        self.laterals = nn.ModuleList(conv_norm(c, channels, 1, norm=norm) for c in channels_in)
        self.outputs = nn.ModuleList(
            conv_norm(channels, channels, 3, norm=norm) for _ in channels_in
        )
        self.p6 = conv_norm(channels, channels, 3, stride=2, norm=norm)
        self.p7 = conv_norm(channels, channels, 3, stride=2, norm=norm)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """(B, C, h, w) of strides 8, 16, 32 to five maps of strides 8 ... 128."""
        return self.finish(self.merge(self.run_laterals(features)))

    def run_laterals(self, features: list[Tensor]) -> list[Tensor]:
        """The three maps, each brought to the pyramid's width."""
        return [layer(f) for layer, f in zip(self.laterals, features, strict=True)]

    def merge(self, laterals: list[Tensor]) -> list[Tensor]:
        """Maps of one width, the finest first: to each is added the sum below it, enlarged."""
        merged = [laterals[-1]]
        for lateral in reversed(laterals[:-1]):
            up = functional.interpolate(merged[0], size=lateral.shape[-2:], mode=self.upsample)
            merged.insert(0, lateral + up)
        return merged

    def finish(self, merged: list[Tensor]) -> list[Tensor]:
        """The three sums to P3 ... P7."""
        pyramid = [layer(m) for layer, m in zip(self.outputs, merged, strict=True)]
        if self.has_output_relu:
            pyramid = [functional.relu(p) for p in pyramid]
        p6 = self.p6(pyramid[-1])
        p7 = self.p7(functional.relu(p6) if self.has_p7_relu else p6)
        return [*pyramid, p6, p7]
