"""What every model is: a `Spec`, a `Recipe`, and a network with three jobs kept apart.

`forward` runs the network, `loss` scores it against targets, `candidates` turns its raw output
into the rows that enter selection. Only `forward` and `candidates` are exported.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from training.errors import CheckpointError, TrainingError

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)

Raw: TypeAlias = Any  # each model's own NamedTuple; one type, always
Losses: TypeAlias = dict[str, Tensor]
State: TypeAlias = dict[str, Tensor]  # what a key frame leaves: name -> (B, C, h, w)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a network is; it travels in the checkpoint.

    Attributes:
        variant: the name under which the model's file lists it.
        size_hw: height and width of the network input, pixels.
        classes: names by index; category_ids: the data set's own ids.
        backbone: any timm name; backbone_args: keyword arguments for timm.create_model.
        mean, std: RGB, on the 0..255 scale.
        resize: how frames become the network input: "letterbox", or "stretch" without its aspect.
        max_detections: M, rows of the result; num_candidates: T, rows that enter suppression.
        score_threshold, iou_threshold: defaults of the exported graph's inputs.
        nms: "greedy", or "fast" for YOLACT's Fast NMS (`export/graph/nms.py` defines both); "none"
            for networks that find each object once, whose graphs take no iou_threshold.
    """

    variant: str = "small"
    size_hw: tuple[int, int] = (288, 512)
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    backbone: str = "resnet18"
    backbone_args: tuple[tuple[str, Any], ...] = ()
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: str = "letterbox"
    max_detections: int = 100
    num_candidates: int = 300
    score_threshold: float = 0.3
    iou_threshold: float = 0.5
    nms: str = "greedy"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Read a spec; an unknown key is an error that names the nearest one."""
        values = json.loads(text)
        names = {f.name for f in dataclasses.fields(cls)}
        for key in values:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise CheckpointError(
                    f"the checkpoint's spec has unknown field {key!r}{hint} "
                    "It was written by another version: train or convert it again."
                )
        return cls(**{key: _frozen(value) for key, value in values.items()})


@dataclass(frozen=True, kw_only=True)
class KeypointSpec(Spec):
    """Spec of tasks keypoints and pose_crop; training fills the joints in from the data set.

    Attributes:
        joints: J names. skeleton: pairs of indices into them, the limbs that are drawn.
        flip_pairs: pairs that change names in a mirror.
        sigmas: J constants of COCO's object keypoint similarity.
    """

    joints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CropSpec(KeypointSpec):
    """Spec of task pose_crop: `size_hw` is of the crop.

    Attributes:
        crop_margin: sides of the crop over those of the box that it is made for, 1 or more; the
            shorter side grows further, to the network input's aspect.
    """

    crop_margin: float = 1.25


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training defaults of one variant.

    Attributes:
        steps: optimiser steps; batch: images a step and process.
        lr: peak learning rate of AdamW at that batch; warm_up: steps of linear warm-up.
        final_lr: fraction of lr at the end of the cosine.
        ema_decay: of the averaged weights, which are the ones saved and scored.
        clip: largest gradient norm.
        validate_every: steps between validations; validate_images: images each.
        flip, scale, hsv, mosaic, view_hw, focus, object_px: as in training.data.augment.Augment.
        mosaic_off: fraction of the steps, at the end, that train without mosaic.
        freeze_batch_norm: batches of fewer images normalise by the statistics that the network
            began with.
    """

    steps: int = 9000
    batch: int = 8
    lr: float = 1e-3
    weight_decay: float = 0.05
    warm_up: int = 300
    final_lr: float = 0.01
    ema_decay: float = 0.9995
    clip: float = 10.0
    validate_every: int = 1500
    validate_images: int = 200
    flip: float = 0.5
    vertical_flip: float = 0.0
    scale: tuple[float, float] = (0.8, 1.3)
    hsv: tuple[float, float, float] = (0.01, 0.3, 0.25)
    mosaic: float = 0.0
    mosaic_off: float = 0.2
    view_hw: tuple[int, int] | None = None
    focus: float = 0.0
    object_px: tuple[float, float] | None = None
    freeze_batch_norm: int = 0
    is_backbone_pretrained: bool = False


