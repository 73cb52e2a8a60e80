"""RetinaFace: faces with five landmarks in one stage (Deng et al., arXiv:1905.00641).

A light pyramid with context modules over MobileNet x0.25 or any timm backbone, and the smaller
slim and RFB, whose heads read the trunk itself. Square anchors carry score, box and landmarks; the
spec expresses the published PyTorch networks to the number, and our small one for the street.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.data.joints import FACE_LANDMARKS
from training.errors import TrainingError
from training.layers.anchors import make_anchors
from training.layers.backbone import make_backbone
from training.layers.box_coding import clip_boxes, decode_boxes, encode_boxes
from training.layers.context import ContextModule, FacePyramid
from training.layers.face_trunks import QuarterMobileNet, SlimTrunk, separable_plain
from training.layers.matching import IGNORED, ignore_crowds, match_by_atss, match_by_iou
from training.layers.point_coding import decode_points, encode_points
from training.layers.towers import to_rows
from training.losses.boxes import giou_loss, smooth_l1_loss
from training.losses.focal import quality_focal_loss
from training.losses.ohem import ohem_loss
from training.models.base import Candidates, KeypointSpec, Losses, Model, Recipe, Targets, Variant

NEGATIVES_PER_POSITIVE = 7
LANDMARK_UNIT = 0.1  # of the anchor's size: errors below it count by their square, as published
PRIOR = 0.01  # probability of a face at every anchor before training, of "sigmoid"


@dataclass(frozen=True, kw_only=True)
class RetinaFaceSpec(KeypointSpec):
    """The fields of `KeypointSpec`, and:

    Attributes:
        backbone: "mobilenet025", "slim", "rfb", or any timm name.
        fpn_channels: of pyramid and context modules; 0 reads the trunk's levels by separable
            convolutions, as slim and RFB do.
        leaky_slope: of the leaky ReLUs of pyramid, context modules and "mobilenet025".
        strides: of the levels; sides: of the square anchors of each level, pixels.
        variances: factors of a shift (landmarks' too) and of a log size.
        scores: "softmax" with background first and hard negatives, or "sigmoid" that learns the
            IoU of its box.
        matching: "iou" with one threshold, `positive_iou`, or "atss".
        box_loss: "smooth_l1" or "giou"; box_weight, landmark_weight: in the sum.
        has_clipped_boxes: boxes end at the input's edges before they enter suppression.
    """

    backbone: str = "mobilenet025"
    fpn_channels: int = 64
    leaky_slope: float = 0.1
    strides: tuple[int, ...] = (8, 16, 32)
    sides: tuple[tuple[float, ...], ...] = ((16, 32), (64, 128), (256, 512))
    variances: tuple[float, float] = (0.1, 0.2)
    scores: str = "softmax"
    matching: str = "iou"
    positive_iou: float = 0.35
    box_loss: str = "smooth_l1"
    box_weight: float = 2.0
    landmark_weight: float = 1.0
    has_clipped_boxes: bool = False


class RetinaFaceRaw(NamedTuple):
    """What the network gives.

    Attributes:
        logits: (B, A, K + 1) with background first, or (B, A, K) where scores are sigmoids.
        deltas: (B, A, 4); landmarks: (B, A, 2 * J) as (x, y) of each; both in units of the
            anchor's size over the variances.
        anchors: (A, 4) xyxy, pixels of the network input.
        level_counts: anchors of each level.
        size_hw: of the images, pixels.
    """

    logits: Tensor
    deltas: Tensor
    landmarks: Tensor
    anchors: Tensor
    level_counts: list[int]
    size_hw: tuple[int, int]


class RetinaFace(Model):
    """See the module's docstring."""

    task = "keypoints"
    spec_type = RetinaFaceSpec

    def __init__(self, spec: RetinaFaceSpec, *, is_backbone_pretrained: bool = False) -> None:
        super().__init__(spec)
        self.spec: RetinaFaceSpec = spec
        if not spec.joints or len(spec.sides) != len(spec.strides):
            raise TrainingError(
                f"the spec has {len(spec.joints)} landmarks, {len(spec.strides)} strides and "
                f"anchors of {len(spec.sides)} levels; expected at least one landmark, and anchors "
                "for every stride. Correct the spec, or give data with landmarks."
            )
        self.backbone, channels = _make_trunk(spec, is_backbone_pretrained)
        width, slope = spec.fpn_channels, spec.leaky_slope
        self.pyramid = None
        self.contexts = nn.ModuleList()
        if width:
            self.pyramid = FacePyramid(channels, width, slope)
            self.contexts.extend(ContextModule(width, slope) for _ in channels)
            channels = [width] * len(channels)
        self.num_scores = len(spec.classes) + (spec.scores == "softmax")
        self.scores = self._make_heads(channels, self.num_scores)
        self.boxes = self._make_heads(channels, 4)
        self.landmarks = self._make_heads(channels, 2 * len(spec.joints))
        if spec.scores == "sigmoid":
            for head in self.scores:
                nn.init.constant_(_last_conv(head).bias, -math.log((1 - PRIOR) / PRIOR))
        self._anchors: dict[tuple[tuple[int, int], ...], Tensor] = {}

    def _make_heads(self, channels: list[int], rows: int) -> nn.ModuleList:
        heads: list[nn.Module] = []
        last = len(channels) - 1
        for level, (width, sides) in enumerate(zip(channels, self.spec.sides, strict=True)):
            count = rows * len(sides)
            if self.pyramid is not None:
                heads.append(nn.Conv2d(width, count, 1))
            elif level < last:
                heads.append(separable_plain(width, count))
            else:  # the coarsest level has few cells: a full convolution costs little there
                heads.append(nn.Conv2d(width, count, 3, padding=1))
        return nn.ModuleList(heads)

    def forward(self, images: Tensor) -> RetinaFaceRaw:
        """Run the network on (B, 3, H, W) float32, normalised."""
        levels = self.backbone(images)[-len(self.spec.strides) :]
        if self.pyramid is not None:
            merged = self.pyramid(levels)
            levels = [layer(m) for layer, m in zip(self.contexts, merged, strict=True)]

        def rows(heads: nn.ModuleList, width: int) -> Tensor:
            made = [to_rows(h(level), width) for h, level in zip(heads, levels, strict=True)]
            return torch.cat(made, 1).float()

        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        return RetinaFaceRaw(
            rows(self.scores, self.num_scores),
            rows(self.boxes, 4),
            rows(self.landmarks, 2 * len(self.spec.joints)),
            self._anchors_of(sizes).to(images.device),
            [h * w * len(s) for (h, w), s in zip(sizes, self.spec.sides, strict=True)],
            (images.shape[-2], images.shape[-1]),
        )

    def _anchors_of(self, sizes: list[tuple[int, int]]) -> Tensor:
        key = tuple((int(h), int(w)) for h, w in sizes)
        if key not in self._anchors:
            spec = self.spec
            levels = [
                make_anchors(
                    [size],
                    (stride,),
                    base_scale=1 / stride,
                    octaves=tuple(float(side) for side in sides),
                    ratios=(1.0,),
                )
                for size, stride, sides in zip(key, spec.strides, spec.sides, strict=True)
            ]
            self._anchors[key] = torch.cat(levels)
        return self._anchors[key]

    def loss(self, raw: RetinaFaceRaw, targets: Targets) -> Losses:
        """Losses "scores", "boxes" and "landmarks" (eq. 1 without dense regression).

        The first two are divided by the number of positive anchors, the third by those among
        them whose face has landmarks; a landmark that is not labelled counts nothing.
        """
        if targets.keypoints is None:
            raise TrainingError(
                "the targets carry no landmarks, which this model learns. Give a data set with "
                "landmarks."
            )
        zero = raw.logits.new_zeros(())
        score_loss, box_loss, landmark_loss = zero, zero, zero
        num_positive, num_marked = 0, 0
        for image in range(len(raw.logits)):
            match, used = self._match(raw, targets, image)
            positive = match >= 0
            chosen = used[match[positive]]
            num_positive += len(chosen)
            rows, quality = self._box_loss(
                raw.deltas[image][positive],
                raw.anchors[positive],
                targets.boxes_xyxy[image][chosen],
            )
            box_loss = box_loss + rows.sum()
            classes = targets.classes[image][chosen]
            score_loss = score_loss + self._score_loss(raw.logits[image], match, classes, quality)
            truth = targets.keypoints[image][chosen]  # (P, J, 3)
            is_labelled = truth[..., 2:] > 0
            num_marked += int(is_labelled.any(1).sum())
            offsets = raw.landmarks[image][positive].unflatten(1, (-1, 2)) * self.spec.variances[0]
            wanted = encode_points(truth[..., :2], raw.anchors[positive], 1.0)
            error = functional.smooth_l1_loss(
                offsets / LANDMARK_UNIT, wanted / LANDMARK_UNIT, reduction="none"
            )
            landmark_loss = landmark_loss + torch.where(is_labelled, error, 0.0).sum()
        scale = 1 / max(num_positive, 1)
        return {
            "scores": score_loss * scale,
            "boxes": box_loss * (scale * self.spec.box_weight),
            "landmarks": landmark_loss * (self.spec.landmark_weight / max(num_marked, 1)),
        }

    def _match(self, raw: RetinaFaceRaw, targets: Targets, image: int) -> tuple[Tensor, Tensor]:
        """(A,) face of each anchor, NEGATIVE or IGNORED, and (M,) rows that the faces are of."""
        boxes, is_real = targets.boxes_xyxy[image], targets.classes[image] >= 0
        used = (is_real & ~targets.is_crowd[image]).nonzero()[:, 0]
        if self.spec.matching == "atss":
            match = match_by_atss(raw.anchors, boxes[used], raw.level_counts)
        else:
            threshold = self.spec.positive_iou
            match = match_by_iou(raw.anchors, boxes[used], positive=threshold, negative=threshold)
        crowds = boxes[is_real & targets.is_crowd[image]]
        return ignore_crowds(match, raw.anchors, crowds), used

    def _score_loss(
        self, logits: Tensor, match: Tensor, classes: Tensor, quality: Tensor
    ) -> Tensor:
        positive, is_used = match >= 0, match != IGNORED
        if self.spec.scores == "softmax":
            labels = is_used.long() - 1  # 0 for background, -1 for what is left out
            labels[positive] = classes + 1
            return ohem_loss(logits, labels, ratio=NEGATIVES_PER_POSITIVE)
        wanted = torch.zeros_like(logits)
        wanted[positive, classes] = quality
        return quality_focal_loss(logits[is_used], wanted[is_used])

    def _box_loss(self, deltas: Tensor, anchors: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        giou, quality = giou_loss(self._decode(deltas, anchors), wanted)
        if self.spec.box_loss == "giou":
            return giou, quality
        coded = encode_boxes(wanted, anchors) / self._variances(deltas)
        return smooth_l1_loss(deltas, coded, beta=1.0), quality

    def _decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        return decode_boxes(deltas * self._variances(deltas), anchors)

    def _variances(self, deltas: Tensor) -> Tensor:
        shift, size = self.spec.variances
        return deltas.new_tensor((shift, shift, size, size))

    def candidates(self, raw: RetinaFaceRaw) -> Candidates:
        """Rows of all anchors; a landmark is as sure as the face that it belongs to."""
        spec = self.spec
        is_softmax = spec.scores == "softmax"
        scores = functional.softmax(raw.logits, -1)[..., 1:] if is_softmax else raw.logits

        def gathered(rows: Tensor, indices: Tensor) -> Tensor:
            return torch.gather(rows, 1, indices.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))

        def decode(indices: Tensor) -> Tensor:
            boxes = self._decode(gathered(raw.deltas, indices), raw.anchors[indices])
            return clip_boxes(boxes, raw.size_hw) if spec.has_clipped_boxes else boxes

        def decode_keypoints(indices: Tensor) -> Tensor:
            coded = gathered(raw.landmarks, indices).unflatten(2, (len(spec.joints), 2))
            points = decode_points(coded, raw.anchors[indices], spec.variances[0])
            chosen = gathered(scores, indices).amax(-1)  # (B, T)
            sure = chosen if is_softmax else torch.sigmoid(chosen)
            sure = sure[..., None, None].expand(*points.shape[:-1], 1)
            return torch.cat((points, sure), -1)

        activation = "none" if is_softmax else "sigmoid"
        return Candidates(scores, decode, {}, activation, decode_keypoints=decode_keypoints)


def _make_trunk(spec: RetinaFaceSpec, is_pretrained: bool) -> tuple[nn.Module, list[int]]:
    """The trunk and the channels of its levels."""
    own = {"mobilenet025": QuarterMobileNet, "slim": SlimTrunk, "rfb": SlimTrunk}
    if spec.backbone not in own:
        num_levels = len([s for s in (2, 4, 8, 16, 32) if s >= spec.strides[0]])
        backbone = make_backbone(
            spec.backbone, spec.backbone_args, num_levels=num_levels, is_pretrained=is_pretrained
        )
        channels = list(backbone.feature_info.channels())
    elif spec.backbone == "mobilenet025":
        backbone = QuarterMobileNet(spec.leaky_slope)
        channels = list(QuarterMobileNet.channels)
    else:
        backbone = SlimTrunk(has_receptive_field=spec.backbone == "rfb")
        channels = list(SlimTrunk.channels)
    strides = tuple(spec.strides[0] * 2**level for level in range(len(channels)))
    if strides != spec.strides:
        raise TrainingError(
            f"backbone {spec.backbone!r} gives strides {strides}; the spec has {spec.strides}. "
            "Correct the spec."
        )
    return backbone, channels


def _last_conv(head: nn.Module) -> nn.Conv2d:
    return [module for module in head.modules() if isinstance(module, nn.Conv2d)][-1]


# What the published PyTorch networks share; their input is BGR less its mean, not divided.
_PUBLISHED: dict[str, Any] = FACE_LANDMARKS.fields() | {
    "size_hw": (640, 640),
    "mean": (123.0, 117.0, 104.0),
    "std": (1.0, 1.0, 1.0),
    "classes": ("face",),
    "category_ids": (1,),
    "num_candidates": 1000,
    "score_threshold": 0.5,
    "iou_threshold": 0.4,
}
_LIGHT = {  # slim and RFB
    "fpn_channels": 0,
    "leaky_slope": 0.0,
    "strides": (8, 16, 32, 64),
    "sides": ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256)),
}
_PUBLISHED_RECIPE = Recipe(
    steps=100_000, batch=32, lr=1e-3, weight_decay=5e-4, scale=(0.5, 2.0), validate_every=5000,
    validate_images=3000,
)  # fmt: skip


