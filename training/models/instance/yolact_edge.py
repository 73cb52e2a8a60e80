"""YolactEdge: YOLACT on video, most frames on what the last key frame left (arXiv:2012.12259).

Key frames are YOLACT's. As published, a frame between them computes the backbone to C3, warps P4
and P5 along a flow between features, and runs everything behind the pyramid anew. Our small one
moves what the heads and the prototypes gave instead, so that it runs neither backbone nor heads.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.errors import TrainingError
from training.layers.backbone import run_to_level
from training.layers.flow import mean_motion
from training.layers.warped_outputs import NUM_LEVELS, WarpedOutputs
from training.layers.warped_outputs import STATE as OUTPUTS_STATE
from training.layers.warped_pyramid import STATE as PYRAMID_STATE
from training.layers.warped_pyramid import WarpedPyramid
from training.losses.imitation import imitated_maps, imitated_rows, imitated_scores
from training.models.base import Losses, NonkeyRaw, Recipe, State, TemporalModel, Variant
from training.models.instance.yolact import VARIANTS as IMAGE_VARIANTS
from training.models.instance.yolact import Yolact, YolactRaw, YolactSpec

WARPED = ("pyramid", "outputs")


@dataclass(frozen=True, kw_only=True)
class YolactEdgeSpec(YolactSpec):
    """The fields of `YolactSpec`, and:

    Attributes:
        warped: what follows the flow: "pyramid" (P4 and P5, as published) or "outputs" (the maps
            of heads and prototypes).
        has_refinement: see `WarpedPyramid`; the rest is of "outputs".
        encoder: channels of the thin encoder, of strides 2, 4, 8, 16.
        reach: cells of stride 16 that things may move from their key frame.
        flow_hidden: channels of the flow's refinements at strides 16 and 8; 0 is without.
        is_blended: the heads' maps are fetched bilinearly, in place of whole cells.
        mending: channels of what mends warped prototypes at stride 4; 0 is without.
        correction: width and depth of what is added to the warped maps; a width of 0 is without.
        detail: channels that draw the prototypes' detail of stride 2 from the frame itself; 0
            moves the key frame's.
    """

    warped: str = "pyramid"
    has_refinement: bool = True
    encoder: tuple[int, int, int, int] = (16, 24, 48, 64)
    reach: int = 6
    flow_hidden: int = 32
    is_blended: bool = False
    mending: int = 48
    correction: tuple[int, int] = (0, 0)
    detail: int = 16


class YolactEdge(TemporalModel, Yolact):
    """See the module's docstring."""

    spec_type = YolactEdgeSpec
    video_modules = ("video",)

    def __init__(self, spec: YolactEdgeSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.spec: YolactEdgeSpec = spec
        if spec.warped not in WARPED:
            raise TrainingError(
                f"the spec warps {spec.warped!r}; expected one of: {', '.join(WARPED)}. Correct "
                "its field `warped`."
            )
        if self.is_pyramid_warped:
            self.video = WarpedPyramid(
                spec.fpn_channels, spec.fpn_upsample, has_refinement=spec.has_refinement
            )
            return
        scores, boxes = self.num_shapes * self.num_scores, 4 * self.num_shapes
        self.widths = (scores, boxes, self.num_shapes * spec.num_prototypes)
        self.video = WarpedOutputs(
            self.widths,
            spec.num_prototypes,
            len(spec.classes),
            encoder=spec.encoder,
            reach=spec.reach,
            flow_hidden=spec.flow_hidden,
            is_blended=spec.is_blended,
            mending=spec.mending,
            correction=spec.correction,
            detail=spec.detail if spec.has_proto_detail else 0,
            norm=spec.norm,
        )

    @property
    def is_pyramid_warped(self) -> bool:
        return self.spec.warped == "pyramid"

    @property
    def state_names(self) -> tuple[str, ...]:
        return PYRAMID_STATE if self.is_pyramid_warped else OUTPUTS_STATE

    def key(self, images: Tensor) -> tuple[YolactRaw, State]:
        """Run the network in full on (B, 3, H, W) float32, normalised; also what it leaves."""
        features = self.backbone(images)
        laterals = self.pyramid.run_laterals(features[-3:])
        merged = self.pyramid.merge(laterals)
        pyramid = self.pyramid.finish(merged)
        finer, finest = self.finer_features(features)
        maps, logits = self.run_heads(pyramid), self.prototypes.logits(pyramid[0], finer)
        detailed = self.prototypes.add_detail(logits, finest)
        size_hw = (images.shape[-2], images.shape[-1])
        raw = self.assemble(maps, detailed.relu(), self.semantic(pyramid[0]), size_hw)
        if self.is_pyramid_warped:
            return raw, self.video.leave(laterals[0], merged)
        joined = [torch.cat(levels, 1) for levels in zip(*maps, strict=True)]
        left = logits if self.video.detail is not None else detailed
        return raw, self.video.leave(images, joined, left)

    def find_flows(self, keys: Tensor, images: Tensor) -> list[Tensor]:
        """The flows alone, without heads where they do not need them."""
        if self.is_pyramid_warped:
            return super().find_flows(keys, images)
        return self.video.find_flows(keys, images)

    def nonkey_raw(self, images: Tensor, state: State) -> NonkeyRaw:
        """Run the short network on (B, 3, H, W) float32 and what the last key frame left."""
        run = self._on_warped_pyramid if self.is_pyramid_warped else self._on_warped_outputs
        raw, flows = run(images, state)
        return NonkeyRaw(raw, flows, mean_motion(flows[0], raw.size_hw))

    def imitation(self, raw: YolactRaw, wanted: YolactRaw) -> Losses:
        """Losses "like_scores", "like_boxes", "like_coefficients" and "like_prototypes".

        The first three are divided by how many objects' rows a key frame would be sure of.
        """
        scores, sure = imitated_scores(
            raw.logits, wanted.logits, is_softmax=self.spec.scores == "softmax"
        )
        count = sure.sum().clamp(min=1)
        boxes = imitated_rows(raw.deltas, wanted.deltas, sure)
        coefficients = imitated_rows(raw.coefficients, wanted.coefficients, sure)
        return {
            "like_scores": scores / count,
            "like_boxes": boxes / count,
            "like_coefficients": coefficients / count,
            "like_prototypes": imitated_maps(raw.prototypes, wanted.prototypes),
        }

    def _on_warped_pyramid(self, images: Tensor, state: State) -> tuple[YolactRaw, list[Tensor]]:
        num_levels = len(self.backbone.feature_info.channels()) - 2  # to C3
        features = run_to_level(self.backbone, images, num_levels)
        lateral = self.pyramid.laterals[0](features[-1])
        merged, flows = self.video(lateral, state, is_warping=self.is_warping)
        pyramid = self.pyramid.finish(merged)
        prototypes = self.prototypes(pyramid[0], *self.finer_features([*features, None, None]))
        made = (self.run_heads(pyramid), prototypes, self.semantic(pyramid[0]))
        return self.assemble(*made, (images.shape[-2], images.shape[-1])), flows

    def _on_warped_outputs(self, images: Tensor, state: State) -> tuple[YolactRaw, list[Tensor]]:
        size_hw = (images.shape[-2], images.shape[-1])
        sizes = [state[name].shape[-2:] for name in OUTPUTS_STATE[:NUM_LEVELS]]
        joined, prototypes, semantic, flows = self.video(
            images,
            state,
            self._box_steps([(h, w) for h, w in sizes], size_hw),
            is_warping=self.is_warping,
        )
        maps = list(zip(*(level.split(self.widths, 1) for level in joined), strict=True))
        return self.assemble(maps, prototypes.relu(), semantic, size_hw), flows

    def _box_steps(self, sizes: list[tuple[int, int]], size_hw: tuple[int, int]) -> list[Tensor]:
        """Of each level (S, 2): its cells' width and height in units of the shapes' boxes."""
        anchors = self._anchors(sizes, size_hw)
        steps, first = [], 0
        for height, width in sizes:
            shapes = anchors[first : first + self.num_shapes]
            first += height * width * self.num_shapes
            cell = shapes.new_tensor((size_hw[1] / width, size_hw[0] / height))
            sides = (shapes[:, 2:] - shapes[:, :2]) * self.spec.box_variances[0]
            steps.append((cell / sides).to(self.mean.device))
        return steps


_STAGES = {
    "flow": Recipe(steps=400_000, lr=2e-4, warm_up=1000, flip=0.5, freeze_batch_norm=6),
    "video": Recipe(steps=200_000, lr=2e-4, warm_up=1000, freeze_batch_norm=6),
}
_SMALL_STAGES = {  # an hour on one core
    "flow": Recipe(
        steps=1800,
        lr=2e-3,
        warm_up=100,
        ema_decay=0.998,
        validate_every=600,
        validate_images=36,
    ),
    "video": Recipe(
        steps=1500,
        batch=4,
        lr=1e-3,
        warm_up=100,
        ema_decay=0.998,
        validate_every=500,
        validate_images=60,
    ),
}


def _of_images(name: str, stages: dict[str, Recipe], **changes: Any) -> Variant:
    """A variant whose key frames are those of YOLACT's variant of the same name."""
    image = IMAGE_VARIANTS[name]
    values = {f.name: getattr(image.spec, f.name) for f in dataclasses.fields(image.spec)}
    return Variant(YolactEdgeSpec(**values | changes), image.recipe, stages)


VARIANTS: dict[str, Variant] = {
    "small": _of_images("small", _SMALL_STAGES, warped="outputs"),
    "resnet50": _of_images("resnet50", _STAGES),
    "resnet101": _of_images("resnet101", _STAGES),
}
