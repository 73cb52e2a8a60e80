"""RetinaNet: one-stage detection with focal loss (Lin et al., arXiv:1708.02002).

Any timm backbone, FPN P3 to P7, two towers of shared convolutions. Anchors are matched by IoU or
by ATSS, boxes learn smooth L1 or GIoU, scores learn hard labels (focal loss) or the IoU that the
box reaches (quality focal loss).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.layers.anchors import make_anchors
from training.layers.backbone import make_backbone
from training.layers.box_coding import clip_boxes, decode_boxes, encode_boxes
from training.layers.fpn import FeaturePyramid
from training.layers.matching import IGNORED, NEGATIVE, match_objects
from training.layers.towers import Tower, to_rows
from training.losses.boxes import giou_loss, smooth_l1_loss
from training.losses.focal import focal_loss, quality_focal_loss
from training.models.base import Candidates, Losses, Model, Recipe, Spec, Targets, Variant

STRIDES = (8, 16, 32, 64, 128)
PRIOR = 0.01  # probability of an object at every anchor before training (section 4.1)


@dataclass(frozen=True, kw_only=True)
class RetinaNetSpec(Spec):
    """The fields of `Spec`, and:

    Attributes:
        fpn_channels: of the pyramid and the towers.
        head_convs: convolutions of each tower.
        norm: of pyramid and towers: "none", "batch" (own statistics per level) or "group".
        anchor_scale: side of an anchor, in strides; octaves and ratios (height over width) vary it.
        matching: "iou" or "atss".
        box_loss: "smooth_l1" or "giou"; box_weight: its weight in the sum.
        has_soft_labels: scores learn the IoU of their box in place of 1.
    """

    fpn_channels: int = 256
    head_convs: int = 4
    norm: str = "none"
    anchor_scale: float = 4.0
    octaves: tuple[float, ...] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    matching: str = "iou"
    box_loss: str = "smooth_l1"
    box_weight: float = 1.0
    has_soft_labels: bool = False


class RetinaNetRaw(NamedTuple):
    """What the network gives.

    Attributes:
        logits: (B, A, K). deltas: (B, A, 4), units of the anchor's size.
        anchors: (A, 4) xyxy, pixels of the network input.
        level_counts: anchors of each level.
        size_hw: of the images, pixels.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    level_counts: list[int]
    size_hw: tuple[int, int]