def _published(name: str, **changes: Any) -> Variant:
    values = {"backbone": name} | _PUBLISHED | changes
    return Variant(RetinaFaceSpec(variant=name, **values), _PUBLISHED_RECIPE)


VARIANTS: dict[str, Variant] = {
    "small": Variant(
        RetinaFaceSpec(
            variant="small",
            backbone="resnet18",
            backbone_args=(("channels", (32, 48, 96, 160)),),
            **FACE_LANDMARKS.fields(),
            size_hw=(432, 768),  # the smallest faces have 8 px there
            fpn_channels=32,
            strides=(4, 8, 16, 32),
            sides=((10,), (20,), (40,), (80,)),
            variances=(1.0, 1.0),
            scores="sigmoid",
            matching="atss",
            box_loss="giou",
            landmark_weight=0.25,
            has_clipped_boxes=True,
        ),
        Recipe(
            steps=4500,
            batch=16,
            lr=1.5e-3,
            warm_up=100,
            scale=(0.9, 1.4),
            view_hw=(192, 288),  # faces are few and small: most of a whole frame has none
            focus=0.8,
            validate_every=1000,
            validate_images=60,
        ),
    ),  # fmt: skip
    "mobilenet025": _published("mobilenet025"),
    "slim": _published("slim", **_LIGHT),
    "rfb": _published("rfb", **_LIGHT),
    "resnet50": _published("resnet50", fpn_channels=256, leaky_slope=0.0),
}
