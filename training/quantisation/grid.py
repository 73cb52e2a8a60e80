"""The int8 grid as the export writes it: symmetric; one for each output channel of a weight.

Rounding has no gradient; the straight-through estimator passes it where a value lies within the
grid and stops it where the value is clipped (arXiv:1712.05877, section 3; arXiv:1806.08342, 2.4).
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127  # steps from zero to the largest magnitude
LEAST = 1e-12  # of a range: a tensor of zeros has one too
BINS = 4096
SMALLEST_CLIP = 1 / 16  # of the largest magnitude that is tried as a range
CLIPS = 96


def fake_quantise(values: Tensor, amax: float) -> Tensor:
    """Round to the int8 grid of range `amax` and back, as QuantizeLinear and DequantizeLinear do.

    Args:
        values: any shape.
        amax: the magnitude that 127 stands for; what lies beyond is clipped.

    Returns:
        The shape and type of `values`; its gradient is 1 on the grid, 0 where clipped.
    """
    scale = max(amax, LEAST) / LEVELS
    rounded = torch.fake_quantize_per_tensor_affine(values.float(), scale, 0, -LEVELS - 1, LEVELS)
    return rounded.to(values.dtype)


def fake_quantise_channels(weight: Tensor, axis: int) -> Tensor:
    """Round a weight to int8 grids, one for each output channel, whose range is its largest value.

    The grid of a channel grows with the channel, so rounding before a normalisation that follows
    gives what rounding the folded weight gives: gamma / sqrt(var + eps) scales both alike.

    Args:
        weight: of a layer. axis: of its output channels.
    """
    others = [d for d in range(weight.ndim) if d != axis]
    scale = weight.detach().abs().amax(others).clamp(min=LEAST) / LEVELS
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -LEVELS, LEVELS)


@torch.no_grad()
def choose_range(values: Tensor) -> float:
    """The range whose grid has the least squared error on `values`, found on a histogram.

    Ranges from 1/16 of the largest magnitude up to it are tried: a few outliers are worth less
    than finer steps for the rest.
    """
    magnitudes = values.detach().float().abs().flatten()
    largest = float(magnitudes.max())
    if not largest > 0:
        return LEAST
    counts = torch.histc(magnitudes, BINS, 0, largest)
    width = largest / BINS
    centres = (torch.arange(BINS, device=counts.device) + 0.5) * width
    clips = torch.logspace(0, 1, CLIPS, SMALLEST_CLIP, device=counts.device).flip(0) * largest
    scales = clips[:, None] / LEVELS  # (CLIPS, 1)
    rounded = (centres / scales).round().clamp(max=LEVELS) * scales  # (CLIPS, BINS)
    errors = ((rounded - centres) ** 2 * counts).sum(1)
    return float(clips[errors.argmin()])
