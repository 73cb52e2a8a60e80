"""Prototype masks and their use (YOLACT, arXiv:1904.02689, sections 3.1 and 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.layers.fpn import conv_norm

DETAIL_CHANNELS = 16
CROP_PAD = 1.0  # prototype pixels that a crop reaches beyond its box


class ProtoNet(nn.Module):
    """The finest level of a pyramid to P prototypes at twice its size (figure 3), or four times.

    Args:
        channels_in: of the level.
        coarse: channels of the 3x3 convolutions at the level's size, at least one.
        fine: channels of those at twice the size.
        num_prototypes: P.
        norm: "none", "batch" or "group"; after every 3x3 convolution.
        channels_skip: of a feature map of the backbone at twice the level's size, which is added
            there through a 1x1 convolution; 0 is without.
        channels_detail: of a feature map of the backbone at four times the level's size. The
            prototypes are doubled once more, and what a small branch sees there is added: thin
            objects need it. 0 is without, as published.
    """

    def __init__(
        self,
        channels_in: int,
        coarse: tuple[int, ...],
        fine: tuple[int, ...],
        num_prototypes: int,
        *,
        norm: str = "none",
        channels_skip: int = 0,
        channels_detail: int = 0,
    ) -> None:
        super().__init__()
        widths = (channels_in, *coarse)
        self.coarse = nn.ModuleList(
            conv_norm(a, b, 3, norm=norm) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.skip = conv_norm(channels_skip, coarse[-1], 1, norm=norm) if channels_skip else None
        widths = (coarse[-1], *fine)
        self.fine = nn.ModuleList(
            conv_norm(a, b, 3, norm=norm) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.predict = nn.Conv2d(widths[-1], num_prototypes, 1)
        self.detail = None
        if channels_detail:
            self.detail = nn.Sequential(
                conv_norm(channels_detail, DETAIL_CHANNELS, 1, norm=norm),
                nn.ReLU(),
                conv_norm(DETAIL_CHANNELS, DETAIL_CHANNELS, 3, norm=norm),
                nn.ReLU(),
                nn.Conv2d(DETAIL_CHANNELS, num_prototypes, 1),
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.detail is not None:
            nn.init.zeros_(self.detail[-1].weight)  # begins as the plain prototypes, enlarged

    def forward(
        self, level: Tensor, finer: Tensor | None = None, finest: Tensor | None = None
    ) -> Tensor:
        """(B, C, h, w), and where there is a skip (B, C', 2h or 2h-1, ...), to (B, P, 2h, 2w).

        With the detail branch, `finest` is of four times the level's size, and so is the result.

        The prototypes are at least 0, as published: they end in a ReLU.
        """
        return functional.relu(self.add_detail(self.logits(level, finer), finest))

    def logits(self, level: Tensor, finer: Tensor | None = None) -> Tensor:
        """(B, C, h, w) to (B, P, 2h, 2w), before the detail branch and the ReLU."""
        for layer in self.coarse:
            level = functional.relu(layer(level))
        size_hw = (2 * level.shape[-2], 2 * level.shape[-1]) if finer is None else finer.shape[-2:]
        level = functional.interpolate(level, size=size_hw, mode="bilinear")
        if self.skip is not None:
            level = functional.relu(level + self.skip(finer))
        for layer in self.fine:
            level = functional.relu(layer(level))
        return self.predict(level)

    def add_detail(self, logits: Tensor, finest: Tensor | None = None) -> Tensor:
        """Those logits to what the ReLU ends in the prototypes; see `forward`."""
        if self.detail is not None:
            doubled = functional.interpolate(logits, size=finest.shape[-2:], mode="bilinear")
            return doubled + self.detail(finest)
        return logits


def crop_inside(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Which pixels of a prototype map belong to a box: those up to one pixel beyond it.

    Args:
        boxes_xyxy: (N, 4), prototype pixels.
        size_hw: of the prototypes.

    Returns:
        (N, h, w) bool: x1 - 1 <= column < x2 + 1 and the same of rows, as published.
    """
    x1, y1, x2, y2 = boxes_xyxy[:, :, None].unbind(1)  # (N, 1) each
    columns = torch.arange(size_hw[1], device=boxes_xyxy.device, dtype=boxes_xyxy.dtype)
    rows = torch.arange(size_hw[0], device=boxes_xyxy.device, dtype=boxes_xyxy.dtype)
    in_x = (columns >= x1 - CROP_PAD) & (columns < x2 + CROP_PAD)  # (N, w)
    in_y = (rows >= y1 - CROP_PAD) & (rows < y2 + CROP_PAD)  # (N, h)
    return in_y[:, :, None] & in_x[:, None, :]


def assemble_masks(
    coefficients: Tensor, prototypes: Tensor, boxes_xyxy: Tensor, input_hw: tuple[int, int]
) -> Tensor:
    """Soft masks of the detections of one image, cropped to their boxes (eq. 1).

    Args:
        coefficients: (N, P). prototypes: (P, h, w).
        boxes_xyxy: (N, 4), pixels of the network input of `input_hw`.

    Returns:
        (N, h, w) float32, 0..1.
    """
    size_hw = (prototypes.shape[-2], prototypes.shape[-1])
    masks = torch.einsum("np,phw->nhw", coefficients, prototypes).sigmoid()
    boxes = to_prototype_pixels(boxes_xyxy, input_hw, size_hw)
    return torch.where(crop_inside(boxes, size_hw), masks, 0.0)


def to_prototype_pixels(
    boxes_xyxy: Tensor, input_hw: tuple[int, int], size_hw: tuple[int, int]
) -> Tensor:
    """Boxes (N, 4) in pixels of the network input to pixels of the prototypes."""
    factor = (size_hw[1] / input_hw[1], size_hw[0] / input_hw[0]) * 2
    return boxes_xyxy * boxes_xyxy.new_tensor(factor)
