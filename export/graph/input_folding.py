"""Folding the input's normalisation into the first convolution, where that is exact.

A network takes RGB, (x - mean) / std. Swapping channels and dividing by std are linear, so they
move into the weights of the first convolution. Subtracting the mean stays in the graph: the
convolution pads with zeros after it, and a bias could not reproduce that at the border.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from training.models.base import Model


class FoldedInput(nn.Module):
    """Raw frames to the input of a network whose first convolution took over order and scale.

    Cast comes first: TensorRT accepts nothing else on uint8.
    """

    def __init__(self, mean_bgr: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_bgr", mean_bgr)

    def forward(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 BGR to (B, 3, H, W) float32 BGR, mean subtracted."""
        return images.float().permute(0, 3, 1, 2) - self.mean_bgr


class PlainInput(nn.Module):
    """The model's own preparation, for networks that do not begin with a plain convolution."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.register_buffer("mean_bgr", model.mean.flip(1))
        self.register_buffer("scale_bgr", 1 / model.std.flip(1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 BGR to (B, 3, H, W) float32 RGB, normalised."""
        planar = (images.float().permute(0, 3, 1, 2) - self.mean_bgr) * self.scale_bgr
        blue, green, red = planar.split(1, dim=1)
        return torch.cat((red, green, blue), 1)


def fold_input(model: Model) -> tuple[Model, nn.Module]:
    """A copy of the model and the module that feeds it, order and std folded where exact.

    Args:
        model: in eval mode; it is not changed.

    Returns:
        The copy, and what stands in place of `Model.prepare`.
    """
    model = copy.deepcopy(model).eval()
    first = first_convolution(model)
    if first is None:
        return model, PlainInput(model)
    with torch.no_grad():
        scaled = first.weight / model.std.reshape(1, 3, 1, 1)
        first.weight.copy_(scaled.flip(1))
    return model, FoldedInput(model.mean.flip(1))


def first_convolution(model: Model) -> nn.Conv2d | None:
    """The one convolution that reads the network's input; None where something else does too."""
    height, width = model.spec.size_hw
    probe = torch.zeros(1, 3, height, width)
    readers: list[nn.Module] = []

    def note(module: nn.Module, inputs: tuple[object, ...]) -> None:
        is_leaf = next(module.children(), None) is None
        if is_leaf and any(value is probe for value in inputs):
            readers.append(module)

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    with torch.no_grad():
        model(probe)
    for hook in hooks:
        hook.remove()
    if len(readers) != 1 or not isinstance(readers[0], nn.Conv2d):
        return None
    first = readers[0]
    is_plain = first.groups == 1 and first.padding_mode == "zeros" and first.in_channels == 3
    return first if is_plain else None
