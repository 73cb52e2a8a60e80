"""YOLACT: instance masks as sums of prototypes (Bolya et al., arXiv:1904.02689).

A one-stage detector over FPN P3 to P7 whose rows carry P coefficients besides box and class, and
P prototype masks of the whole image. The spec expresses the published networks to the number
(one shared convolution, softmax with background, square anchors spread over a stretched image),
YOLACT++ among them (arXiv:1912.06218: deformable convolutions, more anchors, masks re-scored),
and our small one, which begins where our RetinaNet ends: the same names, the same shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.errors import TrainingError
from training.layers.anchors import AnchorCache, level_sizes
from training.layers.backbone import make_backbone
from training.layers.box_coding import clip_boxes, decode_boxes, encode_boxes
from training.layers.fpn import FeaturePyramid
from training.layers.matching import IGNORED, match_objects
from training.layers.prototypes import ProtoNet
from training.layers.rescoring import MaskRescoring, check_mask_size
from training.layers.towers import SharedConvs, Tower, to_rows
from training.losses.boxes import giou_loss, smooth_l1_loss
from training.losses.focal import focal_loss, quality_focal_loss
from training.losses.masks import judge_masks, mask_loss, semantic_loss, shrink_masks
from training.losses.ohem import ohem_loss
from training.models.base import Candidates, Losses, Model, Recipe, Spec, Targets, Variant

STRIDES = (8, 16, 32, 64, 128)
PRIOR = 0.01  # probability of an object at every anchor before training, of "sigmoid"


@dataclass(frozen=True, kw_only=True)
class YolactSpec(Spec):
    """The fields of `Spec`, and:

    Attributes:
        fpn_channels: of the pyramid and the heads.
        fpn_upsample, has_fpn_relu, has_p7_relu: see `FeaturePyramid`.
        norm: of pyramid, heads and prototypes: "none", "batch" (own statistics per level of the
            heads) or "group".
        shared_convs: convolutions before the three heads part; head_convs: of each after that.
        proto_coarse, proto_fine: channels of the prototypes' convolutions, before and after they
            double their size; num_prototypes: P.
        has_proto_skip: the backbone's features of stride 4 enter the prototypes;
            has_proto_detail: those of stride 2 as well, and the prototypes have that stride.
        max_mask_rows: positive anchors of an image that learn masks.
        scores: "sigmoid" of each class, or "softmax" with background first.
        anchor_scale: side of an anchor, in strides, or one of each level's; octaves and ratios
            (height over width) vary it.
        has_square_anchors, has_spread_anchors: `is_square` and `spread_hw` of `make_anchors`.
        box_variances: factors of a box's shift and log size.
        has_clipped_boxes: boxes end at the input's edges before they enter suppression.
        matching: "iou" or "atss".
        box_loss: "smooth_l1" or "giou"; box_weight, mask_weight, semantic_weight: in the sum.
        has_soft_labels: sigmoid scores learn the IoU of their box in place of 1.
        rescore_convs: channels of the convolutions that tell how good a mask is; none without
            re-scoring. rescore_weight: of what they learn.
    """

    fpn_channels: int = 256
    fpn_upsample: str = "nearest"
    has_fpn_relu: bool = False
    has_p7_relu: bool = True
    norm: str = "none"
    shared_convs: int = 0
    head_convs: int = 3
    proto_coarse: tuple[int, ...] = (256, 256, 256)
    proto_fine: tuple[int, ...] = (256,)
    num_prototypes: int = 32
    has_proto_skip: bool = False
    has_proto_detail: bool = False
    max_mask_rows: int = 100
    scores: str = "sigmoid"
    anchor_scale: float | tuple[float, ...] = 3.0
    octaves: tuple[float, ...] = (1.0,)
    ratios: tuple[float, ...] = (1.0,)
    has_square_anchors: bool = False
    has_spread_anchors: bool = False
    box_variances: tuple[float, float] = (1.0, 1.0)
    has_clipped_boxes: bool = True
    matching: str = "atss"
    box_loss: str = "giou"
    box_weight: float = 2.0
    mask_weight: float = 6.125
    semantic_weight: float = 1.0
    has_soft_labels: bool = True
    rescore_convs: tuple[int, ...] = ()
    rescore_weight: float = 25.0


class YolactRaw(NamedTuple):
    """What the network gives.

    Attributes:
        logits: (B, A, K), or (B, A, K + 1) with background first where scores are a softmax.
        deltas: (B, A, 4), units of the anchor's size over the variances.
        coefficients: (B, A, P), -1..1.
        prototypes: (B, P, h, w), 0 and above.
        semantic: (B, K, h / 2, w / 2) logits; only the loss reads them.
        anchors: (A, 4) xyxy, pixels of the network input.
        level_counts: anchors of each level.
        size_hw: of the images, pixels.
    """

    logits: Tensor
    deltas: Tensor
    coefficients: Tensor
    prototypes: Tensor
    semantic: Tensor
    anchors: Tensor
    level_counts: list[int]
    size_hw: tuple[int, int]


class Yolact(Model):
    """See the module's docstring."""

    task = "instance"
    spec_type = YolactSpec

    def __init__(self, spec: YolactSpec, *, is_backbone_pretrained: bool = False) -> None:
        super().__init__(spec)
        self.spec: YolactSpec = spec
        self.backbone = make_backbone(
            spec.backbone,
            spec.backbone_args,
            num_levels=3 + spec.has_proto_skip + spec.has_proto_detail,
            is_pretrained=is_backbone_pretrained,
        )
        channels = self.backbone.feature_info.channels()
        width = spec.fpn_channels
        self.pyramid = FeaturePyramid(
            channels[-3:],
            width,
            spec.norm,
            upsample=spec.fpn_upsample,
            has_output_relu=spec.has_fpn_relu,
            has_p7_relu=spec.has_p7_relu,
        )
        self.prototypes = ProtoNet(
            width,
            spec.proto_coarse,
            spec.proto_fine,
            spec.num_prototypes,
            norm=spec.norm,
            channels_skip=channels[-4] if spec.has_proto_skip else 0,
            channels_detail=channels[-5] if spec.has_proto_detail else 0,
        )
        self.num_shapes = len(spec.octaves) * len(spec.ratios)
        self.num_scores = len(spec.classes) + (spec.scores == "softmax")
        self.shared = SharedConvs(width, spec.shared_convs, spec.norm)
        tower = (width, spec.head_convs)
        self.scores = Tower(*tower, self.num_shapes * self.num_scores, spec.norm)
        self.boxes = Tower(*tower, self.num_shapes * 4, spec.norm)
        self.coefficients = Tower(*tower, self.num_shapes * spec.num_prototypes, spec.norm)
        self.semantic = nn.Conv2d(width, len(spec.classes), 1)
        self.rescoring = None
        if spec.rescore_convs:
            self.check_size()
            self.rescoring = MaskRescoring(spec.rescore_convs, len(spec.classes))
        nn.init.normal_(self.coefficients.predict.weight, std=0.01)  # masks begin undecided
        if spec.scores == "sigmoid":
            nn.init.constant_(self.scores.predict.bias, -math.log((1 - PRIOR) / PRIOR))
        self._anchors = AnchorCache(
            STRIDES,
            is_spread=spec.has_spread_anchors,
            base_scale=spec.anchor_scale,
            octaves=spec.octaves,
            ratios=spec.ratios,
            is_square=spec.has_square_anchors,
        )

    def check_size(self) -> None:
        if self.spec.rescore_convs:
            stride = 2 if self.spec.has_proto_detail else 4
            mask_hw = level_sizes(self.spec.size_hw, (stride,))[0]
            check_mask_size(mask_hw, len(self.spec.rescore_convs))

    @property
    def optional_outputs(self) -> tuple[str, ...]:
        return ("mask_scores",) if self.rescoring is not None else ()

    def forward(self, images: Tensor) -> YolactRaw:
        """Run the network on (B, 3, H, W) float32, normalised."""
        features = self.backbone(images)
        pyramid = self.pyramid(features[-3:])
        prototypes = self.prototypes(pyramid[0], *self.finer_features(features))
        made = (self.run_heads(pyramid), prototypes, self.semantic(pyramid[0]))
        return self.assemble(*made, (images.shape[-2], images.shape[-1]))

    def finer_features(self, features: list[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """What the prototypes read beside P3: features of stride 4 and of stride 2, if at all."""
        finer = features[-4] if self.spec.has_proto_skip else None
        return finer, features[-5] if self.spec.has_proto_detail else None

    def run_heads(self, pyramid: list[Tensor]) -> list[list[Tensor]]:
        """(B, S * width, h, w) of each level, from each head: scores, boxes, coefficients."""
        shared = [self.shared(p, level) for level, p in enumerate(pyramid)]
        heads = (self.scores, self.boxes, self.coefficients)
        return [[head(p, level) for level, p in enumerate(shared)] for head in heads]

    def assemble(self, maps: Any, prototypes: Tensor, semantic: Tensor, size_hw: Any) -> YolactRaw:
        """What `run_heads` gave, as rows, with the maps of the image; float32."""
        widths = (self.num_scores, 4, self.spec.num_prototypes)
        logits, deltas, coefficients = (
            torch.cat([to_rows(level, width) for level in levels], 1).float()
            for levels, width in zip(maps, widths, strict=True)
        )
        sizes = [(level.shape[-2], level.shape[-1]) for level in maps[0]]
        anchors = self._anchors(sizes, size_hw).to(logits.device)
        counts = [h * w * self.num_shapes for h, w in sizes]
        whole = (prototypes.float(), semantic.float(), anchors, counts, size_hw)
        return YolactRaw(logits, deltas, coefficients.tanh(), *whole)

    def loss(self, raw: YolactRaw, targets: Targets) -> Losses:
        """Losses "scores", "boxes", "masks", "semantic" and "rescoring", times their weights.

        "semantic" is divided by the batch, the others by the number of positive anchors.
        """
        if targets.masks is None:
            raise TrainingError(
                "the targets carry no masks, which this model learns. Give a data set with masks."
            )
        spec, num_positive = self.spec, 0
        weights = {"scores": 1.0, "boxes": spec.box_weight, "masks": spec.mask_weight}
        weights["semantic"] = spec.semantic_weight
        if self.rescoring is not None:
            weights["rescoring"] = spec.rescore_weight
        sums = {name: raw.logits.new_zeros(()) for name in weights}
        for image in range(len(raw.logits)):
            boxes, classes = targets.boxes_xyxy[image], targets.classes[image]
            objects = (boxes, classes, targets.is_crowd[image])
            match, used = match_objects(raw.anchors, *objects, raw.level_counts, spec.matching)
            num_positive += int((match >= 0).sum())
            boxes, classes, masks = boxes[used], classes[used], targets.masks[image][used]
            for name, value in self._image_losses(raw, image, match, boxes, classes, masks).items():
                sums[name] = sums[name] + value
        counts = dict.fromkeys(weights, max(num_positive, 1)) | {"semantic": len(raw.logits)}
        return {name: sums[name] * (weights[name] / counts[name]) for name in weights}

    def _image_losses(
        self,
        raw: YolactRaw,
        image: int,
        match: Tensor,
        boxes: Tensor,
        classes: Tensor,
        masks: Tensor,
    ) -> Losses:
        positive = match >= 0
        chosen = match[positive]
        box_loss, quality = self._box_loss(
            raw.deltas[image][positive], raw.anchors[positive], boxes[chosen]
        )
        prototypes = raw.prototypes[image]
        small, coarse = (
            shrink_masks(masks, (m.shape[-2], m.shape[-1])) for m in (prototypes, raw.semantic)
        )
        made = (raw.coefficients[image][positive], prototypes, chosen, boxes, small, raw.size_hw)
        losses = {
            "scores": self._score_loss(raw.logits[image], match, classes, quality),
            "boxes": box_loss.sum(),
            "masks": mask_loss(*made, most=self.spec.max_mask_rows),
            "semantic": semantic_loss(raw.semantic[image], classes, coarse),
        }
        if self.rescoring is not None:
            soft, truth, objects = judge_masks(*made)
            guess = self.rescoring(soft).gather(1, classes[objects][:, None])[:, 0]
            losses["rescoring"] = functional.smooth_l1_loss(guess, truth, reduction="sum")
        return losses

    def _score_loss(
        self, logits: Tensor, match: Tensor, classes: Tensor, quality: Tensor
    ) -> Tensor:
        positive, used = match >= 0, match != IGNORED
        if self.spec.scores == "softmax":
            numbers = used.long() - 1  # 0 for background, -1 for what is left out
            numbers[positive] = classes[match[positive]] + 1
            return ohem_loss(logits, numbers)
        labels = torch.zeros_like(logits)
        value = quality if self.spec.has_soft_labels else torch.ones_like(quality)
        labels[positive, classes[match[positive]]] = value
        entropy = quality_focal_loss if self.spec.has_soft_labels else focal_loss
        return entropy(logits[used], labels[used])

    def _box_loss(self, deltas: Tensor, anchors: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        giou, quality = giou_loss(self._decode(deltas, anchors), wanted)
        if self.spec.box_loss == "giou":
            return giou, quality
        targets = encode_boxes(wanted, anchors) / self._variances(deltas)
        return smooth_l1_loss(deltas, targets, beta=1.0), quality

    def _decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        if self.spec.box_variances != (1.0, 1.0):
            deltas = deltas * self._variances(deltas)
        return decode_boxes(deltas, anchors)

    def _variances(self, deltas: Tensor) -> Tensor:
        shift, size = self.spec.box_variances
        return deltas.new_tensor((shift, shift, size, size))

    def candidates(self, raw: YolactRaw) -> Candidates:
        """Rows of all anchors with their coefficients, and the prototypes of the image."""

        def decode(indices: Tensor) -> Tensor:
            rows = indices.unsqueeze(-1).expand(-1, -1, 4)  # (B, T, 4)
            deltas = torch.gather(raw.deltas, 1, rows)
            boxes = self._decode(deltas, raw.anchors[indices])
            return clip_boxes(boxes, raw.size_hw) if self.spec.has_clipped_boxes else boxes

        def rescore(masks: Tensor, classes: Tensor) -> Tensor:
            guesses = self.rescoring(masks.flatten(0, 1)).unflatten(0, classes.shape)  # (B, M, K)
            return guesses.gather(2, classes.clamp(min=0).unsqueeze(2)).squeeze(2).clamp(max=1)

        extras, maps = {"coefficients": raw.coefficients}, {"prototypes": raw.prototypes}
        judge = rescore if self.rescoring is not None else None
        if self.spec.scores == "softmax":
            scores = functional.softmax(raw.logits, -1)[..., 1:]
            return Candidates(scores, decode, extras, "none", maps, judge)
        return Candidates(raw.logits, decode, extras, "sigmoid", maps, judge)


# What the published networks share (yolact_base_config and its kin).
_PUBLISHED = {
    "size_hw": (550, 550),
    "resize": "stretch",
    "mean": (123.68, 116.78, 103.94),
    "std": (58.40, 57.12, 57.38),
    "num_candidates": 1000,
    "score_threshold": 0.05,
    "nms": "fast",
    "fpn_upsample": "bilinear",
    "has_fpn_relu": True,
    "has_p7_relu": False,
    "shared_convs": 1,
    "head_convs": 0,
    "scores": "softmax",
    "ratios": (1.0, 0.5, 2.0),
    "has_square_anchors": True,
    "has_spread_anchors": True,
    "box_variances": (0.1, 0.2),
    "has_clipped_boxes": False,
    "matching": "iou",
    "box_loss": "smooth_l1",
    "box_weight": 1.5,
    "has_soft_labels": False,
}
# What YOLACT++ adds to them (yolact_plus_base_config): three sizes of true rectangles a cell.
_PLUS = {
    "octaves": (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
    "ratios": (1.0, 2.0, 0.5),  # published as width over height
    "has_square_anchors": False,
    "rescore_convs": (8, 16, 32, 64, 128),
}
_PUBLISHED_RECIPE = Recipe(
    steps=240_000, lr=1e-4, weight_decay=1e-4, warm_up=1000, scale=(0.5, 1.5),
    validate_every=10_000, validate_images=5000, freeze_batch_norm=6, is_backbone_pretrained=True,
)  # fmt: skip


def _published(name: str, backbone: str, *arguments: tuple[str, Any], **changes: Any) -> Variant:
    values = _PUBLISHED | changes
    spec = YolactSpec(variant=name, backbone=backbone, backbone_args=arguments, **values)
    return Variant(spec, _PUBLISHED_RECIPE)


VARIANTS: dict[str, Variant] = {
    "small": Variant(
        YolactSpec(
            variant="small",
            backbone="resnet18",
            backbone_args=(("channels", (32, 48, 96, 160)),),
            fpn_channels=64,
            norm="batch",
            proto_coarse=(64, 64),
            proto_fine=(32,),
            has_proto_skip=True,
            has_proto_detail=True,
            max_mask_rows=48,
        ),
        Recipe(steps=7000, lr=1.5e-3, validate_every=1000),
    ),
    "resnet50": _published("resnet50", "resnet50"),
    "resnet101": _published("resnet101", "resnet101"),
    "darknet53": _published(
        "darknet53", "darknet53", ("leaky_slope", 0.1), mean=(0.0, 0.0, 0.0), std=(255.0,) * 3
    ),
    "mobilenetv2": _published(  # blocks of 32, 64, 160 channels
        "mobilenetv2", "mobilenetv2_100", ("blocks", (2, 3, 5))
    ),
    "plus_resnet50": _published("plus_resnet50", "resnet50", ("deform_every", 1), **_PLUS),
    "plus_resnet101": _published("plus_resnet101", "resnet101", ("deform_every", 3), **_PLUS),
}
