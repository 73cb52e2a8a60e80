"""CenterNet: objects as points (Zhou et al., arXiv:1904.07850), detection.

An object is the peak of its class's heatmap at stride 4; its size and the place of its centre
inside the cell are read there. Peaks are found by max-pooling, so nothing is suppressed by IoU. Any
timm backbone with a light decoder, or stacked hourglasses (`backbone="hourglass"`), each of which
is supervised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.layers.backbone import make_backbone
from training.layers.box_coding import clip_boxes
from training.layers.heatmaps import (
    LOWEST,
    cells_at,
    cells_of,
    draw_gaussians,
    gaussian_radius,
    is_inside,
    keep_peaks,
    rows_of_batch,
    take_rows,
    to_rows,
)
from training.layers.hourglass import StackedHourglass
from training.layers.light_decoder import STRIDE, LightDecoder
from training.layers.point_heads import PointHeads
from training.losses.heatmaps import absolute_error, penalty_reduced_focal_loss
from training.models.base import Candidates, Losses, Model, Recipe, Spec, Targets, Variant

HOURGLASS = "hourglass"
SIZE_WEIGHT = 0.1  # of the size's loss (section 3.2)
LARGEST = 1e30  # what regresses beyond it is no number that a box can be made of


@dataclass(frozen=True, kw_only=True)
class CenterNetSpec(Spec):
    """The fields of `Spec`, and:

    Attributes:
        backbone: a timm name, or "hourglass", whose backbone_args are those of StackedHourglass:
            channels, num_stacks, depth.
        decoder_channels: of the light decoder at strides 32, 16, 8, 4; hourglasses have none.
        upsample: of the decoder, "nearest" or "bilinear".
        head_channels: of the convolution in front of each map; has_shared_head: one for all maps.
        min_overlap: of a box whose corners lie on the border of their Gaussian, with the object.
    """

    nms: str = "none"
    num_candidates: int = 100
    decoder_channels: tuple[int, ...] = (256, 128, 64, 64)
    upsample: str = "nearest"
    head_channels: int = 64
    has_shared_head: bool = False
    min_overlap: float = 0.7


class CenterNetRaw(NamedTuple):
    """What the network gives.

    Attributes:
        stacks: of each hourglass, or of the decoder alone, name -> (B, C, h, w) float32, stride 4:
            "heatmap" (K channels, logits), "size" (width and height, in cells), "offset" (x and y
            of the centre inside its cell, 0..1 when trained).
        size_hw: of the images, pixels.
    """

    stacks: list[dict[str, Tensor]]
    size_hw: tuple[int, int]


class CentreTargets(NamedTuple):
    """What one image's maps should say.

    Attributes:
        heatmap: (K, h, w) float32, 0..1. weights: (K, h, w), 0 inside crowds, but for centres.
        cells: (N,) int64, of the centres, in row-major order.
        centres_xy, sizes_wh: (N, 2) float32, in cells.
    """

    heatmap: Tensor
    weights: Tensor
    cells: Tensor
    centres_xy: Tensor
    sizes_wh: Tensor


class CenterNet(Model):
    """See the module's docstring."""

    task = "detection"
    spec_type: type[Spec] = CenterNetSpec

    def __init__(self, spec: CenterNetSpec, *, is_backbone_pretrained: bool = False) -> None:
        super().__init__(spec)
        self.spec: CenterNetSpec = spec
        num_stacks = 1
        if spec.backbone == HOURGLASS:
            self.backbone: nn.Module = StackedHourglass(**dict(spec.backbone_args))
            num_stacks = len(self.backbone.hourglasses)
            channels = dict(spec.backbone_args)["channels"]
        else:
            self.backbone = make_backbone(
                spec.backbone,
                spec.backbone_args,
                num_levels=4,
                is_pretrained=is_backbone_pretrained,
            )
            levels = self.backbone.feature_info.channels()
            self.decoder = LightDecoder(levels, spec.decoder_channels, spec.upsample)
            channels = spec.decoder_channels[-1]
        self.heads = nn.ModuleList(
            PointHeads(
                channels, spec.head_channels, self.map_widths(), is_shared=spec.has_shared_head
            )
            for _ in range(num_stacks)
        )

    def map_widths(self) -> dict[str, int]:
        """Channels of every map by its name."""
        return {"heatmap": len(self.spec.classes), "size": 2, "offset": 2}

    def forward(self, images: Tensor) -> CenterNetRaw:
        """Run the network on (B, 3, H, W) float32, normalised."""
        if self.spec.backbone == HOURGLASS:
            features = self.backbone(images)[0]
        else:
            features = [self.decoder(self.backbone(images))]
        stacks = [head(feature) for head, feature in zip(self.heads, features, strict=True)]
        return CenterNetRaw(stacks, (images.shape[-2], images.shape[-1]))

    def loss(self, raw: CenterNetRaw, targets: Targets) -> Losses:
        """Losses "heatmap", "size" and "offset" (equations 1 to 3), the mean over the stacks.

        Each is divided by the number of objects in the batch.
        """
        shape = raw.stacks[0]["heatmap"].shape[1:]
        count = len(targets.classes)
        wanted = [self.centre_targets(targets, image, shape) for image in range(count)]
        return mean_of([self.centre_losses(maps, wanted) for maps in raw.stacks])

    @torch.no_grad()
    def centre_targets(
        self, targets: Targets, image: int, shape: tuple[int, int, int]
    ) -> CentreTargets:
        """What the maps of one image should say; `shape` is (K, h, w) of the heatmap."""
        _, height, width = shape
        classes, is_crowd = targets.classes[image], targets.is_crowd[image]
        boxes = targets.boxes_xyxy[image] / STRIDE
        used = (classes >= 0) & ~is_crowd
        centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        used &= (sizes > 0).all(1)
        cells = cells_at(centres, (height, width))  # (N, 2)
        radii = gaussian_radius(sizes[used], self.spec.min_overlap)
        heatmap = draw_gaussians(cells[used], radii, classes[used], shape)
        weights = torch.ones_like(heatmap)
        for box, label in zip(boxes[is_crowd], classes[is_crowd], strict=True):
            if label >= 0:  # padding is -1
                weights[label][is_inside(box, (height, width))] = 0.0
        weights[heatmap == 1] = 1.0
        rows = cells[used, 1] * width + cells[used, 0]
        return CentreTargets(heatmap, weights, rows, centres[used], sizes[used])

    def centre_losses(self, maps: dict[str, Tensor], wanted: list[CentreTargets]) -> Losses:
        """Losses of one stack's maps against what each image wants."""
        heatmap = torch.stack([each.heatmap for each in wanted])
        weights = torch.stack([each.weights for each in wanted])
        cells, places = rows_of_batch([each.cells for each in wanted], heatmap.shape[-2:])
        count = max(1, len(cells))
        sizes = torch.cat([each.sizes_wh for each in wanted])
        offsets = torch.cat([each.centres_xy for each in wanted]) - places
        return {
            "heatmap": penalty_reduced_focal_loss(maps["heatmap"], heatmap, weights) / count,
            "size": absolute_error(maps["size"], cells, sizes) * (SIZE_WEIGHT / count),
            "offset": absolute_error(maps["offset"], cells, offsets) / count,
        }

    def candidates(self, raw: CenterNetRaw) -> Candidates:
        """The cells of the last stack, all but peaks at the lowest logit."""
        maps = raw.stacks[-1]
        regressed = torch.cat((maps["size"], maps["offset"]), 1)
        is_number = torch.lt(regressed.abs(), LARGEST).float().amin(1, keepdim=True)  # not for NaN
        peaks = torch.where(is_number > 0, keep_peaks(maps["heatmap"]), LOWEST)

        def decode(indices: Tensor) -> Tensor:
            centres, sizes = self.decode_centres(maps, indices)
            boxes = torch.cat((centres - sizes / 2, centres + sizes / 2), -1) * STRIDE
            return clip_boxes(boxes, raw.size_hw)

        return Candidates(to_rows(peaks), decode, {})

    def decode_centres(self, maps: dict[str, Tensor], indices: Tensor) -> tuple[Tensor, Tensor]:
        """Centres (x, y) and sizes (w, h), (B, T, 2) each, in cells, of cells (B, T)."""
        cells = cells_of(maps["size"].shape[-2:], indices.device)[indices]
        sizes = take_rows(to_rows(maps["size"]), indices).clamp(min=0)
        return cells + take_rows(to_rows(maps["offset"]), indices), sizes


