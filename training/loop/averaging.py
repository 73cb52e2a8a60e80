"""Exponential moving average of the weights: what is validated, saved and exported."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


class AveragedModel:
    """A shadow of a model whose weights follow it slowly.

    The decay grows from 0 with the number of updates, so that early averages are not held back
    by the random start.

    Args:
        model: followed; its buffers (batch statistics) are averaged as well.
        decay: 0..1 in the limit.
        ramp: updates after which the decay has reached 63 % of its limit.
    """

    def __init__(self, model: nn.Module, decay: float, *, ramp: float = 500.0) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.ramp = ramp
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the model's weights."""
        self.updates += 1
        decay = self.decay * (1 - math.exp(-self.updates / self.ramp))
        ours = self.model.state_dict()
        floats, theirs = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                floats.append(ours[name])
                theirs.append(value.detach())
            else:
                ours[name].copy_(value)
        torch._foreach_lerp_(floats, theirs, 1 - decay)
