"""CenterNets in miniature, and maps with objects planted into them."""

from __future__ import annotations

import torch
from tiny_models import shrunk
from torch import Tensor

from training.models import build_model, model_variant
from training.models.base import Model, Targets
from training.models.detection.centernet import CenterNetRaw

STRIDE = 4
ABSENT = -8.0  # logit of a cell without anything


def point_network(name: str, variant: str = "small", **changes: object) -> Model:
    """A fresh network of one class where none are given."""
    torch.manual_seed(0)
    one_class = {"classes": ("person",), "category_ids": (1,)}
    return build_model(name, shrunk(model_variant(name, variant).spec, **one_class | changes))


def two_people(num_joints: int, size_hw: tuple[int, int] = (64, 96)) -> Targets:
    """Two images: one person with joints inside its box; two, of whom the second has no labels."""
    boxes = torch.tensor([[[10.0, 8, 41, 60], [0, 0, 0, 0]], [[30.0, 5, 61, 63], [66, 9, 94, 50]]])
    places = torch.arange(num_joints)  # each in a cell of its own: they share the offsets' map
    share = torch.stack(((places % 4 + 0.41) / 4, (places // 4 + 0.29) / 5), 1)
    corner, side = boxes[:, :, None, :2], (boxes[:, :, 2:] - boxes[:, :, :2])[:, :, None]
    seen = torch.full((2, 2, num_joints, 1), 2.0)
    keypoints = torch.cat((corner + share * side, seen), 3)
    keypoints[0, 1] = keypoints[1, 1] = 0
    keypoints[0, 0, :1] = 0  # one joint is not labelled
    return Targets(
        boxes,
        torch.tensor([[0, -1], [0, 0]]),
        torch.zeros(2, 2, dtype=torch.bool),
        None,
        keypoints,
    )


def planted(model: Model, targets: Targets, size_hw: tuple[int, int]) -> CenterNetRaw:
    """The raw output that says exactly what the targets say."""
    height, width = (-(-side // STRIDE) for side in size_hw)
    batch = len(targets.classes)
    maps = {
        name: torch.zeros(batch, channels, height, width)
        for name, channels in model.map_widths().items()
    }
    for name in maps:
        if name.endswith("heatmap"):
            maps[name] += ABSENT
    for image, row in (targets.classes >= 0).nonzero().tolist():
        box = targets.boxes_xyxy[image, row] / STRIDE
        x, y = ((box[:2] + box[2:]) / 2).tolist()
        cell = (slice(image, image + 1), slice(None), int(y), int(x))
        maps["heatmap"][image, targets.classes[image, row], int(y), int(x)] = 3.0 - 0.5 * row
        maps["size"][cell] = box[2:] - box[:2]
        maps["offset"][cell] = torch.tensor([x % 1, y % 1])
        if targets.keypoints is not None:
            _plant_joints(maps, targets.keypoints[image, row], image, (int(x), int(y)))
    return CenterNetRaw([maps], size_hw)


def _plant_joints(
    maps: dict[str, Tensor], joints: Tensor, image: int, cell: tuple[int, int]
) -> None:
    for joint, (x, y, seen) in enumerate(joints.tolist()):
        if seen:
            x, y = x / STRIDE, y / STRIDE
            way = torch.tensor([x - cell[0], y - cell[1]]) + 0.3  # rough: the peak is exact
            maps["displacement"][image, 2 * joint : 2 * joint + 2, cell[1], cell[0]] = way
            maps["joint_heatmap"][image, joint, int(y), int(x)] = 2.0
            maps["joint_offset"][image, :, int(y), int(x)] = torch.tensor([x % 1, y % 1])
