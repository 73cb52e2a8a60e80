"""A light way back from stride 32 to stride 4: enlarging, lateral connections, convolutions.

In the place of CenterNet's transposed deformable convolutions (arXiv:1904.07850, section 5): plain
resampling and 3x3 convolutions, which every engine has in every precision.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from training.errors import TrainingError
from training.layers.fpn import conv_norm

STRIDE = 4
UPSAMPLING = ("nearest", "bilinear")


class LightDecoder(nn.Module):
    """C2 to C5 to one map of stride 4.

    From the coarsest level on: enlarged to the size of the next finer one, which is added after a
    1x1 convolution, then a 3x3 convolution; each with batch normalisation, and ReLU after the sum
    and after the 3x3.

    Args:
        channels_in: of C2, C3, C4, C5.
        channels: of the decoder at strides 32, 16, 8, 4; the last is the output's.
        upsample: "nearest" or "bilinear".

    Raises:
        TrainingError: another upsampling, or not four numbers of channels.
    """

    def __init__(
        self, channels_in: list[int], channels: tuple[int, ...], upsample: str = "nearest"
    ) -> None:
        super().__init__()
        if upsample not in UPSAMPLING or len(channels) != len(channels_in):
            raise TrainingError(
                f"a decoder of channels {channels} that enlarges by {upsample!r}; expected "
                f"{len(channels_in)} numbers, and one of {', '.join(UPSAMPLING)}. Correct the spec."
            )
        self.upsample = upsample
        *finer, coarsest = channels_in
        self.top = conv_norm(coarsest, channels[0], 1, norm="batch")
        self.laterals = nn.ModuleList(
            conv_norm(level, before, 1, norm="batch")
            for level, (before, _) in zip(finer[::-1], pairwise(channels), strict=True)
        )
        self.convs = nn.ModuleList(
            conv_norm(before, after, 3, norm="batch") for before, after in pairwise(channels)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """(B, C, h, w) of strides 4, 8, 16, 32 to (B, channels[-1], h, w) of stride 4."""
        *finer, coarsest = features
        feature = functional.relu(self.top(coarsest))
        for level, lateral, conv in zip(finer[::-1], self.laterals, self.convs, strict=True):
            up = functional.interpolate(feature, size=level.shape[-2:], mode=self.upsample)
            feature = functional.relu(conv(functional.relu(up + lateral(level))))
        return feature
