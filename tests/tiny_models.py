"""Small models of every registered kind that find things without training, and their data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from training.models import build_model, model_variant
from training.models.base import Model, Spec, TemporalModel

CLASSES = ("pink", "green", "blue")
CATEGORY_IDS = (3, 7, 9)
COLOURS = ((220, 40, 220), (40, 220, 40), (220, 60, 30))
SIZE_HW = (64, 96)


def shrunk(spec: Spec, **changes: object) -> Spec:
    """A spec of the same kind that runs in milliseconds."""
    small = {"fpn_channels": 16, "head_convs": 1}
    small |= {"proto_coarse": (16, 16), "proto_fine": (16,), "num_prototypes": 8}
    small |= {"decoder_channels": (16, 16, 16, 16), "head_channels": 16, "num_joint_peaks": 10}
    known = {field.name for field in dataclasses.fields(spec)}
    small = {name: value for name, value in small.items() if name in known}
    if spec.backbone in ("resnet50", "resnet101"):  # their blocks, fewer and narrower
        narrow = {"layers": (1, 1, 1, 1), "channels": (16, 16, 24, 32)}
        small["backbone_args"] = tuple((dict(spec.backbone_args) | narrow).items())
    if getattr(spec, "rescore_convs", ()):  # as many as a small mask has room for
        small["rescore_convs"] = (4, 8)
    if spec.backbone == "darknet53":
        small["backbone"] = "darknet17"
    if not getattr(spec, "fpn_channels", 1):  # heads that read the trunk itself
        small.pop("fpn_channels")
    if hasattr(spec, "num_stacks"):
        small |= {"channels": 16, "num_stacks": 2, "depth": 2}
    if spec.backbone == "hourglass":
        small["backbone_args"] = (("channels", 16), ("num_stacks", 2), ("depth", 2))
    small["num_candidates"] = min(spec.num_candidates, 600)  # few anchors fit a small input
    data = {"size_hw": SIZE_HW, "classes": CLASSES, "category_ids": CATEGORY_IDS}
    return dataclasses.replace(spec, **small | data | changes)


def tiny_spec(**changes: object) -> Spec:
    """The smallest spec of the first model."""
    channels = {"backbone_args": (("channels", (16, 16, 24, 32)),)}
    return shrunk(model_variant("retinanet").spec, **channels | changes)


def lively(model: Model, seed: int = 0) -> Model:
    """Random weights that answer differently everywhere; batch statistics as from training."""
    draw = torch.Generator().manual_seed(seed)
    between = {
        module
        for name in getattr(model, "video_modules", ())
        for module in getattr(model, name).modules()
    }
    hooks, hooks_between = [], []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.normal_(generator=draw)
            if module in between:
                hooks_between.append(module.register_forward_hook(_to_unit_output))
            else:
                hooks.append(module.register_forward_hook(_to_unit_variance))
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
            module.weight.data.uniform_(0.7, 1.3, generator=draw)
            module.bias.data.normal_(0, 0.2, generator=draw)
    model.train()
    with torch.no_grad():
        for _ in range(6):
            found = model.candidates(model(model.prepare(frames_of(2, model.spec.size_hw, seed))))
            if getattr(found, "rescore", None) is not None:  # crops have an answer of their own
                masks = torch.rand(1, 9, *found.maps["prototypes"].shape[-2:], generator=draw)
                found.rescore(masks, torch.zeros(1, 9, dtype=torch.int64))
            while hooks:
                hooks.pop().remove()
            if isinstance(model, TemporalModel):
                images = model.prepare(frames_of(2, model.spec.size_hw, seed))
                model.nonkey(images.roll(4, 3), model.key(images)[1])
            while hooks_between:
                hooks_between.pop().remove()
    return model.eval()


def _to_unit_variance(conv: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
    """Scale a convolution so that what it gave had variance 1; the last call of it counts."""
    conv.weight.data /= output.std().clamp(min=1e-6)


def _to_unit_output(
    conv: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor
) -> torch.Tensor:
    """As `_to_unit_variance`, and what follows sees it: a long chain neither fades nor explodes."""
    std = output.std().clamp(min=1e-6)
    conv.weight.data /= std
    return output / std


def tiny_model(name: str = "retinanet", spec: Spec | None = None, seed: int = 0) -> Model:
    """A lively model; of the smallest spec where none is given."""
    return lively(build_model(name, spec or tiny_spec()), seed)


def frames_of(count: int, size_hw: tuple[int, int] = SIZE_HW, seed: int = 0) -> torch.Tensor:
    """(N, H, W, 3) uint8 frames of smooth noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 9, 13, 3), np.uint8)
    height, width = size_hw
    return torch.from_numpy(
        np.stack([cv2.resize(c, (width, height), interpolation=cv2.INTER_CUBIC) for c in coarse])
    )


def write_discs(root: Path, *, train: int = 20, val: int = 4) -> Path:
    """A COCO folder of pictures (96x128) of three coloured discs each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            picture = rng.integers(0, 60, (96, 128, 3), np.uint8)
            for _ in range(3):
                x, y, r = (int(v) for v in rng.integers((20, 20, 6), (108, 76, 18)))
                kind = int(rng.integers(len(CLASSES)))
                cv2.circle(picture, (x, y), r, COLOURS[kind], -1)
                box = [x - r, y - r, 2 * r, 2 * r]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": CATEGORY_IDS[kind],
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
            cv2.imwrite(str(root / split / f"{number}.png"), picture)
            images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 128})
        categories = [{"id": i, "name": n} for i, n in zip(CATEGORY_IDS, CLASSES, strict=True)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(document))
    return root