@dataclass(slots=True)
class Targets:
    """Ground truth of a batch, padded to the batch's largest count N.

    Attributes:
        boxes_xyxy: (B, N, 4) float32, pixels of the network input.
        classes: (B, N) int64, 0..K-1; -1 is padding.
        is_crowd: (B, N) bool; anchors mostly inside a crowd are not trained on.
        masks: (B, N, H, W) uint8, 0 or 1, at network size; None for tasks without masks. Of a
            worker's batch they are bits until `to` (`training/loop/packing.py`).
        keypoints: (B, N, J, 3) float32 as (x, y, v), pixels of the network input; v as COCO has
            it: 0 not labelled (x and y are 0), 1 hidden, 2 visible; padding is 0. An object with
            no labelled joint says nothing of where its joints are. None for tasks without joints.
    """

    boxes_xyxy: Tensor
    classes: Tensor
    is_crowd: Tensor
    masks: Tensor | None = None
    keypoints: Tensor | None = None

    def to(self, device: torch.device) -> Targets:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Targets(*(v if v is None else v.to(device, non_blocking=True) for v in values))


class Candidates(NamedTuple):
    """The common form in which box tasks end.

    Attributes:
        logits: (B, A, K) float32, before the activation.
        decode: indices (B, T) int64 into A -> boxes_xyxy (B, T, 4) float32, pixels of the
            network input, clipped to it as the spec has it. Only selected rows are ever decoded.
        extras: name -> (B, A, ...) rows gathered by the same indices: "coefficients" (B, A, P).
        activation: what turns logits into scores: "sigmoid", or "none" where they are scores.
        maps: name -> (B, ...) what belongs to the image as a whole: "prototypes" (B, P, h, w).
        rescore: soft masks (B, M, h, w) float32, 0..1, and classes (B, M) int64 of the kept rows,
            -1 of padding -> (B, M) float32, 0..1, by which a row's score is multiplied to tell how
            good its mask is; None where the score is all that is known.
        decode_keypoints: of task keypoints, indices (B, T) int64 into A -> keypoints_xyc
            (B, T, J, 3) float32 as (x, y, c): pixels of the network input, not clipped, and the
            confidence of each joint, 0..1. Only rows that are kept are decoded; padding has
            index 0.
    """

    logits: Tensor
    decode: Callable[[Tensor], Tensor]
    extras: dict[str, Tensor]
    activation: str = "sigmoid"
    maps: Mapping[str, Tensor] = MappingProxyType({})
    rescore: Callable[[Tensor, Tensor], Tensor] | None = None
    decode_keypoints: Callable[[Tensor], Tensor] | None = None


class NonkeyRaw(NamedTuple):
    """What a frame gives that leans on its key frame.

    Attributes:
        raw: the model's own raw output, of the same type and shapes as of a key frame.
        flows: (B, 2, h, w) float32 each, the finest first: for every cell of a level where what it
            shows lay in the key frame, as (dx, dy) from the cell, in cells of that level. One cell
            is W / w and H / h pixels of the network input. So a thing that has moved three cells
            to the right since the key frame has (-3, 0).
        change: (B,) float32, 0 and above: how far the frame has moved from its key frame, pixels
            of the network input.
    """

    raw: Raw
    flows: list[Tensor]
    change: Tensor


