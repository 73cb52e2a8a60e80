"""Masks of instances from prototypes and coefficients, as a part of the graph (YOLACT, eq. 1).

Float32 in every precision: only the kept rows are made, so the product is a thousandth of the
network, and what follows it rounds to bytes once, at the end.
"""

import torch
from torch import Tensor

CROP_PAD = 1.0  # prototype pixels that a crop reaches beyond its box, as published
FULL = 255.0


def make_masks(
    coefficients: Tensor,
    prototypes: Tensor,
    boxes_xyxy: Tensor,
    is_kept: Tensor,
    input_hw: tuple[int, int],
) -> Tensor:
    """Soft masks of the kept rows, cropped to their boxes.

    Args:
        coefficients: (B, M, P) float32.
        prototypes: (B, P, h, w) float32.
        boxes_xyxy: (B, M, 4) float32, pixels of the network input.
        is_kept: (B, M) bool; rows of padding have empty masks.
        input_hw: height and width of the network input, pixels.

    Returns:
        (B, M, h, w) float32, 0..1; 0 outside of x1 - 1 <= column < x2 + 1 and the same of rows, in
        prototype pixels.
    """
    height, width = prototypes.shape[-2], prototypes.shape[-1]
    product = torch.matmul(coefficients, prototypes.flatten(2))  # (B, M, h * w)
    soft = product.sigmoid().reshape(product.shape[0], product.shape[1], height, width)
    scale = boxes_xyxy.new_tensor([width / input_hw[1], height / input_hw[0]] * 2)
    x1, y1, x2, y2 = (boxes_xyxy * scale).split(1, dim=2)  # (B, M, 1) each
    columns = torch.arange(width, dtype=torch.float32, device=boxes_xyxy.device)
    rows = torch.arange(height, dtype=torch.float32, device=boxes_xyxy.device)
    in_x = (columns >= x1 - CROP_PAD) & (columns < x2 + CROP_PAD)  # (B, M, w)
    in_y = (rows >= y1 - CROP_PAD) & (rows < y2 + CROP_PAD) & is_kept[:, :, None]  # (B, M, h)
    is_inside = in_y[:, :, :, None] & in_x[:, :, None, :]
    return torch.where(is_inside, soft, 0.0)


def to_bytes(soft: Tensor) -> Tensor:
    """Soft masks 0..1 as uint8, 0..255, rounded."""
    return (soft * FULL).round().to(torch.uint8)
