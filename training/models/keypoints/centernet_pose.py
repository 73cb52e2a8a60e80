"""CenterNet for poses (Zhou et al., arXiv:1904.07850, section 4.2): people as points, with joints.

Beside an object's centre and size its cell holds the way to each joint. Joints have heatmaps of
their own too; a joint that was regressed from the centre moves to the nearest peak of its heatmap
inside the box, which is where it is exact.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from training.data.joints import PERSON_JOINTS
from training.errors import TrainingError
from training.layers.heatmaps import (
    cells_at,
    cells_of,
    draw_gaussians,
    gaussian_radius,
    is_inside,
    rows_of_batch,
    to_rows,
)
from training.layers.joint_snapping import snap_joints
from training.layers.light_decoder import STRIDE
from training.losses.heatmaps import absolute_error, penalty_reduced_focal_loss, place_entropy
from training.models.base import Candidates, KeypointSpec, Losses, Recipe, Targets, Variant
from training.models.detection.centernet import (
    HOURGLASS,
    CenterNet,
    CenterNetRaw,
    CenterNetSpec,
    mean_of,
)
from training.models.detection.centernet import VARIANTS as BOX_VARIANTS

REGION_MARGIN = 0.15  # of a box's sides: joints at its border are looked for beyond it


@dataclass(frozen=True, kw_only=True)
class CenterNetPoseSpec(CenterNetSpec, KeypointSpec):
    """The fields of `CenterNetSpec` and `KeypointSpec`, and:

    Attributes:
        num_joint_peaks: of each joint's heatmap, the best ones that joints move to.
        joint_overlap: as `min_overlap`, of the joints' Gaussians; None takes that, as published.
        place_weight: of a softmax over the cells of each person's box, which learns where among
            them a joint is; 0 is without, as published.
        way_reach: cells around a centre that learn the ways to its joints as well; 0 as published.
    """

    num_joint_peaks: int = 100
    joint_overlap: float | None = None
    place_weight: float = 0.0
    way_reach: int = 0


class JointTargets(NamedTuple):
    """What one image's maps of joints should say.

    Attributes:
        heatmap: (J, h, w) float32, 0..1. weights: (J, h, w), 0 where joints are not labelled.
        owners: (P,) int64, the cell of each labelled joint's object; joints: (P,) int64, 0..J-1.
        ways_xy: (P, 2) float32, from the object's cell to the joint, in cells.
        cells: (P',) int64 of the joints inside the map; inside_xy: (P', 2), where in them, 0..1.
        channels: (P',) int64, which joints those are. regions: (P', 4) xyxy in cells, their
            people's boxes with a margin.
    """

    heatmap: Tensor
    weights: Tensor
    owners: Tensor
    joints: Tensor
    ways_xy: Tensor
    cells: Tensor
    inside_xy: Tensor
    channels: Tensor
    regions: Tensor


class CenterNetPose(CenterNet):
    """See the module's docstring.

    The maps of `CenterNetRaw`, and: "displacement" (2J channels, x and y of joint after joint, in
    cells from the centre's cell), "joint_heatmap" (J, logits), "joint_offset" (2).
    """

    task = "keypoints"
    spec_type = CenterNetPoseSpec

    def __init__(self, spec: CenterNetPoseSpec, *, is_backbone_pretrained: bool = False) -> None:
        if not spec.joints:
            raise TrainingError(
                "the spec names no joints; expected those of the data set. Train on samples with "
                "keypoints."
            )
        super().__init__(spec, is_backbone_pretrained=is_backbone_pretrained)
        self.spec: CenterNetPoseSpec = spec

    def map_widths(self) -> dict[str, int]:
        """Channels of every map by its name."""
        num_joints = len(self.spec.joints)
        joints = {"displacement": 2 * num_joints, "joint_heatmap": num_joints, "joint_offset": 2}
        return super().map_widths() | joints

    def loss(self, raw: CenterNetRaw, targets: Targets) -> Losses:
        """CenterNet's losses and "displacement", "joint_heatmap", "joint_offset", "joint_place".

        The mean over the stacks; those of joints are divided by the number of labelled joints.
        """
        shape = raw.stacks[0]["heatmap"].shape[1:]
        count = len(targets.classes)
        centres = [self.centre_targets(targets, image, shape) for image in range(count)]
        joints = [self.joint_targets(targets, image, shape[1:]) for image in range(count)]
        return mean_of(
            [
                self.centre_losses(maps, centres) | self.joint_losses(maps, joints)
                for maps in raw.stacks
            ]
        )

    @torch.no_grad()
    def joint_targets(self, targets: Targets, image: int, size_hw: tuple[int, int]) -> JointTargets:
        """What the maps of one image's joints should say; `size_hw` is of the maps."""
        assert targets.keypoints is not None
        height, width = size_hw
        boxes, keypoints = targets.boxes_xyxy[image] / STRIDE, targets.keypoints[image]
        is_object = targets.classes[image] >= 0
        sizes = boxes[:, 2:] - boxes[:, :2]
        is_person = is_object & ~targets.is_crowd[image] & (sizes > 0).all(1)
        points, is_labelled = keypoints[..., :2] / STRIDE, keypoints[..., 2] > 0  # (N, J)
        is_labelled &= is_person[:, None]
        rows, joints = is_labelled.nonzero(as_tuple=True)
        owners = cells_at((boxes[rows, :2] + boxes[rows, 2:]) / 2, size_hw)
        places = points[rows, joints]  # (P, 2)
        limit = places.new_tensor([width, height])
        is_in = ((places >= 0) & (places < limit)).all(1)
        cells = cells_at(places[is_in], size_hw)
        margins = sizes[rows[is_in]] * REGION_MARGIN + 1
        people = boxes[rows[is_in]]
        regions = torch.cat((people[:, :2] - margins, people[:, 2:] + margins), 1)
        overlap = self.spec.joint_overlap or self.spec.min_overlap
        radii = gaussian_radius(sizes[rows[is_in]], overlap)
        owners, rows_near = self._near(owners, limit)
        shape = (keypoints.shape[1], height, width)
        heatmap = draw_gaussians(cells, radii, joints[is_in], shape)
        weights = torch.ones_like(heatmap)
        for box in boxes[is_object & ~is_labelled.any(1)]:
            weights[:, is_inside(box, size_hw)] = 0.0
        weights[heatmap == 1] = 1.0
        return JointTargets(
            heatmap,
            weights,
            owners[:, 1] * width + owners[:, 0],
            joints[rows_near],
            places[rows_near] - owners,
            cells[:, 1] * width + cells[:, 0],
            places[is_in] - cells,
            joints[is_in],
            regions,
        )

    def _near(self, owners: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Cells (P', 2) inside the map up to `way_reach` from owners (P, 2), and whose they are."""
        steps = torch.arange(-self.spec.way_reach, self.spec.way_reach + 1, device=owners.device)
        around = torch.cartesian_prod(steps, steps)
        cells = (owners[:, None] + around).flatten(0, 1)
        rows = torch.arange(len(owners), device=owners.device).repeat_interleave(len(around))
        is_in = ((cells >= 0) & (cells < limit)).all(1)
        return cells[is_in], rows[is_in]

    def joint_losses(self, maps: dict[str, Tensor], wanted: list[JointTargets]) -> Losses:
        """Losses of one stack's maps of joints against what each image wants."""
        heatmap = torch.stack([each.heatmap for each in wanted])
        weights = torch.stack([each.weights for each in wanted])
        size_hw = heatmap.shape[-2:]
        owners, _ = rows_of_batch([each.owners for each in wanted], size_hw)
        cells, _ = rows_of_batch([each.cells for each in wanted], size_hw)
        joints = torch.cat([each.joints for each in wanted])
        ways_xy = torch.cat([each.ways_xy for each in wanted])
        inside_xy = torch.cat([each.inside_xy for each in wanted])
        ways = to_rows(maps["displacement"]).flatten(0, 1).unflatten(1, (-1, 2))  # (B*h*w, J, 2)
        way_loss = (ways[owners, joints] - ways_xy).abs().sum()
        heat_loss = penalty_reduced_focal_loss(maps["joint_heatmap"], heatmap, weights)
        offset_loss = absolute_error(maps["joint_offset"], cells, inside_xy)
        num_ways, num_inside = max(1, len(owners)), max(1, len(cells))
        losses = {
            "displacement": way_loss / (2 * num_ways),
            "joint_heatmap": heat_loss / num_inside,
            "joint_offset": offset_loss / (2 * num_inside),
        }
        if self.spec.place_weight:
            place_loss = maps["joint_heatmap"].new_zeros(())
            for logits, each in zip(maps["joint_heatmap"], wanted, strict=True):
                places = cells_of(size_hw, logits.device)[each.cells] + each.inside_xy
                place_loss = place_loss + place_entropy(logits[each.channels], places, each.regions)
            losses["joint_place"] = place_loss * (self.spec.place_weight / num_inside)
        return losses

    def candidates(self, raw: CenterNetRaw) -> Candidates:
        """Peaks of the last stack, with the joints of those that are kept."""
        maps = raw.stacks[-1]

        def decode_keypoints(indices: Tensor) -> Tensor:
            centres, sizes = self.decode_centres(maps, indices)
            joints = snap_joints(maps, indices, centres, sizes, self.spec.num_joint_peaks)
            return joints * joints.new_tensor([STRIDE, STRIDE, 1.0])

        return super().candidates(raw)._replace(decode_keypoints=decode_keypoints)


def _of_boxes(name: str) -> Variant:
    """A variant that differs from CenterNet's of the same name by its joints alone."""
    boxes = BOX_VARIANTS[name]
    values = {f.name: getattr(boxes.spec, f.name) for f in dataclasses.fields(boxes.spec)}
    return Variant(CenterNetPoseSpec(**values, **PERSON_JOINTS.fields()), boxes.recipe)


VARIANTS: dict[str, Variant] = {
    "small": Variant(
        CenterNetPoseSpec(
            variant="small",
            backbone=HOURGLASS,
            backbone_args=(("channels", 64), ("num_stacks", 2), ("depth", 3)),
            head_channels=96,
            has_shared_head=True,
            min_overlap=0.3,
            num_joint_peaks=50,
            joint_overlap=0.7,
            place_weight=0.5,
            way_reach=1,
            **PERSON_JOINTS.fields(),
        ),
        Recipe(
            steps=4000,
            batch=32,
            lr=1.5e-3,
            ema_decay=0.998,
            view_hw=(128, 128),  # mostly of people, who are few in a whole frame
            focus=0.95,
            object_px=(32.0, 128.0),
            validate_every=1000,
            validate_images=100,
        ),
    ),
    "r50": _of_boxes("r50"),
    "hourglass": _of_boxes("hourglass"),
}