def mean_of(losses: list[Losses]) -> Losses:
    """The mean of losses of the same names."""
    return {name: torch.stack([each[name] for each in losses]).mean() for name in losses[0]}


VARIANTS: dict[str, Variant] = {
    "small": Variant(
        CenterNetSpec(
            variant="small",
            backbone="resnet18",
            backbone_args=(("channels", (32, 48, 96, 160)),),
            decoder_channels=(96, 64, 48, 48),
            has_shared_head=True,
            min_overlap=0.3,
        ),
        Recipe(steps=7000, lr=1.5e-3, validate_every=1000),
    ),
    "r50": Variant(
        CenterNetSpec(variant="r50", size_hw=(512, 512), backbone="resnet50", upsample="bilinear"),
        Recipe(
            steps=130_000,
            batch=32,
            lr=2.5e-4,
            weight_decay=1e-4,
            warm_up=1000,
            scale=(0.6, 1.4),
            validate_every=5000,
            validate_images=5000,
            is_backbone_pretrained=True,
        ),
    ),
    "hourglass": Variant(
        CenterNetSpec(
            variant="hourglass",
            size_hw=(512, 512),
            backbone=HOURGLASS,
            backbone_args=(("channels", 256), ("num_stacks", 2), ("depth", 5)),
            head_channels=256,
        ),
        Recipe(
            steps=240_000,
            batch=24,
            lr=2.5e-4,
            weight_decay=1e-4,
            warm_up=1000,
            scale=(0.6, 1.4),
            validate_every=10_000,
            validate_images=5000,
        ),
    ),
}
