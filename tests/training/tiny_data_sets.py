"""Writes one small scene as a COCO, Pascal VOC or YOLO data set."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("ball", "cone", "person")  # sorted: VOC has no order of its own
COCO_IDS = (2, 5, 9)
Scene = dict[str, tuple[tuple[int, int], list[tuple[int, tuple[int, int, int, int]]]]]

# file name -> ((width, height), [(class, (x1, y1, x2, y2))])
SCENE: Scene = {
    "a.png": ((64, 48), [(0, (4, 6, 20, 30)), (2, (30, 10, 60, 40))]),
    "b.png": ((40, 60), [(1, (0, 0, 40, 60))]),
    "c.png": ((50, 50), []),
    "d.png": ((64, 64), [(2, (10, 12, 22, 31)), (2, (1, 2, 9, 11)), (1, (33, 3, 63, 64))]),
}


def draw_image(size_wh: tuple[int, int], objects: list) -> np.ndarray:
    image = np.full((size_wh[1], size_wh[0], 3), 40, np.uint8)
    for label, (x1, y1, x2, y2) in objects:
        image[y1:y2, x1:x2] = (60 * label + 60, 200 - 50 * label, 90)
    return image


def write_images(folder: Path, scene: Scene) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (size_wh, objects) in scene.items():
        assert cv2.imwrite(str(folder / name), draw_image(size_wh, objects))


def coco_content(scene: Scene) -> dict:
    images, annotations = [], []
    for key, (name, (size_wh, objects)) in enumerate(scene.items(), start=1):
        width, height = size_wh
        images.append({"id": key, "file_name": name, "width": width, "height": height})
        for label, (x1, y1, x2, y2) in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": key,
                    "category_id": COCO_IDS[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": key, "name": name} for key, name in zip(COCO_IDS, CLASSES, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories[::-1]}


def write_coco(root: Path, scene: Scene = SCENE, *, split: str = "train") -> Path:
    write_images(root / "images" / split, scene)
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(coco_content(scene)))
    return path


def voc_object(name: str, corners: tuple, extra: str = "") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{box}</bndbox></object>"


def voc_text(name: str, size_wh: tuple[int, int], objects: list[str]) -> str:
    size = f"<size><width>{size_wh[0]}</width><height>{size_wh[1]}</height></size>"
    return f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"


def write_voc(root: Path, scene: Scene = SCENE, *, split: str = "train") -> Path:
    write_images(root / "JPEGImages", scene)
    folder = root / "Annotations"
    folder.mkdir(exist_ok=True)
    for name, (size_wh, objects) in scene.items():
        rows = [
            voc_object(CLASSES[label], (x1 + 1, y1 + 1, x2, y2))
            for label, (x1, y1, x2, y2) in objects
        ]
        (folder / name).with_suffix(".xml").write_text(voc_text(name, size_wh, rows))
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}.txt").write_text("".join(f"{Path(name).stem}\n" for name in scene))
    return root


def write_yolo(root: Path, scene: Scene = SCENE, *, split: str = "train") -> Path:
    write_images(root / "images" / split, scene)
    folder = root / "labels" / split
    folder.mkdir(parents=True, exist_ok=True)
    for name, ((width, height), objects) in scene.items():
        rows = [
            f"{label} {(x1 + x2) / 2 / width:.9f} {(y1 + y2) / 2 / height:.9f} "
            f"{(x2 - x1) / width:.9f} {(y2 - y1) / height:.9f}\n"
            for label, (x1, y1, x2, y2) in objects
        ]
        (folder / name).with_suffix(".txt").write_text("".join(rows))
    names = "".join(f"  {place}: {name}\n" for place, name in enumerate(CLASSES))
    (root / "data.yaml").write_text(f"# tiny\n{split}: images/{split}\nnames:\n{names}")
    return root


WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}
