"""Folding the input's normalisation into the first convolutions, where that is exact.

A network takes RGB, (x - mean) / std. Swapping channels and dividing by std are linear, so they
move into the weights of the first convolution, or of all that read the input. Subtracting the mean
stays in the graph: the convolution pads with zeros after it, and a bias could not reproduce that at
the border.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from training.models.base import Model, TemporalModel


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
    readers = first_convolutions(model)
    if not readers:
        return model, PlainInput(model)
    with torch.no_grad():
        for first in readers:
            scaled = first.weight / model.std.reshape(1, 3, 1, 1)
            first.weight.copy_(scaled.flip(1))
    return model, FoldedInput(model.mean.flip(1))


def first_convolutions(model: Model) -> list[nn.Conv2d]:
    """The convolutions that read the network's input and nothing else; none if others read it too.

    Only `nn.Conv2d` itself counts: timm's subclasses may standardise their weights, which would
    undo the folding.
    """
    height, width = model.spec.size_hw
    probe = torch.zeros(1, 3, height, width)
    found: list[nn.Conv2d] = []
    for run in _runs(model):
        watch = _Watch(probe)
        with torch.no_grad(), watch:
            run(probe)
        weights = [weight for function, weight in watch.readers if function in _CONVOLUTIONS]
        if len(weights) < len(watch.readers):
            return []
        for weight in weights:
            is_shared = watch.weights.count(id(weight)) > 1
            first = next((m for m in model.modules() if getattr(m, "weight", None) is weight), None)
            if is_shared or type(first) is not nn.Conv2d or not _is_plain(first):
                return []
            found.append(first)
    return list(dict.fromkeys(found))


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.groups == 1 and conv.padding_mode == "zeros" and conv.in_channels == 3


def _runs(model: Model) -> list[Callable[[Tensor], object]]:
    """Every way in which a network is run on images."""
    if not isinstance(model, TemporalModel):
        return [model]
    with torch.no_grad():
        _, state = model.key(torch.zeros(1, 3, *model.spec.size_hw))
    return [model.key, lambda images: model.nonkey(images, state)]


_CONVOLUTIONS = (nn.functional.conv2d, torch.conv2d)
_LOOKS = (
    *(view.__get__ for view in (Tensor.shape, Tensor.device, Tensor.dtype, Tensor.ndim)),
    Tensor.size,
    Tensor.dim,
)


class _Watch(TorchFunctionMode):
    """Notes which calls read a tensor's values, and which weights convolutions use."""

    def __init__(self, probe: Tensor) -> None:
        super().__init__()
        self.probe = probe
        self.readers: list[tuple[Callable[..., Any], object]] = []
        self.weights: list[int] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        values = tree_leaves((args, kwargs))
        weight = args[1] if len(args) > 1 else None
        if func not in _LOOKS and any(value is self.probe for value in values):
            self.readers.append((func, weight))
        self.weights.extend(id(value) for value in values if isinstance(value, nn.Parameter))
        return func(*args, **(kwargs or {}))
