"""What a key frame's heads and prototypes gave, moved along the flow, and prototypes mended.

A box is told relative to its cell. Every cell takes what the cell that the flow points into said,
unblended, and its boxes shift by the part of a cell that is left: so every box moves by just what
the flow says, and small objects are not mixed with what is beside them. Prototypes follow the flow
too; as outlines change, they are mended by what a thin encoder sees of the frame itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.layers.flow import MatchingFlow, resize_flow, warp, warp_whole
from training.layers.fpn import conv_norm

NUM_LEVELS = 5  # P3 to P7
CORRECTED = 3  # of them, from P3 on; on coarser ones little moves by a part of a cell
RARE_LOGIT = -4.0  # a class covers little of a frame: begun at 0, this loss would drown the others
FEATURES = ("features_s8", "features_s16")
PROTOTYPES = "prototypes"
STATE = (*(f"outputs_p{level}" for level in range(3, 3 + NUM_LEVELS)), PROTOTYPES, *FEATURES)


class FrameEncoder(nn.Module):
    """A frame's features of strides 2, 4, 8 and 16, thin enough to run on every frame, key or not.

    Args:
        channels: of each stride.
        norm: see `conv_norm`.
    """

    def __init__(self, channels: tuple[int, int, int, int], norm: str) -> None:
        super().__init__()
        widths = (3, *channels)
        self.halve = nn.ModuleList(
            conv_norm(a, b, 3, stride=2, norm=norm) for a, b in zip(widths, channels, strict=False)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W), normalised, to the four maps, the finest first."""
        features = []
        for layer in self.halve:
            images = functional.relu(layer(images))
            features.append(images)
        return features


class Separable(nn.Sequential):
    """A depthwise 3x3 convolution and a 1x1 one (MobileNet, arXiv:1704.04861), with ReLU."""

    def __init__(self, channels_in: int, channels: int, norm: str, stride: int = 1) -> None:
        depthwise = nn.Conv2d(
            channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=norm == "none"
        )
        super().__init__(depthwise, conv_norm(channels_in, channels, 1, norm=norm), nn.ReLU())


