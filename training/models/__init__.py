"""The registry: one line per model, imported on demand.

A name is the model file's own name; the value says where its class stands. A new model is one
file beside the others and one line here.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from training.errors import TrainingError

if TYPE_CHECKING:
    from training.models.base import Model, Spec, Variant

REGISTRY: dict[str, str] = {
    "centernet": "training.models.detection.centernet:CenterNet",
    "centernet_pose": "training.models.keypoints.centernet_pose:CenterNetPose",
    "hourglass": "training.models.pose_crop.hourglass:StackedHourglassPose",
    "retinaface": "training.models.keypoints.retinaface:RetinaFace",
    "retinanet": "training.models.detection.retinanet:RetinaNet",
    "yolact": "training.models.instance.yolact:Yolact",
    "yolact_edge": "training.models.instance.yolact_edge:YolactEdge",
}


def model_class(name: str) -> type[Model]:
    """The class of a registered model.

    Raises:
        TrainingError: unknown name; the nearest one is suggested.
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        known = ", ".join(sorted(REGISTRY))
        raise TrainingError(f"unknown model {name!r}; expected one of: {known}.{hint}")
    module, attribute = REGISTRY[name].split(":")
    kind: type[Model] = getattr(importlib.import_module(module), attribute)
    return kind


def model_variant(name: str, variant: str | None = None) -> Variant:
    """A model's variant by name; None is the first one listed.

    Raises:
        TrainingError: unknown model or variant.
    """
    kind = model_class(name)
    variants: dict[str, Variant] = importlib.import_module(kind.__module__).VARIANTS
    if variant is None:
        return next(iter(variants.values()))
    if variant not in variants:
        raise TrainingError(
            f"model {name!r} has no variant {variant!r}; expected one of: {', '.join(variants)}."
        )
    return variants[variant]


def build_model(name: str, spec: Spec) -> Model:
    """A model with fresh weights."""
    return model_class(name)(spec)
