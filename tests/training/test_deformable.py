"""Deformable convolution against torchvision's, which has a kernel of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from training.layers.deformable import DeformableConv


def moved(stride: int, kernel: int) -> DeformableConv:
    """A layer whose taps wander some pixels, beyond the border too."""
    torch.manual_seed(0)
    layer = DeformableConv(5, 4, kernel, stride=stride)
    layer.conv_offset_mask.weight.data.normal_(0, 0.4)
    layer.conv_offset_mask.bias.data.normal_(0, 0.5)
    return layer


def torchvisions(layer: DeformableConv, feature: Tensor) -> Tensor:
    taps = layer.kernel**2
    offsets, strength = layer.conv_offset_mask(feature).split((2 * taps, taps), 1)
    return deform_conv2d(
        feature, offsets, layer.weight, layer.bias, stride=layer.stride,
        padding=layer.kernel // 2, mask=strength.sigmoid(),
    )  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(9, 11), (8, 6), (2, 3), (1, 5), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_deformable_convolution_and_its_gradients_are_torchvisions(kernel, stride, height, width):
    layer = moved(stride, kernel)
    feature = torch.randn(2, 5, height, width, requires_grad=True)
    found, expected = layer(feature), torchvisions(layer, feature)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    learnt = [feature, *layer.parameters()]
    factors = torch.randn_like(found)
    ours = torch.autograd.grad((found * factors).sum(), learnt)
    theirs = torch.autograd.grad((expected * factors).sum(), learnt)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-3)


def test_fresh_layer_is_half_a_plain_convolution():
    layer = DeformableConv(3, 6)
    feature = torch.randn(1, 3, 7, 8)
    plain = torch.nn.functional.conv2d(feature, layer.weight * 0.5, layer.bias, padding=1)
    torch.testing.assert_close(layer(feature), plain, rtol=1e-4, atol=1e-5)