class Correction(nn.Module):
    """What is to be added to warped maps of P3, P4, P5.

    Down to P5 and up again, so that a cell of P3 knows what is around it, too.

    Args:
        channels_in: of what is seen of the frame at stride 8.
        channels_out: of the warped maps.
        width: channels in between. depth: separable convolutions of each level on the way down.
        norm: see `conv_norm`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        width: int,
        depth: int,
        norm: str,
    ) -> None:
        super().__init__()
        self.enter = conv_norm(channels_in + channels_out, width, 1, norm=norm)
        self.halve = nn.ModuleList(Separable(width, width, norm, 2) for _ in range(CORRECTED - 1))
        self.see = nn.ModuleList(nn.Conv2d(channels_out, width, 1) for _ in range(CORRECTED - 1))
        self.towers = nn.ModuleList(
            nn.Sequential(*(Separable(width, width, norm) for _ in range(depth)))
            for _ in range(CORRECTED)
        )
        self.merge = nn.ModuleList(Separable(width, width, norm) for _ in range(CORRECTED - 1))
        self.predict = nn.ModuleList(nn.Conv2d(width, channels_out, 1) for _ in range(CORRECTED))
        for conv in self.predict:  # begins as the plain warp
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, seen: Tensor, warped: list[Tensor]) -> list[Tensor]:
        """What is to be added to warped maps of P3, P4, P5; `seen` (B, channels_in, h, w) at P3."""
        feature = functional.relu(self.enter(torch.cat((seen, warped[0]), 1)))
        features = []
        for level in range(CORRECTED):
            if level:
                feature = self.halve[level - 1](feature) + self.see[level - 1](warped[level])
            feature = self.towers[level](feature)
            features.append(feature)
        for level in reversed(range(CORRECTED - 1)):
            enlarged = enlarge(features[level + 1], features[level])
            features[level] = self.merge[level](features[level] + enlarged)
        return [predict(f) for predict, f in zip(self.predict, features, strict=True)]


class WarpedOutputs(nn.Module):
    """The maps of heads and prototypes of a key frame, brought to a later frame.

    Args:
        widths: channels of the heads' maps: of scores, of boxes (4 of each shape), of coefficients.
        num_prototypes: P. num_classes: K.
        encoder: channels of strides 2, 4, 8, 16. reach: see `MatchingFlow`.
        flow_hidden: channels of the flow's refinement; 0 is without.
        is_blended: heads' maps are fetched bilinearly, in place of whole cells.
        mending: channels of the convolutions at stride 4 that mend warped prototypes by what is
            seen of the frame; 0 is without.
        correction: width and depth of `Correction`; a width of 0 is without.
        detail: channels of the branch that draws fine detail of the current frame at stride 2,
            where the prototypes have that size; 0 moves the key frame's detail with the rest.
        norm: see `conv_norm`.
    """

    def __init__(
        self,
        widths: tuple[int, int, int],
        num_prototypes: int,
        num_classes: int,
        *,
        encoder: tuple[int, int, int, int],
        reach: int,
        flow_hidden: int,
        is_blended: bool,
        mending: int,
        correction: tuple[int, int],
        detail: int,
        norm: str,
    ) -> None:
        super().__init__()
        self.widths, self.is_blended = widths, is_blended
        self.encoder = FrameEncoder(encoder, norm)
        self.flow = MatchingFlow(encoder[2:], reach, flow_hidden, norm)
        self.mending = self.correction = self.detail = None
        if mending:
            self.mending = nn.Sequential(
                conv_norm(encoder[1] + num_prototypes, mending, 3, norm=norm),
                nn.ReLU(),
                conv_norm(mending, mending, 3, norm=norm),
                nn.ReLU(),
                nn.Conv2d(mending, num_prototypes, 1),
            )
        if correction[0]:
            width, depth = correction
            sizes = (encoder[2] + flow_hidden, sum(widths))
            self.correction = Correction(*sizes, width=width, depth=depth, norm=norm)
        if detail:
            self.detail = nn.Sequential(
                conv_norm(encoder[0], detail, 3, norm=norm),
                nn.ReLU(),
                nn.Conv2d(detail, num_prototypes, 1),
            )
        for branch in (self.mending, self.detail):
            if branch is not None:  # begins as the plain warp
                nn.init.zeros_(branch[-1].weight)
                nn.init.zeros_(branch[-1].bias)
        self.semantic = nn.Conv2d(encoder[2], num_classes, 1)
        nn.init.constant_(self.semantic.bias, RARE_LOGIT)

    def leave(self, images: Tensor, maps: list[Tensor], prototypes: Tensor) -> dict[str, Tensor]:
        """What a key frame leaves.

        Args:
            images: (B, 3, H, W), normalised.
            maps: of P3 to P7, the heads' joined (B, sum(widths), h, w).
            prototypes: (B, P, h, w) before their ReLU, and before the detail if that is drawn anew.
        """
        features = self.encoder(images)
        return dict(zip(STATE, (*maps, prototypes, features[2], features[3]), strict=True))

    def find_flows(self, keys: Tensor, images: Tensor) -> list[Tensor]:
        """The flows of `forward` alone, from frames (B, 3, H, W) to their key frames."""
        now, key = self.encoder(images), self.encoder(keys)
        return self.flow((now[2], now[3]), (key[2], key[3]))[0]

    def forward(
        self,
        images: Tensor,
        state: dict[str, Tensor],
        box_steps: list[Tensor],
        *,
        is_warping: bool = True,
    ) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
        """A later frame (B, 3, H, W), normalised, and what `leave` gave.

        Args:
            box_steps: of P3 to P7, (S, 2): what a cell's width and height are in units of the boxes
                of each shape.
            is_warping: False takes the flow for 0.

        Returns:
            The heads' maps of P3 to P7, the prototypes (B, P, h, w) before their ReLU, semantic
            logits (B, K, ...) at stride 8 for training alone, and the flows at strides 8 and 16.
        """
        features = self.encoder(images)
        flows, hidden = self.flow((features[2], features[3]), tuple(state[n] for n in FEATURES))
        if not is_warping:
            flows = [torch.zeros_like(flow) for flow in flows]
        maps, flow = [], flows[0]
        for name, steps in zip(STATE, box_steps, strict=False):
            flow = resize_flow(flow, state[name].shape[-2:])
            maps.append(self._fetch(state[name], flow, steps))
        prototypes = warp(state[PROTOTYPES], resize_flow(flows[0], state[PROTOTYPES].shape[-2:]))
        if self.mending is not None:
            seen = (enlarge(features[1], prototypes), prototypes)
            prototypes = prototypes + self.mending(torch.cat(seen, 1))
        if self.correction is not None:
            seen = features[2] if hidden is None else torch.cat((features[2], hidden), 1)
            changes = self.correction(seen, maps[:CORRECTED])
            maps[:CORRECTED] = [a + b for a, b in zip(maps, changes, strict=False)]
        if self.detail is not None:
            prototypes = enlarge(prototypes, features[0]) + self.detail(features[0])
        return maps, prototypes, self.semantic(features[2]), flows

    def _fetch(self, joined: Tensor, flow: Tensor, steps: Tensor) -> Tensor:
        """A level's maps (B, sum(widths), h, w) along the flow; `steps` (S, 2) of its boxes."""
        if self.is_blended:
            return warp(joined, flow)
        fetched, rest = warp_whole(joined, flow)
        scores, boxes, coefficients = fetched.split(self.widths, 1)
        shifts = rest[:, None] * steps[None, :, :, None, None]  # (B, S, 2, h, w)
        shifts = torch.cat((shifts, torch.zeros_like(shifts)), 2).flatten(1, 2)
        return torch.cat((scores, boxes - shifts.to(boxes.dtype), coefficients), 1)


def enlarge(feature: Tensor, like: Tensor) -> Tensor:
    """A map (B, C, h, w) at the size of another, bilinear."""
    return functional.interpolate(feature, size=like.shape[-2:], mode="bilinear")
