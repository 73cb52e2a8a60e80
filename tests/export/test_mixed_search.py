"""The search from end to end: a bundle with one layer that int8 ruins, and labels of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from calling import Done, call
from planting import GRAPH, PASSED, REFUSED, plant, replace_graph, set_value, value_of
from tiny_models import CATEGORY_IDS, CLASSES, SIZE_HW, frames_of

import export.mixing
import export.precision.search.measuring
from export.graph.types_audit import audit_types
from export.precision.mixed import find_int8
from runtime.contract.bundle import VERIFY_NAME, Bundle
from runtime.contract.manifest import MANIFEST_NAME
from runtime.sessions import open_session

BLOCK = "model.backbone.layer2.1.conv1"
NEXT = "model.backbone.layer2.1.conv2"
OUTLIER = 1e4
SPLITS = {"train": (4, 1), "val": (8, 2), "test": (6, 3)}  # frames, seed
OBJECTS = 8  # a frame


def enlarge_a_channel(graph: onnx.GraphProto) -> None:
    """One channel inside a residual block becomes OUTLIER times larger, and nothing else changes.

    The block's second product takes it back; ReLU between the two lets a factor through. 255
    levels over that channel's range leave the others none.
    """
    weight, bias = f"{BLOCK}.weight", f"{BLOCK}.weight_bias"
    for name in (weight, bias):
        value = value_of(graph, name)
        value[0] *= OUTLIER
        set_value(graph, name, value)
    after = value_of(graph, f"{NEXT}.weight")
    after[:, 0] /= OUTLIER
    set_value(graph, f"{NEXT}.weight", after)


@pytest.fixture(scope="module")
def own_labels(written_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder whose objects are what the bundle finds in float32: its AP there is 1."""
    root = tmp_path_factory.mktemp("labelled")
    session = open_session(Bundle.open(written_bundle), "onnxruntime", "fp32", device="cpu")
    for split, (count, seed) in SPLITS.items():
        (root / split).mkdir()
        images, annotations = [], []
        for number, frame in enumerate(frames_of(count, seed=seed).numpy()):
            limits = {
                "score_threshold": np.full((1, len(CLASSES)), 0.02, np.float32),
                "iou_threshold": np.full(1, 0.5, np.float32),
            }
            found = session.run({"image": frame[None], **limits})
            boxes = found["boxes_xyxy"][0, :OBJECTS]
            for box, kind in zip(boxes, found["classes"][0, :OBJECTS], strict=True):
                sides = [float(v) for v in (*box[:2], *(box[2:] - box[:2]))]
                annotations.append({
                    "id": len(annotations) + 1, "image_id": number, "iscrowd": 0,
                    "category_id": CATEGORY_IDS[kind], "bbox": sides, "area": sides[2] * sides[3],
                })  # fmt: skip
            cv2.imwrite(str(root / split / f"{number}.png"), frame)
            height, width = SIZE_HW
            images.append(
                {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
            )
        categories = [{"id": i, "name": n} for i, n in zip(CATEGORY_IDS, CLASSES, strict=True)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(document))
    session.close()
    return root


@pytest.fixture(scope="module")
def planted(written_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(written_bundle, tmp_path_factory.mktemp("planted") / "tiny"))
    plant(folder, enlarge_a_channel)
    return folder


def search(bundle: Path, data: Path, *more: object) -> Done:
    options = ("--data", data, "--images", 4, "--proof-data", data, "--verify", "none")
    return call("export.quantize", bundle, *options, *more)
