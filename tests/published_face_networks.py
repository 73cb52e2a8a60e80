"""The published face detectors in the plain: names and shapes of tensors, and what they compute.

Each function runs a network on weights that are drawn where they are first asked for: after one
run the tensors are the network's state dict. What the functions say are facts of the published
checkpoints; nothing of this project is used.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MEAN_BGR = (104.0, 117.0, 123.0)
MOBILE_STAGES = (
    ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)),
    ((128, 2),) + ((128, 1),) * 5,
    ((256, 2), (256, 1)),
)
SLIM_BLOCKS = (
    (32, 1), (32, 2), (32, 1), (64, 2), (64, 1), (64, 1), (64, 1), (128, 2), (128, 1), (128, 1),
    (256, 2), (256, 1),
)  # fmt: skip
RFB_PATHS = (((8, 16, 16), 2), ((8, 16, 16), 3), ((8, 12, 16, 16), 5))


class Weights:
    """Weights by name, drawn from the name alone; `tensors` are those asked for so far."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.tensors: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        name = self.prefix + name
        if name not in self.tensors:
            draw = np.random.default_rng(zlib.crc32(name.encode()))
            if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
                values = draw.uniform(0.6, 1.2, shape)
            elif len(shape) == 1:
                values = draw.normal(0, 0.1, shape)
            else:
                values = draw.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
            self.tensors[name] = torch.from_numpy(values.astype(np.float32))
        return self.tensors[name]

    def conv(self, x: Tensor, name: str, width: int, kernel: int = 3, **options: int) -> Tensor:
        """A convolution with bias where `bias` is 1."""
        groups, dilation = options.get("groups", 1), options.get("dilation", 1)
        weight = self.take(f"{name}.weight", width, x.shape[1] // groups, kernel, kernel)
        bias = self.take(f"{name}.bias", width) if options.get("bias") else None
        padding = dilation * (kernel // 2)
        stride = options.get("stride", 1)
        return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)

    def norm(self, x: Tensor, name: str) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        values = [self.take(f"{name}.{part}", x.shape[1]) for part in parts]
        self.tensors[f"{self.prefix}{name}.num_batches_tracked"] = torch.tensor(7)
        return functional.batch_norm(x, *values)

    def conv_bn(self, x: Tensor, name: str, width: int, kernel: int = 3, **options: int) -> Tensor:
        return self.norm(self.conv(x, f"{name}.0", width, kernel, **options), f"{name}.1")


def rows(x: Tensor, width: int) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, width)


def separable(
    w: Weights, x: Tensor, name: str, width: int, stride: int, relu: Callable[[Tensor], Tensor]
) -> Tensor:
    depth = w.conv(x, f"{name}.0", x.shape[1], stride=stride, groups=x.shape[1])
    x = relu(w.norm(depth, f"{name}.1"))
    return relu(w.norm(w.conv(x, f"{name}.3", width, 1), f"{name}.4"))


def run_mobilenet(w: Weights, x: Tensor) -> dict[str, Tensor]:
    """RetinaFace with MobileNet x0.25: (B, 3, H, W) BGR less its mean to rows by name."""

    def relu(x: Tensor) -> Tensor:
        return functional.leaky_relu(x, 0.1)

    x, levels = relu(w.conv_bn(x, "body.stage1.0", 8, stride=2)), []
    for stage, blocks in enumerate(MOBILE_STAGES, 1):
        for number, (width, stride) in enumerate(blocks, stage == 1):
            x = separable(w, x, f"body.stage{stage}.{number}", width, stride, relu)
        levels.append(x)
    levels = [relu(w.conv_bn(x, f"fpn.output{n}", 64, 1)) for n, x in enumerate(levels, 1)]
    for n in (1, 0):
        up = functional.interpolate(levels[n + 1], size=levels[n].shape[-2:])
        levels[n] = relu(w.conv_bn(levels[n] + up, f"fpn.merge{n + 1}", 64))
    found: dict[str, list[Tensor]] = {"ClassHead": [], "BboxHead": [], "LandmarkHead": []}
    for n, level in enumerate(levels):
        ssh = f"ssh{n + 1}."
        five = relu(w.conv_bn(level, ssh + "conv5X5_1", 16))
        seven = relu(w.conv_bn(five, ssh + "conv7X7_2", 16))
        parts = (
            w.conv_bn(level, ssh + "conv3X3", 32),
            w.conv_bn(five, ssh + "conv5X5_2", 16),
            w.conv_bn(seven, ssh + "conv7x7_3", 16),
        )
        level = torch.cat(parts, 1).relu()
        for head, width in (("ClassHead", 2), ("BboxHead", 4), ("LandmarkHead", 10)):
            found[head].append(
                rows(w.conv(level, f"{head}.{n}.conv1x1", 2 * width, 1, bias=1), width)
            )
    return {name: torch.cat(parts, 1) for name, parts in found.items()}


