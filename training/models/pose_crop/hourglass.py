"""Stacked hourglass: the joints of one person in a crop (Newell et al., arXiv:1603.06937).

Every stack predicts a heatmap of each joint and is supervised (section 3.3). Heatmaps are drawn
and read without rounding to cells (DARK, arXiv:1910.06278).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.data.joints import PERSON_JOINTS
from training.errors import TrainingError
from training.layers.hourglass import STRIDE, StackedHourglass
from training.layers.subpixel import REACH, draw_joints, find_joints
from training.models.base import CropSpec, Losses, Model, Recipe, Targets, Variant

LEAST_CELLS = 2 * (REACH + 1) + 1  # of a heatmap's sides


@dataclass(frozen=True, kw_only=True)
class HourglassSpec(CropSpec):
    """The fields of `CropSpec`, and:

    Attributes:
        channels, num_stacks, depth: of `StackedHourglass`.
        sigma: standard deviation of a joint in a heatmap, cells.
    """

    channels: int = 256
    num_stacks: int = 2
    depth: int = 4
    sigma: float = 1.5


class HourglassRaw(NamedTuple):
    """What the network gives.

    Attributes:
        heatmaps: (B, J, h, w) of each stack, stride 4; about 0..1.
    """

    heatmaps: list[Tensor]


class StackedHourglassPose(Model):
    """See the module's docstring."""

    task = "pose_crop"
    spec_type = HourglassSpec

    def __init__(self, spec: HourglassSpec, *, is_backbone_pretrained: bool = False) -> None:
        super().__init__(spec)
        self.spec: HourglassSpec = spec
        if not spec.joints or min(spec.size_hw) < LEAST_CELLS * STRIDE:
            height, width = spec.size_hw
            raise TrainingError(
                f"the spec has {len(spec.joints)} joints in crops of {width}x{height}; expected at "
                f"least one joint and sides of {LEAST_CELLS * STRIDE} pixels or more. Give data "
                "with joints, or a larger --size."
            )
        self.network = StackedHourglass(
            spec.channels, spec.num_stacks, spec.depth, len(spec.joints)
        )
        for conv in self.network.predict:  # nearly all of a heatmap is 0
            nn.init.normal_(conv.weight, std=1e-3)
            nn.init.zeros_(conv.bias)

    def forward(self, images: Tensor) -> HourglassRaw:
        """Run the network on (B, 3, H, W) float32, normalised."""
        _, heatmaps = self.network(images)
        return HourglassRaw([each.float() for each in heatmaps])

    def loss(self, raw: HourglassRaw, targets: Targets) -> Losses:
        """Squared error of each stack's heatmaps, summed over cells, a mean over labelled joints.

        Hidden joints count, as they can be guessed; joints that are not labelled do not.
        """
        if targets.keypoints is None:
            raise TrainingError(
                "the targets carry no joints, which this model learns. Give a data set with joints."
            )
        truth = targets.keypoints[:, 0]  # (B, J, 3): a crop is of one person
        map_hw = (raw.heatmaps[0].shape[-2], raw.heatmaps[0].shape[-1])
        wanted = draw_joints(truth[..., :2] / STRIDE, map_hw, self.spec.sigma)
        is_labelled = truth[..., 2] > 0
        count = is_labelled.sum().clamp(min=1)
        losses = {}
        for stack, heatmaps in enumerate(raw.heatmaps):
            error = (heatmaps - wanted).square().sum((2, 3))  # (B, J)
            losses[f"stack_{stack + 1}"] = torch.where(is_labelled, error, 0.0).sum() / count
        return losses

    def candidates(self, raw: HourglassRaw) -> Tensor:
        """The last stack's joints: keypoints_xyc (B, J, 3), pixels of the crop, c 0..1."""
        x, y, confidence = find_joints(raw.heatmaps[-1]).unbind(-1)
        return torch.stack((x * STRIDE, y * STRIDE, confidence), -1)


VARIANTS: dict[str, Variant] = {
    "small": Variant(
        HourglassSpec(
            variant="small", size_hw=(128, 96), **PERSON_JOINTS.fields(), channels=64, depth=3
        ),
        Recipe(
            steps=1200, batch=32, lr=2e-3, warm_up=100, scale=(0.8, 1.25), validate_every=300,
            validate_images=200,
        ),
    ),
    "hg8": Variant(  # the paper's
        HourglassSpec(
            variant="hg8", size_hw=(256, 256), **PERSON_JOINTS.fields(), num_stacks=8
        ),
        Recipe(
            steps=100_000, batch=16, lr=2.5e-4, weight_decay=1e-4, warm_up=1000,
            scale=(0.75, 1.25), validate_every=5000, validate_images=2000,
        ),
    ),
}  # fmt: skip
