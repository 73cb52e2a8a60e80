"""Optical flow between feature maps: what it is, how features follow it, two networks that find it.

A flow (B, 2, h, w) says for every cell of the current frame where what it shows lay in an earlier
one: (dx, dy) from the cell, in cells of its own level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.layers.fpn import conv_norm

LEAK = 0.1  # slope of FlowNet's leaky ReLU
FLOW_SCALE = 8.0  # FeatFlowNet gives flow in eighths of normalised coordinates
FAR = 1e4  # penalty of a place that is out of reach


def warp(feature: Tensor, flow: Tensor, *, padding: str = "border") -> Tensor:
    """Fetch every cell from where the flow says that it was, bilinearly.

    Args:
        feature: (B, C, h, w) of the earlier frame.
        flow: (B, 2, h, w), cells.
        padding: what lies outside: "border", or "zeros" as YolactEdge publishes it.

    Returns:
        (B, C, h, w) in the feature's type; float32 inside.
    """
    x, y = _places(flow)
    if padding == "border":  # by hand: at "zeros" ONNX Runtime is ten times faster
        x, y = x.clamp(0, flow.shape[-1] - 1), y.clamp(0, flow.shape[-2] - 1)
    return _sample(feature, x, y, "bilinear")


def warp_whole(feature: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Fetch every cell from the one that the flow points into: nothing is blended.

    Args:
        feature: (B, C, h, w) of the earlier frame.
        flow: (B, 2, h, w), cells; what it points to outside is the border's.

    Returns:
        (B, C, h, w) in the feature's type; and (B, 2, h, w) float32, from the middle of the cell
        that was fetched to where the flow points, cells: -0.5..0.5.
    """
    x, y = _places(flow)
    x, y = x.clamp(0, flow.shape[-1] - 1), y.clamp(0, flow.shape[-2] - 1)
    column, row = x.detach().round(), y.detach().round()
    return _sample(feature, column, row, "nearest"), torch.stack((x - column, y - row), 1)