def receptive_field(w: Weights, x: Tensor, name: str) -> Tensor:
    def unit(x: Tensor, part: str, width: int, kernel: int, dilation: int = 1) -> Tensor:
        x = w.conv(x, f"{name}.{part}.conv", width, kernel, dilation=dilation)
        return w.norm(x, f"{name}.{part}.bn")

    branches = []
    for number, (widths, dilation) in enumerate(RFB_PATHS):
        y, last = x, len(widths) - 1
        for step, width in enumerate(widths):
            kernel, spread = (1 if step == 0 else 3), (dilation if step == last else 1)
            y = unit(y, f"branch{number}.{step}", width, kernel, spread)
            y = y.relu() if 0 < step < last else y
        branches.append(y)
    joined = unit(torch.cat(branches, 1), "ConvLinear", x.shape[1], 1)
    return (joined + unit(x, "shortcut", x.shape[1], 1)).relu()


def run_slim(w: Weights, x: Tensor, *, is_rfb: bool = False) -> dict[str, Tensor]:
    """Slim, or RFB: (B, 3, H, W) BGR less its mean to rows by name."""
    x, levels = w.conv_bn(x, "conv1", 16, stride=2).relu(), []
    for number, (width, stride) in enumerate(SLIM_BLOCKS, 2):
        if is_rfb and number == 8:
            x = receptive_field(w, x, "conv8")
        else:
            x = separable(w, x, f"conv{number}", width, stride, torch.relu)
        if number in (8, 11, 13):
            levels.append(x)
    x = w.conv(x, "conv14.0", 64, 1, bias=1).relu()
    x = w.conv(x, "conv14.2.0", 64, stride=2, groups=64, bias=1).relu()
    levels.append(w.conv(x, "conv14.2.2", 256, 1, bias=1).relu())
    found = {}
    for head, width in (("conf", 2), ("loc", 4), ("landm", 10)):
        parts = []
        for n, (level, shapes) in enumerate(zip(levels, (3, 2, 2, 3), strict=True)):
            name, count, channels = f"{head}.{n}", shapes * width, level.shape[1]
            if n < 3:
                level = w.conv(level, f"{name}.0", channels, groups=channels, bias=1).relu()
                level = w.conv(level, f"{name}.2", count, 1, bias=1)
            else:
                level = w.conv(level, name, count, bias=1)
            parts.append(rows(level, width))
        found[head] = torch.cat(parts, 1)
    return found


def run_rfb(w: Weights, x: Tensor) -> dict[str, Tensor]:
    return run_slim(w, x, is_rfb=True)


NETWORKS = {"mobilenet025": run_mobilenet, "slim": run_slim, "rfb": run_rfb}


def run_published(
    variant: str, frames: Tensor, prefix: str = ""
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dict of a published network, and what it gives for (B, H, W, 3) uint8 BGR frames.

    Returns:
        Tensors by their published names; and logits (B, A, 2), deltas (B, A, 4), landmarks
        (B, A, 10).
    """
    weights = Weights(prefix)
    x = (frames.float() - torch.tensor(MEAN_BGR)).permute(0, 3, 1, 2)
    found = list(NETWORKS[variant](weights, x).values())
    return weights.tensors, dict(zip(("logits", "deltas", "landmarks"), found, strict=True))
