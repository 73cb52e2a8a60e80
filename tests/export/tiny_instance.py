"""A small network with masks that finds things without training: a stem, heads and prototypes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import onnx
import torch
from tiny_models import CATEGORY_IDS, CLASSES, frames_of
from torch import Tensor, nn

from export.bundling import ExportOptions, describe, torch_results
from export.precision.writing import name_files, write_files
from runtime.contract.manifest import MANIFEST_NAME
from runtime.contract.samples import SAMPLES_NAME, Samples, write_samples
from training.models.base import Candidates, Losses, Model, Spec, Targets

SIZE_HW = (64, 96)
STRIDE = 4
BOX_PX = 30.0  # half of the side of a typical box


@dataclass(frozen=True, kw_only=True)
class TinySpec(Spec):
    """`activation` of the scores, as of `Candidates`."""

    size_hw: tuple[int, int] = SIZE_HW
    classes: tuple[str, ...] = CLASSES
    category_ids: tuple[int, ...] = CATEGORY_IDS
    max_detections: int = 30
    num_candidates: int = 80
    score_threshold: float = 0.82
    nms: str = "fast"
    activation: str = "sigmoid"
    num_prototypes: int = 6


class Raw(NamedTuple):
    logits: Tensor
    sides: Tensor
    coefficients: Tensor
    prototypes: Tensor


class TinyInstances(Model):
    """One anchor a cell of stride 4; prototypes of the same grid, of either sign."""

    task: ClassVar[str] = "instance"
    spec_type: ClassVar[type[Spec]] = TinySpec

    def __init__(self, spec: TinySpec) -> None:
        super().__init__(spec)
        self.stem = nn.Conv2d(3, 32, 5, stride=STRIDE, padding=2)
        self.trunk = nn.Conv2d(32, 32, 3, padding=1)
        self.logits = nn.Conv2d(32, len(spec.classes), 3, padding=1)
        self.sides = nn.Conv2d(32, 4, 3, padding=1)
        self.coefficients = nn.Conv2d(32, spec.num_prototypes, 3, padding=1)
        self.prototypes = nn.Conv2d(32, spec.num_prototypes, 3, padding=1)

    def forward(self, images: Tensor) -> Raw:
        features = self.trunk(self.stem(images).relu()).relu()
        heads = (self.logits(features), self.sides(features), self.coefficients(features))
        rows = (head.flatten(2).transpose(1, 2) for head in heads)
        return Raw(*rows, self.prototypes(features))

    def loss(self, raw: Raw, targets: Targets) -> Losses:
        return {"none": raw.logits.sum() * 0}

    def candidates(self, raw: Raw) -> Candidates:
        height, width = self.spec.size_hw
        across = width // STRIDE

        def decode(anchors: Tensor) -> Tensor:
            sides = raw.sides.gather(1, anchors[:, :, None].expand(-1, -1, 4)).sigmoid() * BOX_PX
            centres = torch.stack([anchors % across, anchors // across], dim=2).float() * STRIDE
            boxes = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], dim=2)
            return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))

        is_plain = self.spec.activation == "none"
        return Candidates(
            logits=raw.logits.softmax(dim=2) if is_plain else raw.logits,
            decode=decode,
            extras={"coefficients": raw.coefficients.tanh() * 3},
            activation=self.spec.activation,
            maps={"prototypes": raw.prototypes},
        )


def tiny_instances(seed: int = 0, **changes: object) -> TinyInstances:
    """A model in eval mode whose maps have variance 1; `changes` are fields of its spec."""
    model = TinyInstances(dataclasses.replace(TinySpec(), **changes)).eval()
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


def _to_unit_variance(conv: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
    conv.bias -= output.mean(dim=(0, 2, 3)) / output.std()
    conv.weight /= output.std()


def make_feeds(model: Model, batch: int, seed: int = 5) -> dict[str, np.ndarray]:
    """Frames, each with thresholds of its own."""
    scores = np.full((batch, len(model.spec.classes)), model.spec.score_threshold, np.float32)
    scores[1::2, 0] = 1.1
    return {
        "image": frames_of(batch, model.spec.size_hw, seed).numpy(),
        "score_threshold": scores,
        "iou_threshold": np.full(batch, 0.5, np.float32),
    }


def write_instance_bundle(
    folder: Path, model: Model, base: onnx.ModelProto, precisions: tuple[str, ...]
) -> Path:
    """A bundle of the model and its trace, with samples of smooth noise."""
    origin = folder / "model.safetensors"
    origin.write_bytes(b"weights")
    options = ExportOptions(
        model="tiny", variant=None, checkpoint=origin, size_hw=None, out=folder,
        precisions=precisions,
    )  # fmt: skip
    header = {"training": {"data": "noise"}, "scores": {}}
    names = {"model": name_files("model", precisions)}
    manifest = describe(model, options, header, origin, names)
    graph = write_files(base, "model", manifest, folder)
    text = dataclasses.replace(manifest, graphs={"model": graph}).to_json()
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")
    feeds = make_feeds(model, 4)
    samples = Samples(feeds, torch_results(model, feeds))
    write_samples(folder / SAMPLES_NAME, {"model": samples})
    return folder
