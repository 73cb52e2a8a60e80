"""Pyramid sums that follow the flow from the last key frame (YolactEdge, arXiv:2012.12259)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.layers.flow import LEAK, FeatFlowNet, warp

STATE = ("p4", "p5", "flow_source")


class WarpedPyramid(nn.Module):
    """P4 and P5 from the key frame, as the flow of P3's laterals says; P3 is of the frame itself.

    Args:
        channels: of the pyramid.
        upsample: of the coarser level, as of `FeaturePyramid`.
        has_refinement: what was warped is corrected by the current lateral. The published weights
            have it, the paper's figure does not.
    """

    def __init__(self, channels: int, upsample: str, *, has_refinement: bool = True) -> None:
        super().__init__()
        self.upsample = upsample
        self.flow = FeatFlowNet(channels)
        self.refine = nn.ModuleList(
            nn.Conv2d(2 * channels, channels, 3, padding=1) for _ in range(2 * has_refinement)
        )
        for conv in self.refine:
            nn.init.normal_(conv.weight, std=1e-3)  # begins close to the plain warp
            nn.init.zeros_(conv.bias)

    def leave(self, lateral: Tensor, merged: list[Tensor]) -> dict[str, Tensor]:
        """What a key frame leaves, of its lateral of P3 and its sums P3, P4 and P5."""
        return dict(zip(STATE, (merged[1], merged[2], self.flow.source(lateral)), strict=True))

    def forward(
        self, lateral: Tensor, state: dict[str, Tensor], *, is_warping: bool = True
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The current lateral of P3 (B, C, h, w), and what `leave` gave.

        Args:
            is_warping: False takes the flow for 0.

        Returns:
            The sums P3, P4, P5, and the flows of P4 and P5 (B, 2, ...) in cells.
        """
        p4_key, p5_key, source = (state[name] for name in STATE)
        flows, sums = [], []
        for key, (found, scale, bias) in zip(
            (p4_key, p5_key), self.flow(lateral, source), strict=True
        ):
            flows.append(found if is_warping else torch.zeros_like(found))
            sums.append(warp(key, flows[-1], padding="zeros") * scale + bias)
        up = functional.interpolate(sums[0], size=lateral.shape[-2:], mode=self.upsample)
        p3, smaller = lateral + up, lateral
        for level, conv in enumerate(self.refine):
            smaller = functional.interpolate(smaller, sums[level].shape[-2:], mode=self.upsample)
            change = conv(torch.cat((sums[level], smaller), 1))
            sums[level] = sums[level] + functional.leaky_relu(change, LEAK)
        return [p3, *sums], flows