class RetinaNet(Model):
    """See the module's docstring."""

    task = "detection"
    spec_type = RetinaNetSpec

    def __init__(self, spec: RetinaNetSpec, *, is_backbone_pretrained: bool = False) -> None:
        super().__init__(spec)
        self.spec: RetinaNetSpec = spec
        self.backbone = make_backbone(
            spec.backbone, spec.backbone_args, is_pretrained=is_backbone_pretrained
        )
        info = self.backbone.feature_info
        self.pyramid = FeaturePyramid(info.channels(), spec.fpn_channels, spec.norm)
        self.num_shapes = len(spec.octaves) * len(spec.ratios)
        tower = (spec.fpn_channels, spec.head_convs)
        self.scores = Tower(*tower, self.num_shapes * len(spec.classes), spec.norm)
        self.boxes = Tower(*tower, self.num_shapes * 4, spec.norm)
        nn.init.constant_(self.scores.predict.bias, -math.log((1 - PRIOR) / PRIOR))
        self._anchors: dict[tuple[tuple[int, int], ...], Tensor] = {}

    def forward(self, images: Tensor) -> RetinaNetRaw:
        """Run the network on (B, 3, H, W) float32, normalised."""
        pyramid = self.pyramid(self.backbone(images))
        logits = [to_rows(self.scores(p, i), len(self.spec.classes)) for i, p in enumerate(pyramid)]
        deltas = [to_rows(self.boxes(p, i), 4) for i, p in enumerate(pyramid)]
        sizes = [(p.shape[-2], p.shape[-1]) for p in pyramid]
        return RetinaNetRaw(
            torch.cat(logits, 1).float(),
            torch.cat(deltas, 1).float(),
            self._anchors_of(sizes).to(images.device),
            [h * w * self.num_shapes for h, w in sizes],
            (images.shape[-2], images.shape[-1]),
        )

    def _anchors_of(self, sizes: list[tuple[int, int]]) -> Tensor:
        key = tuple((int(h), int(w)) for h, w in sizes)
        if key not in self._anchors:
            spec = self.spec
            self._anchors[key] = make_anchors(
                list(key),
                STRIDES,
                base_scale=spec.anchor_scale,
                octaves=spec.octaves,
                ratios=spec.ratios,
            )
        return self._anchors[key]

    def loss(self, raw: RetinaNetRaw, targets: Targets) -> Losses:
        """Losses "scores" and "boxes", each divided by the number of positive anchors."""
        score_loss = raw.logits.new_zeros(())
        box_loss = raw.logits.new_zeros(())
        num_positive = 0
        for image in range(len(raw.logits)):
            match, boxes, classes = self._match(raw, targets, image)
            positive = match >= 0
            num_positive += int(positive.sum())
            row_loss, quality = self._box_loss(raw.deltas[image], raw.anchors, match, boxes)
            box_loss = box_loss + row_loss.sum()
            labels = torch.zeros_like(raw.logits[image])
            value = quality if self.spec.has_soft_labels else torch.ones_like(quality)
            labels[positive, classes[match[positive]]] = value
            used = match != IGNORED
            entropy = quality_focal_loss if self.spec.has_soft_labels else focal_loss
            score_loss = score_loss + entropy(raw.logits[image][used], labels[used])
        scale = 1 / max(num_positive, 1)
        return {"scores": score_loss * scale, "boxes": box_loss * (scale * self.spec.box_weight)}

    def _match(
        self, raw: RetinaNetRaw, targets: Targets, image: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        match, used = match_objects(
            raw.anchors,
            targets.boxes_xyxy[image],
            targets.classes[image],
            targets.is_crowd[image],
            raw.level_counts,
            self.spec.matching,
        )
        return match, targets.boxes_xyxy[image][used], targets.classes[image][used]

    def _box_loss(
        self, deltas: Tensor, anchors: Tensor, match: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        positive = match > NEGATIVE
        wanted = boxes[match[positive]]
        anchors = anchors[positive]
        giou, quality = giou_loss(decode_boxes(deltas[positive], anchors), wanted)
        if self.spec.box_loss == "giou":
            return giou, quality
        return smooth_l1_loss(deltas[positive], encode_boxes(wanted, anchors)), quality

    def candidates(self, raw: RetinaNetRaw) -> Candidates:
        """Logits of all anchors, and a decode that reads only the selected ones."""

        def decode(indices: Tensor) -> Tensor:
            rows = indices.unsqueeze(-1).expand(-1, -1, 4)  # (B, T, 4)
            deltas = torch.gather(raw.deltas, 1, rows)
            return clip_boxes(decode_boxes(deltas, raw.anchors[indices]), raw.size_hw)

        return Candidates(raw.logits, decode, {})


VARIANTS: dict[str, Variant] = {
    "small": Variant(
        RetinaNetSpec(
            variant="small",
            backbone="resnet18",
            backbone_args=(("channels", (32, 48, 96, 160)),),
            fpn_channels=64,
            head_convs=3,
            norm="batch",
            anchor_scale=3.0,
            octaves=(1.0,),
            ratios=(1.0,),
            matching="atss",
            box_loss="giou",
            box_weight=2.0,
            has_soft_labels=True,
        ),
        Recipe(steps=7000, lr=1.5e-3, validate_every=1000),
    ),
    "r50": Variant(
        RetinaNetSpec(
            variant="r50",
            size_hw=(384, 640),
            backbone="resnet50",
            num_candidates=1000,
        ),
        Recipe(
            steps=90_000,
            batch=16,
            lr=1e-4,
            weight_decay=1e-4,
            warm_up=1000,
            scale=(0.5, 1.5),
            validate_every=5000,
            validate_images=5000,
            is_backbone_pretrained=True,
        ),
    ),
}