def _places(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Columns and rows (B, h, w), float32, that a flow (B, 2, h, w) points to."""
    height, width = int(flow.shape[-2]), int(flow.shape[-1])
    flow = flow.float()
    x = torch.arange(width, device=flow.device, dtype=torch.float32) + flow[:, 0]
    y = torch.arange(height, device=flow.device, dtype=torch.float32)[:, None] + flow[:, 1]
    return x, y


def _sample(feature: Tensor, x: Tensor, y: Tensor, mode: str) -> Tensor:
    height, width = int(feature.shape[-2]), int(feature.shape[-1])
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), -1)  # (B, h, w, 2)
    found = functional.grid_sample(
        feature.float(), grid, mode=mode, padding_mode="zeros", align_corners=False
    )
    return found.to(feature.dtype)


def resize_flow(flow: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """A flow (B, 2, h, w) for a level of another size, in that level's cells; bilinear."""
    height, width = int(flow.shape[-2]), int(flow.shape[-1])
    if (height, width) == (int(size_hw[0]), int(size_hw[1])):
        return flow
    resized = functional.interpolate(flow, size=(int(size_hw[0]), int(size_hw[1])), mode="bilinear")
    factor = resized.new_tensor((int(size_hw[1]) / width, int(size_hw[0]) / height))
    return resized * factor.reshape(1, 2, 1, 1)


def mean_motion(flow: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """The mean length (B,) of a flow (B, 2, h, w), float32, in pixels of an image of that size."""
    dx, dy = resize_factors(flow, image_hw)
    squared = (flow[:, 0].float() * dx) ** 2 + (flow[:, 1].float() * dy) ** 2
    return squared.sqrt().mean((1, 2))


def resize_factors(flow: Tensor, image_hw: tuple[int, int]) -> tuple[float, float]:
    """Pixels of an image of that size to a cell of the flow, in x and in y."""
    return int(image_hw[1]) / int(flow.shape[-1]), int(image_hw[0]) / int(flow.shape[-2])


class FeatFlowNet(nn.Module):
    """YolactEdge's flow between laterals of P3 (arXiv:2012.12259, section 3.2): a small FlowNetS.

    Both frames' features are joined, not correlated. The first convolution of the joined ones is
    kept as two halves, since a convolution of a join is the sum of two: what the key frame adds is
    found once, with the key frame.

    Args:
        channels: of the laterals, and of the scales and biases.
        reduced: to how many channels they are brought first.
    """

    def __init__(self, channels: int, reduced: int = 64) -> None:
        super().__init__()
        mid, last = 2 * reduced, 4 * reduced
        self.reduce = nn.Conv2d(channels, reduced, 3, padding=1)
        self.first_now = nn.Conv2d(reduced, reduced, 3, padding=1)
        self.first_key = nn.Conv2d(reduced, reduced, 3, padding=1, bias=False)
        self.first = nn.Conv2d(reduced, reduced, 3, padding=1)
        self.second = _halving_pair(reduced, mid)
        self.third = _halving_pair(mid, last)
        self.up_feature = nn.Conv2d(last, mid, 3, padding=1, bias=False)
        self.up_flow = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.fine = FlowPrediction(2 * mid + 2, channels)
        self.coarse = FlowPrediction(last, channels)

    def source(self, lateral: Tensor) -> Tensor:
        """What a key frame adds to the first convolution: (B, C, h, w) to (B, reduced, h, w)."""
        return self.first_key(_leaky(self.reduce(lateral)))

    def forward(self, lateral: Tensor, source: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The current lateral (B, C, h, w) and the key frame's `source`.

        Returns:
            Flow (B, 2, ...) in cells, scale and bias (B, C, ...) at half and at a quarter of the
            size, rounded up.
        """
        found = _leaky(self.first_now(_leaky(self.reduce(lateral))) + source)
        second = self.second(_leaky(self.first(found)))
        third = self.third(second)
        raw_coarse = self.coarse.flow(third)
        size = second.shape[-2:]
        feature = self.up_feature(functional.interpolate(third, size=size, mode="bilinear"))
        enlarged = self.up_flow(functional.interpolate(raw_coarse, size=size, mode="bilinear"))
        joined = torch.cat((second, feature, enlarged), 1)
        return [
            (_to_cells(self.fine.flow(joined)), *self.fine.scale_and_bias(joined)),
            (_to_cells(raw_coarse), *self.coarse.scale_and_bias(third)),
        ]


class FlowPrediction(nn.Module):
    """Flow, and how every channel of what is warped is to be scaled and shifted (DFF's maps)."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.flow = nn.Conv2d(channels_in, 2, 3, padding=1, bias=False)
        self.scale = nn.Conv2d(channels_in, channels, 1)
        self.bias = nn.Conv2d(channels_in, channels, 1)
        nn.init.zeros_(self.scale.weight)  # begins as the plain warp
        nn.init.ones_(self.scale.bias)
        nn.init.zeros_(self.bias.weight)
        nn.init.zeros_(self.bias.bias)

    def scale_and_bias(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(B, channels_in, h, w) to two maps (B, channels, h, w)."""
        return self.scale(feature), self.bias(feature)


def _leaky(feature: Tensor) -> Tensor:
    return functional.leaky_relu(feature, LEAK)


def _halving_pair(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, 2, 1),
        nn.LeakyReLU(LEAK),
        nn.Conv2d(channels, channels, 3, 1, 1),
        nn.LeakyReLU(LEAK),
    )


def _to_cells(raw: Tensor) -> Tensor:
    """FeatFlowNet's units to cells: its grid runs from -1 to 1 between the outermost cells."""
    height, width = int(raw.shape[-2]), int(raw.shape[-1])
    half = raw.new_tensor(((width - 1) / 2, (height - 1) / 2)).reshape(1, 2, 1, 1)
    return raw.float() * (half / FLOW_SCALE)


class MatchingFlow(nn.Module):
    """Flow by comparing every cell with all that lie within reach, then refined on both levels.

    The coarse part is GMFlow's matching (arXiv:2111.13680, eq. 1 and 2) within a window, with a
    learned cost of distance that keeps what has no texture where it is. The refinements read the
    current features and the warped earlier ones, as SPyNet does (arXiv:1611.00850).

    Args:
        channels: of the finer level, that flow is wanted for, and of the coarser one.
        reach: cells of the coarse level that things may have moved, in x and in y.
        hidden: channels of the refinements; 0 is without.
        norm: see `conv_norm`.
    """

    def __init__(self, channels: tuple[int, ...], reach: int, hidden: int, norm: str) -> None:
        super().__init__()
        fine, coarse = channels
        self.reach = reach
        self.stiffness = nn.Parameter(torch.tensor(0.1))
        self.settle = self.refine = None
        if hidden:
            self.settle = FlowRefinement(coarse, hidden, norm)
            self.refine = FlowRefinement(fine, hidden, norm)

    def forward(
        self, now: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor]
    ) -> tuple[list[Tensor], Tensor | None]:
        """Features of two levels, fine and coarse, of the current frame and of the key frame.

        Returns:
            Flows (B, 2, ...) in cells, float32, of the fine level, and of the coarse one refined
            and as it was matched; and what the finer refinement saw (B, hidden, h, w), None
            without.
        """
        matched = self._match(now[1], key[1])
        if self.settle is None or self.refine is None:
            return [resize_flow(matched, now[0].shape[-2:]), matched], None
        coarse, _ = self.settle(now[1], key[1], matched)
        fine, seen = self.refine(now[0], key[0], resize_flow(coarse, now[0].shape[-2:]))
        return [fine, coarse, matched], seen

    def _match(self, now: Tensor, key: Tensor) -> Tensor:
        batch, channels = now.shape[:2]
        height, width = int(now.shape[-2]), int(now.shape[-1])
        likeness = now.flatten(2).transpose(1, 2) @ key.flatten(2)  # (B, hw, hw)
        likeness = likeness.float().reshape(batch, -1, height, width) / channels**0.5
        dx, dy = _offsets(height, width, likeness.device)
        cost_x, cost_y = (self._cost(offset) for offset in (dx, dy))
        likeness = likeness - cost_x[:, None, :] - cost_y[:, :, None]
        weights = likeness.flatten(2).softmax(-1).reshape(batch, -1, height, width)
        flow_x = (weights.sum(2) * dx).sum(-1)  # (B, hw)
        flow_y = (weights.sum(3) * dy).sum(-1)
        return torch.stack((flow_x, flow_y), 1).reshape(batch, 2, height, width)

    def _cost(self, offset: Tensor) -> Tensor:
        return self.stiffness.abs() * offset**2 + FAR * (offset.abs() > self.reach)


class FlowRefinement(nn.Module):
    """What is to be added to a flow, from the frame's features and the earlier ones that follow it.

    Args:
        channels: of the features. hidden: in between. norm: see `conv_norm`.
    """

    def __init__(self, channels: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_norm(2 * channels + 2, hidden, 3, norm=norm),
            nn.ReLU(),
            conv_norm(hidden, hidden, 3, norm=norm),
            nn.ReLU(),
        )
        self.predict = nn.Conv2d(hidden, 2, 3, padding=1)
        nn.init.zeros_(self.predict.weight)  # begins as the flow that it is given
        nn.init.zeros_(self.predict.bias)

    def forward(self, now: Tensor, key: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w) of both frames and the flow (B, 2, h, w), in cells.

        Returns:
            The refined flow, float32, and what was seen (B, hidden, h, w).
        """
        seen = self.layers(torch.cat((now, warp(key, flow), flow.to(now.dtype)), 1))
        return flow + self.predict(seen).float(), seen


def _offsets(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """From every cell, row by row, to every column (hw, w) and to every row (hw, h)."""
    columns = torch.arange(width, device=device, dtype=torch.float32)
    rows = torch.arange(height, device=device, dtype=torch.float32)
    dx = (columns - columns[:, None]).repeat(height, 1)
    dy = (rows - rows[:, None]).repeat_interleave(width, 0)
    return dx, dy
