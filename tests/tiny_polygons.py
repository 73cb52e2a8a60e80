"""A small data set with masks of any number of classes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

PICTURE_HW = (96, 128)


def write_polygons(root: Path, num_classes: int) -> Path:
    """A COCO folder of bright quadrangles with polygons, their grey by class."""
    draw = np.random.default_rng(num_classes)
    for split, count in (("train", 8), ("val", 3)):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            picture = draw.integers(0, 60, (*PICTURE_HW, 3), np.uint8)
            for _ in range(3):
                kind = int(draw.integers(num_classes))
                centre, angle = draw.integers((25, 25), (103, 71)), draw.uniform(0, 1.5)
                turns = angle + np.arange(4) * np.pi / 2
                corners = centre + 20 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
                cv2.fillPoly(picture, [np.rint(corners).astype(np.int32)], (100 + 15 * kind,) * 3)
                low, high = corners.min(axis=0), corners.max(axis=0)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 2 * kind + 1,
                        "bbox": [*low.tolist(), *(high - low).tolist()],
                        "segmentation": [corners.ravel().tolist()],
                        "area": 800.0,
                        "iscrowd": 0,
                    }
                )
            cv2.imwrite(str(root / split / f"{number}.png"), picture)
            height, width = PICTURE_HW
            name = f"{number}.png"
            images.append({"id": number, "file_name": name, "height": height, "width": width})
        categories = [{"id": 2 * k + 1, "name": f"kind {k}"} for k in range(num_classes)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(document))
    return root
