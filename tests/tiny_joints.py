"""Small networks with joints that need no training: one for frames, one for crops."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from tiny_models import frames_of
from torch import Tensor, nn

from training.models.base import (
    Candidates,
    CropSpec,
    KeypointSpec,
    Losses,
    Model,
    Spec,
    Targets,
)

STRIDE = 4
BOX_PX = 30.0  # half of the side of a typical box
JOINTS = ("head", "left_hand", "right_hand", "foot")
SKELETON = ((0, 1), (0, 2), (0, 3))
FLIP_PAIRS = ((1, 2),)
SIGMAS = (0.03, 0.06, 0.06, 0.09)


@dataclass(frozen=True, kw_only=True)
class TinyJointSpec(KeypointSpec):
    """One class, four joints."""

    size_hw: tuple[int, int] = (64, 96)
    classes: tuple[str, ...] = ("person",)
    category_ids: tuple[int, ...] = (1,)
    joints: tuple[str, ...] = JOINTS
    skeleton: tuple[tuple[int, int], ...] = SKELETON
    flip_pairs: tuple[tuple[int, int], ...] = FLIP_PAIRS
    sigmas: tuple[float, ...] = SIGMAS
    max_detections: int = 40
    num_candidates: int = 60
    score_threshold: float = 0.9


@dataclass(frozen=True, kw_only=True)
class TinyCropSpec(CropSpec):
    """Crops of 48x32."""

    size_hw: tuple[int, int] = (48, 32)
    classes: tuple[str, ...] = ("person",)
    category_ids: tuple[int, ...] = (1,)
    joints: tuple[str, ...] = JOINTS
    skeleton: tuple[tuple[int, int], ...] = SKELETON
    flip_pairs: tuple[tuple[int, int], ...] = FLIP_PAIRS
    sigmas: tuple[float, ...] = SIGMAS


class Rows(NamedTuple):
    logits: Tensor
    sides: Tensor
    joints: Tensor


class _Tiny(Model):
    def __init__(self, spec: KeypointSpec, widths: dict[str, int]) -> None:
        super().__init__(spec)
        self.stem = nn.Conv2d(3, 32, 5, stride=STRIDE, padding=2)
        self.trunk = nn.Conv2d(32, 32, 3, padding=1)
        self.heads = nn.ModuleDict({k: nn.Conv2d(32, n, 3, padding=1) for k, n in widths.items()})

    def features(self, images: Tensor) -> Tensor:
        return self.trunk(self.stem(images).relu()).relu()

    def loss(self, raw: Rows | Tensor, targets: Targets) -> Losses:  # noqa: ARG002
        return {"none": raw[0].sum() * 0}


class TinyPoses(_Tiny):
    """A box and joints around it for each cell of stride 4."""

    task: ClassVar[str] = "keypoints"
    spec_type: ClassVar[type[Spec]] = TinyJointSpec

    def __init__(self, spec: TinyJointSpec) -> None:
        joints = 3 * len(spec.joints)
        super().__init__(spec, {"logits": len(spec.classes), "sides": 4, "joints": joints})

    def forward(self, images: Tensor) -> Rows:
        features = self.features(images)
        return Rows(*(head(features).flatten(2).transpose(1, 2) for head in self.heads.values()))

    def candidates(self, raw: Rows) -> Candidates:
        height, width = self.spec.size_hw
        across = width // STRIDE

        def centres(anchors: Tensor) -> Tensor:
            return torch.stack([anchors % across, anchors // across], dim=2).float() * STRIDE

        def decode(anchors: Tensor) -> Tensor:
            sides = raw.sides.gather(1, anchors[:, :, None].expand(-1, -1, 4)).sigmoid() * BOX_PX
            middle = centres(anchors)
            boxes = torch.cat([middle - sides[..., :2], middle + sides[..., 2:]], dim=2)
            return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))

        def decode_keypoints(anchors: Tensor) -> Tensor:
            index = anchors[:, :, None].expand(-1, -1, raw.joints.shape[2])
            rows = raw.joints.gather(1, index).unflatten(2, (-1, 3))  # (B, T, J, 3)
            points = rows[..., :2].tanh() * BOX_PX + centres(anchors)[:, :, None]
            return torch.cat([points, rows[..., 2:].sigmoid()], dim=3)

        return Candidates(raw.logits, decode, {}, decode_keypoints=decode_keypoints)


class TinyCrops(_Tiny):
    """Joints as the mean of the crop's features says."""

    task: ClassVar[str] = "pose_crop"
    spec_type: ClassVar[type[Spec]] = TinyCropSpec

    def __init__(self, spec: TinyCropSpec) -> None:
        super().__init__(spec, {"joints": 3 * len(spec.joints)})

    def forward(self, images: Tensor) -> Tensor:
        return self.heads["joints"](self.features(images))  # (B, 3 J, h, w)

    def candidates(self, raw: Tensor) -> Tensor:
        values = raw.mean(dim=(2, 3)).unflatten(1, (-1, 3)).sigmoid()  # (B, J, 3)
        height, width = self.spec.size_hw
        return values * values.new_tensor([width, height, 1])


def lively(model: _Tiny, seed: int = 0) -> _Tiny:
    """A model in eval mode whose maps have variance 1."""
    model.eval()
    draw = torch.Generator().manual_seed(seed)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    images = model.prepare(frames_of(2, model.spec.size_hw, seed))
    with torch.no_grad():
        for conv in convolutions:
            conv.weight.normal_(generator=draw)
            conv.bias.zero_()
        for conv in convolutions:  # in the order in which they run
            hook = conv.register_forward_hook(_to_unit_variance)
            model(images)
            hook.remove()
    return model


def _to_unit_variance(conv: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG001
    conv.bias -= output.mean(dim=(0, 2, 3)) / output.std()
    conv.weight /= output.std()


def tiny_poses(**changes: object) -> TinyPoses:
    """`changes` are fields of the spec."""
    return lively(TinyPoses(dataclasses.replace(TinyJointSpec(), **changes)))


def tiny_crops(**changes: object) -> TinyCrops:
    """`changes` are fields of the spec."""
    return lively(TinyCrops(dataclasses.replace(TinyCropSpec(), **changes)))
