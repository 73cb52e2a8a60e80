"""A small network for video that finds things without training.

A key frame leaves its trunk's features. Another frame guesses from its own stem where they went,
warps them there and adds little of its own: with another frame's state it finds other things.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
from tiny_instance import STRIDE, Raw, TinyInstances, TinySpec
from tiny_models import CATEGORY_IDS, CLASSES, COLOURS, frames_of
from torch import Tensor, nn
from torch.nn import functional

from training.models.base import NonkeyRaw, Recipe, Spec, State, TemporalModel, Variant

FLOW_CELLS = 2.0  # the most that features move, cells


class TinyTemporal(TinyInstances, TemporalModel):
    """TinyInstances over a trunk whose features are warped between key frames."""

    spec_type: ClassVar[type[Spec]] = TinySpec
    state_names: ClassVar[tuple[str, ...]] = ("features", "source")
    video_modules: ClassVar[tuple[str, ...]] = ("now", "past", "flow")

    def __init__(self, spec: TinySpec) -> None:
        super().__init__(spec)
        self.now = nn.Conv2d(32, 16, 3, padding=1)
        self.past = nn.Conv2d(32, 16, 3, padding=1)
        self.flow = nn.Conv2d(16, 2, 3, padding=1)

    def key(self, images: Tensor) -> tuple[Raw, State]:
        early = self.stem(images).relu()
        features = self.trunk(early).relu()
        return self._answer(features), {"features": features, "source": self.past(early)}

    def nonkey_raw(self, images: Tensor, state: State) -> NonkeyRaw:
        early = self.stem(images).relu()
        joint = functional.leaky_relu(self.now(early) + state["source"], 0.1)
        flow = self.flow(joint).tanh() * FLOW_CELLS  # (B, 2, h, w), cells
        features = warp_cells(state["features"], flow) + early * 0.05
        change = flow.square().sum(1).sqrt().mean((1, 2)) * STRIDE
        return NonkeyRaw(self._answer(features), [flow], change)

    def _answer(self, features: Tensor) -> Raw:
        heads = (self.logits(features), self.sides(features), self.coefficients(features))
        rows = (head.flatten(2).transpose(1, 2) for head in heads)
        return Raw(*rows, self.prototypes(features))


VARIANTS = {"small": Variant(TinySpec(), Recipe())}


def warp_cells(features: Tensor, flow: Tensor) -> Tensor:
    """Features (B, C, h, w) sampled where each cell's came from: flow (B, 2, h, w) away, cells."""
    height, width = features.shape[-2:]
    rows = torch.arange(height, dtype=torch.float32)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.float32)[None].expand(height, width)
    x = (columns + flow[:, 0]) * (2 / (width - 1)) - 1
    y = (rows + flow[:, 1]) * (2 / (height - 1)) - 1
    return functional.grid_sample(features, torch.stack((x, y), 3), align_corners=True)


def tiny_temporal(seed: int = 0, **changes: object) -> TinyTemporal:
    """A model in eval mode whose maps have variance 1; `changes` are fields of its spec."""
    model = TinyTemporal(TinySpec(**changes)).eval()
    draw = torch.Generator().manual_seed(seed)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    images = model.prepare(frames_of(2, model.spec.size_hw, seed))
    with torch.no_grad():
        for conv in convolutions:
            conv.weight.normal_(generator=draw)
            conv.bias.zero_()
        for conv in convolutions:  # in the order in which they run
            hook = conv.register_forward_hook(_to_unit_variance)
            _, state = model.key(images)
            model.nonkey(images.roll(4, 3), state)
            hook.remove()
    return model


def _to_unit_variance(conv: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
    conv.bias -= output.mean(dim=(0, 2, 3)) / output.std()
    conv.weight /= output.std()


def clips_of(count: int, length: int, size_hw: tuple[int, int], seed: int = 3) -> np.ndarray:
    """(N, L, H, W, 3) uint8 clips of smooth noise that moves by (3, 1) pixels a frame."""
    height, width = size_hw
    wide = frames_of(count, (height + length, width + 3 * length), seed).numpy()
    frames = [wide[:, n : n + height, 3 * n : 3 * n + width] for n in range(length)]
    return np.stack(frames, 1)


def write_clips(root: Path, size_hw: tuple[int, int], *, clips: int = 3, length: int = 10) -> Path:
    """A COCO folder of clips: two coloured discs with masks that drift over smooth noise.

    Both splits are the same.
    """
    rng = np.random.default_rng(4)
    height, width = size_hw
    images, annotations = [], []
    (root / "val").mkdir(parents=True)
    for clip in range(clips):
        ground = frames_of(1, (height + length, width + 2 * length), clip)[0].numpy() // 2
        places = rng.uniform((16, 16), (width - 16, height - 16), (2, 2))
        steps = rng.normal(0, 2, (2, 2))
        for frame in range(length):
            picture = ground[frame : frame + height, 2 * frame : 2 * frame + width].copy()
            number = len(images)
            for disc in range(2):
                kind = (clip + disc) % len(CLASSES)
                centre = np.clip(places[disc] + frame * steps[disc], 10, (width - 10, height - 10))
                points = cv2.ellipse2Poly(tuple(centre.astype(int).tolist()), (9, 9), 0, 0, 360, 20)
                cv2.fillPoly(picture, [points], COLOURS[kind])
                x, y, w, h = cv2.boundingRect(points)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": CATEGORY_IDS[kind],
                        "bbox": [x, y, w, h],
                        "area": float(cv2.contourArea(points)),
                        "segmentation": [points.flatten().tolist()],
                        "iscrowd": 0,
                    }
                )
            name = f"{number}.png"
            cv2.imwrite(str(root / "val" / name), picture)
            place = {"video_id": clip, "frame_index": frame}
            size = {"height": height, "width": width}
            images.append({"id": number, "file_name": name} | size | place)
    categories = [{"id": i, "name": n} for i, n in zip(CATEGORY_IDS, CLASSES, strict=True)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "val" / "_annotations.coco.json").write_text(json.dumps(document))
    shutil.copytree(root / "val", root / "train")
    return root
