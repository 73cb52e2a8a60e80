"""What every model is: a `Spec`, a `Recipe`, and a network with three jobs kept apart.

`forward` runs the network, `loss` scores it against targets, `candidates` turns its raw output
into the rows that enter selection. Only `forward` and `candidates` are exported.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
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
        nms: "greedy", or "fast" for YOLACT's Fast NMS (`export/graph/nms.py` defines both).
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
        flip, scale, hsv, mosaic: as in training.data.augment.Augment.
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
    freeze_batch_norm: int = 0
    is_backbone_pretrained: bool = False


@dataclass(slots=True)
class Targets:
    """Ground truth of a batch, padded to the batch's largest count N.

    Attributes:
        boxes_xyxy: (B, N, 4) float32, pixels of the network input.
        classes: (B, N) int64, 0..K-1; -1 is padding.
        is_crowd: (B, N) bool; anchors mostly inside a crowd are not trained on.
        masks: (B, N, H, W) uint8, 0 or 1, at network size; None for tasks without masks.
    """

    boxes_xyxy: Tensor
    classes: Tensor
    is_crowd: Tensor
    masks: Tensor | None = None

    def to(self, device: torch.device) -> Targets:
        masks = self.masks
        return Targets(
            self.boxes_xyxy.to(device, non_blocking=True),
            self.classes.to(device, non_blocking=True),
            self.is_crowd.to(device, non_blocking=True),
            None if masks is None else masks.to(device, non_blocking=True),
        )


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
    """

    logits: Tensor
    decode: Callable[[Tensor], Tensor]
    extras: dict[str, Tensor]
    activation: str = "sigmoid"
    maps: Mapping[str, Tensor] = MappingProxyType({})
    rescore: Callable[[Tensor, Tensor], Tensor] | None = None


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

    def candidates(self, raw: Raw) -> Candidates:
        """Raw output to candidates. Always exported."""
        raise NotImplementedError


@dataclass(frozen=True)
class Variant:
    """A named spec with its training defaults."""

    spec: Spec
    recipe: Recipe
