"""What a key frame's heads and prototypes gave, moved along the flow and corrected.

A box is told relative to its cell, so a map of boxes that follows the flow moves every box by just
what the flow says, between cells too. Hence nothing behind the backbone's first layers is computed
anew: a thin encoder of the frame, the flow, and small corrections.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.layers.flow import MatchingFlow, resize_flow, warp
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
    """What is to be added to warped maps of P3, P4, P5 and to warped prototypes.

    Down to P5 and up again, so that a cell of P3 knows what is around it, too.

    Args:
        channels_in: of what is seen of the frame at stride 8.
        channels_out: of the warped maps. num_prototypes: P.
        width: channels in between. depth: separable convolutions of each level on the way down.
        norm: see `conv_norm`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        num_prototypes: int,
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
        self.predict_prototypes = nn.Conv2d(width, num_prototypes, 1)
        for conv in (*self.predict, self.predict_prototypes):  # begins as the plain warp
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, seen: Tensor, warped: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """What is seen (B, channels_in, h, w) at P3's size, and the warped maps of P3, P4, P5.

        Returns:
            What to add to each of them, and to the prototypes: (B, P, h, w), of P3's size.
        """
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
        changes = [predict(f) for predict, f in zip(self.predict, features, strict=True)]
        return changes, self.predict_prototypes(features[0])


class WarpedOutputs(nn.Module):
    """The maps of heads and prototypes of a key frame, brought to a later frame.

    Args:
        channels_out: of the heads' maps, joined. num_prototypes: P. num_classes: K.
        encoder: channels of strides 2, 4, 8, 16. reach: see `MatchingFlow`.
        flow_hidden: channels of the flow's refinement; 0 is without.
        context: channels of what a frame between key frames adds to its features of stride 8.
        correction: width and depth of `Correction`; a width of 0 is without.
        detail: channels of the branch that draws fine detail of the current frame at stride 2,
            where the prototypes have that size; 0 moves the key frame's detail with the rest.
        norm: see `conv_norm`.
    """

    def __init__(
        self,
        channels_out: int,
        num_prototypes: int,
        num_classes: int,
        *,
        encoder: tuple[int, int, int, int],
        reach: int,
        flow_hidden: int,
        context: int,
        correction: tuple[int, int],
        detail: int,
        norm: str,
    ) -> None:
        super().__init__()
        self.encoder = FrameEncoder(encoder, norm)
        self.flow = MatchingFlow(encoder[2:], reach, flow_hidden, norm)
        self.context = conv_norm(encoder[2], context, 3, norm=norm)
        self.correction = None
        if correction[0]:
            width, depth = correction
            sizes = (context + flow_hidden, channels_out, num_prototypes)
            self.correction = Correction(*sizes, width=width, depth=depth, norm=norm)
        self.detail = None
        if detail:
            self.detail = nn.Sequential(
                conv_norm(encoder[0], detail, 3, norm=norm),
                nn.ReLU(),
                nn.Conv2d(detail, num_prototypes, 1),
            )
            nn.init.zeros_(self.detail[-1].weight)
            nn.init.zeros_(self.detail[-1].bias)
        self.semantic = nn.Conv2d(context, num_classes, 1)
        nn.init.constant_(self.semantic.bias, RARE_LOGIT)

    def leave(self, images: Tensor, maps: list[Tensor], prototypes: Tensor) -> dict[str, Tensor]:
        """What a key frame leaves.

        Args:
            images: (B, 3, H, W), normalised.
            maps: of P3 to P7, the heads' joined (B, channels_out, h, w).
            prototypes: (B, P, h, w) before their ReLU, and before the detail if that is drawn anew.
        """
        features = self.encoder(images)
        return dict(zip(STATE, (*maps, prototypes, features[2], features[3]), strict=True))

    def find_flows(self, keys: Tensor, images: Tensor) -> list[Tensor]:
        """The flows of `forward` alone, from frames (B, 3, H, W) to their key frames."""
        now, key = self.encoder(images), self.encoder(keys)
        return self.flow((now[2], now[3]), (key[2], key[3]))[0]

    def forward(
        self, images: Tensor, state: dict[str, Tensor], *, is_warping: bool = True
    ) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
        """A later frame (B, 3, H, W), normalised, and what `leave` gave.

        Args:
            is_warping: False takes the flow for 0.

        Returns:
            The heads' maps of P3 to P7, the prototypes (B, P, h, w) before their ReLU, semantic
            logits (B, K, ...) at stride 8 for training alone, and the flows at strides 8 and 16.
        """
        features = self.encoder(images)
        flows, hidden = self.flow((features[2], features[3]), tuple(state[n] for n in FEATURES))
        if not is_warping:
            flows = [torch.zeros_like(flow) for flow in flows]
        context = functional.relu(self.context(features[2]))
        maps, flow = [], flows[0]
        for name in STATE[:NUM_LEVELS]:
            flow = resize_flow(flow, state[name].shape[-2:])
            maps.append(warp(state[name], flow))
        whole = state[PROTOTYPES]
        prototypes = warp(whole, resize_flow(flows[0], whole.shape[-2:]))
        if self.correction is not None:
            seen = context if hidden is None else torch.cat((context, hidden), 1)
            changes, change = self.correction(seen, maps[:CORRECTED])
            maps[:CORRECTED] = [a + b for a, b in zip(maps, changes, strict=False)]
            prototypes = prototypes + enlarge(change, whole)
        if self.detail is not None:
            prototypes = enlarge(prototypes, features[0]) + self.detail(features[0])
        return maps, prototypes, self.semantic(context), flows


def enlarge(feature: Tensor, like: Tensor) -> Tensor:
    """A map (B, C, h, w) at the size of another, bilinear."""
    return functional.interpolate(feature, size=like.shape[-2:], mode="bilinear")