class Model(nn.Module):
    """Base of all models; a model's file also defines `VARIANTS`."""

    task: ClassVar[str]
    spec_type: ClassVar[type[Spec]]

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        if len(spec.classes) != len(spec.category_ids) or not spec.classes:
            raise TrainingError(
                f"the spec names {len(spec.classes)} classes and {len(spec.category_ids)} category "
                "ids; expected as many of both, at least one. Check the data set's categories."
            )
        self.spec = spec
        mean = torch.tensor(spec.mean, dtype=torch.float32).reshape(1, 3, 1, 1)
        std = torch.tensor(spec.std, dtype=torch.float32).reshape(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @property
    def optional_outputs(self) -> tuple[str, ...]:
        """The task's optional outputs that this model gives (`runtime.contract.outputs`)."""
        return ()

    def check_size(self) -> None:
        """Raise TrainingError where the network cannot take the spec's `size_hw`."""

    def prepare(self, images: Tensor) -> Tensor:
        """Raw frames to the network's input.

        Args:
            images: (B, H, W, 3) uint8, BGR.

        Returns:
            (B, 3, H, W) float32, RGB, normalised by the spec's mean and std.
        """
        planar = images.float().permute(0, 3, 1, 2)  # (B, 3, H, W)
        return (planar.flip(1) - self.mean) / self.std

    def forward(self, images: Tensor) -> Raw:
        """Run the network on (B, 3, H, W) float32, normalised."""
        raise NotImplementedError

    def loss(self, raw: Raw, targets: Targets) -> Losses:
        """Losses by name, each a scalar; their sum is minimised. Never exported."""
        raise NotImplementedError

    def candidates(self, raw: Raw) -> Candidates | Tensor:
        """Raw output to candidates. Always exported.

        Of task pose_crop the result itself: keypoints_xyc (B, J, 3) float32 as (x, y, c), pixels
        of the crop and 0..1.
        """
        raise NotImplementedError


class TemporalModel(Model):
    """Base of models for video: key frames in full, the frames between them on what those left.

    A frame leans on the last key frame alone: errors do not add up along a clip. `forward` is the
    key frame's raw output, so that images train, score and quantise as with any other model.

    Attributes:
        state_names: what `key` leaves and `nonkey` takes, in the order of the graphs' outputs.
        video_modules: names of the direct children that a key frame's own results do not need;
            they learn from pairs of frames, while the others stay as images have taught them.
        is_warping: False takes every flow for 0, so that what the key frame left is copied to
            where it lay: the baseline that a flow has to beat. Never exported.
    """

    state_names: ClassVar[tuple[str, ...]]
    video_modules: ClassVar[tuple[str, ...]]
    is_warping: bool = True

    def key(self, images: Tensor) -> tuple[Raw, State]:
        """Run the network in full on (B, 3, H, W) float32, normalised; also what it leaves."""
        raise NotImplementedError

    def nonkey_raw(self, images: Tensor, state: State) -> NonkeyRaw:
        """Run the short network on (B, 3, H, W) float32 and what the last key frame left."""
        raise NotImplementedError

    def find_flows(self, keys: Tensor, images: Tensor) -> list[Tensor]:
        """The flows alone, as of `NonkeyRaw`, from frames to their key frames; both normalised."""
        return self.nonkey_raw(images, self.key(keys)[1]).flows

    def imitation(self, raw: Raw, wanted: Raw) -> Losses:
        """Losses of a frame's raw output against what it would be, were it a key frame itself."""
        return {}

    def nonkey(self, images: Tensor, state: State) -> tuple[Raw, Tensor]:
        """What is exported of `nonkey_raw`: raw output and `change` (B,)."""
        made = self.nonkey_raw(images, state)
        return made.raw, made.change

    def forward(self, images: Tensor) -> Raw:
        """A key frame's raw output of (B, 3, H, W) float32, normalised."""
        return self.key(images)[0]

    def video_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of `video_modules`, by their names in the model."""
        for name in self.video_modules:
            yield from getattr(self, name).named_parameters(prefix=name)


@dataclass(frozen=True)
class Variant:
    """A named spec with its training defaults.

    Attributes:
        recipe: of training from images.
        stages: of networks for video, what follows images: "flow" and "video", with a recipe each.
    """

    spec: Spec
    recipe: Recipe
    stages: Mapping[str, Recipe] = dataclasses.field(default_factory=dict)
