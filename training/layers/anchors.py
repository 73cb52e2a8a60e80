"""Anchor boxes on the levels of a feature pyramid (RetinaNet, arXiv:1708.02002, section 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def level_sizes(size_hw: tuple[int, int], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """Height and width of each level: every halving rounds up, as 3x3 convolutions do."""
    height, width = size_hw
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def make_anchors(
    sizes: list[tuple[int, int]],
    strides: tuple[int, ...],
    *,
    base_scale: float | tuple[float, ...],
    octaves: tuple[float, ...],
    ratios: tuple[float, ...],
    is_square: bool = False,
    spread_hw: tuple[int, int] | None = None,
) -> Tensor:
    """Anchors of all levels, level by level, row by row, with the shapes innermost.

    Args:
        sizes: height and width of each level.
        strides: pixels of the network input per cell, level by level.
        base_scale: side of a square anchor, in strides; one for all levels, or one each.
        octaves: factors on that side.
        ratios: height over width; the area stays.
        is_square: a ratio r makes a square of r ** 0.5 times the side, as YOLACT was published.
        spread_hw: cells are spread evenly over an image of this size, pixels, as YOLACT does;
            None lays them whole strides apart.

    Returns:
        (A, 4) float32 as (x1, y1, x2, y2), pixels of the network input; centres lie in the
        middle of the cells; boxes may reach outside the image.
    """
    shapes = torch.tensor(
        [(o * r ** (0.5 if is_square else -0.5), o * r**0.5) for o in octaves for r in ratios],
        dtype=torch.float64,
    )  # (S, 2) as (w, h)
    levels = []
    scales = base_scale if isinstance(base_scale, tuple) else (base_scale,) * len(sizes)
    for (height, width), stride, scale in zip(sizes, strides, scales, strict=True):
        half = shapes * (scale * stride / 2)  # (S, 2)
        step_y = spread_hw[0] / height if spread_hw else stride
        step_x = spread_hw[1] / width if spread_hw else stride
        ys = (torch.arange(height, dtype=torch.float64) + 0.5) * step_y
        xs = (torch.arange(width, dtype=torch.float64) + 0.5) * step_x
        centre_y, centre_x = torch.meshgrid(ys, xs, indexing="ij")
        centres = torch.stack((centre_x, centre_y), -1)[:, :, None]  # (h, w, 1, 2)
        boxes = torch.cat((centres - half, centres + half), -1)  # (h, w, S, 4)
        levels.append(boxes.reshape(-1, 4))
    return torch.cat(levels).float()


class AnchorCache:
    """The anchors of a network, made when levels of some size are met for the first time.

    Args:
        strides, shapes: see `make_anchors`.
        is_spread: cells are spread over the image that the levels are of.
    """

    def __init__(self, strides: tuple[int, ...], *, is_spread: bool = False, **shapes: Any) -> None:
        self._strides, self._is_spread, self._shapes = strides, is_spread, shapes
        self._made: dict[tuple[tuple[int, int], ...], Tensor] = {}

    def __call__(self, sizes: list[tuple[int, int]], image_hw: tuple[int, int]) -> Tensor:
        """Anchors (A, 4) of levels of these sizes and an image of that one; see `make_anchors`."""
        levels = [(int(h), int(w)) for h, w in sizes]  # numbers also while a network is traced
        key = (*levels, (int(image_hw[0]), int(image_hw[1])))
        if key not in self._made:
            spread_hw = key[-1] if self._is_spread else None
            self._made[key] = make_anchors(
                levels, self._strides, spread_hw=spread_hw, **self._shapes
            )
        return self._made[key]
