"""Modulated deformable convolution (DCNv2, arXiv:1811.11168), of standard operators."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.errors import TrainingError

STAGES = ("layer2", "layer3", "layer4")  # of a ResNet: C3, C4, C5


class DeformableConv(nn.Module):
    """A square convolution that reads each of its taps at a learnt place and strength.

    The taps are read by bilinear sampling (one GridSample for all of them) into a map in which
    those of one output lie side by side, and convolved there in whole steps: the graph holds no
    operator of its own, and a convolution with this layer's weights as they are.

    Args:
        channels_in, channels_out: of the maps.
        kernel: odd side of the convolution; it pads by half of it.
        stride: of the output.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 3, *, stride: int = 1
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        conv = nn.Conv2d(channels_in, channels_out, kernel)
        self.weight, self.bias = conv.weight, conv.bias
        taps = kernel * kernel
        self.conv_offset_mask = nn.Conv2d(channels_in, 3 * taps, kernel, stride, kernel // 2)
        nn.init.zeros_(self.conv_offset_mask.weight)  # begins as a plain convolution, halved
        nn.init.zeros_(self.conv_offset_mask.bias)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels_out, ceil(H / stride), ceil(W / stride))."""
        kernel, taps = self.kernel, self.kernel**2
        learnt = self.conv_offset_mask(feature).float()  # (B, 3 taps, h, w): dy, dx, dy, ...
        strength = functional.pixel_shuffle(learnt[:, 2 * taps :].sigmoid(), kernel)
        shift_y, shift_x = (
            functional.pixel_shuffle(learnt[:, axis : 2 * taps : 2], kernel)[:, 0]
            for axis in range(2)
        )  # (B, kernel h, kernel w) each, pixels of the input
        rows, columns = (self._taps(size, feature.device) for size in learnt.shape[-2:])
        y = _spread(shift_y + rows[:, None], feature.shape[-2])
        x = _spread(shift_x + columns, feature.shape[-1])
        grid = torch.stack((x, y), -1)
        read = functional.grid_sample(feature.float(), grid, align_corners=False) * strength
        return functional.conv2d(read.to(feature.dtype), self.weight, self.bias, kernel)

    def _taps(self, size: int, device: torch.device) -> Tensor:
        """Where the taps of `size` outputs lie on one axis: (kernel * size,), pixels."""
        first = torch.arange(size, device=device) * self.stride - self.kernel // 2
        return (first[:, None] + torch.arange(self.kernel, device=device)).flatten()


def _spread(places: Tensor, count: int) -> Tensor:
    """Pixel numbers to -1..1 from the first pixel's outer edge to the last one's."""
    return (2 * places + 1) / count - 1


def deform_stages(trunk: nn.Module, every: int) -> None:
    """Make 3x3 convolutions of a timm ResNet's last three stages deformable, in place.

    Each begins as the convolution it replaces: the taps lie where they lay, and the weights are
    doubled because their strength begins at a half.

    Args:
        trunk: a ResNet of timm.
        every: of each stage the first block and every so many further ones (YOLACT++: 1 or 3).

    Raises:
        TrainingError: it is no ResNet.
    """
    if not all(hasattr(trunk, name) for name in STAGES):
        raise TrainingError(
            f"a backbone of {', '.join(dict(trunk.named_children()))} has no {', '.join(STAGES)} "
            "to be made deformable; expected a ResNet. Leave deform_every out."
        )
    for name in STAGES:
        for block in getattr(trunk, name)[::every]:
            plain = block.conv2
            layer = DeformableConv(
                plain.in_channels, plain.out_channels, plain.kernel_size[0], stride=plain.stride[0]
            )
            with torch.no_grad():
                layer.weight.copy_(plain.weight * 2)
                layer.bias.zero_()
            block.conv2 = layer
