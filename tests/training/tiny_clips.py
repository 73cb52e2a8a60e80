"""A small data set of video, in COCO's form."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np


def write_video(root: Path, *, is_video: bool = True) -> Path:
    """Two clips of a square that moves to the right, in a COCO file, frames out of order."""
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(7):
        video, place = divmod(number, 4)
        place = 3 - place  # the file lists frames from last to first
        picture = np.full((64, 96, 3), 40 * video, np.uint8)
        x = 10 + 5 * place
        picture[20:40, x : x + 20] = 200
        cv2.imwrite(str(root / "images" / f"{number}.png"), picture)
        entry = {"id": number, "file_name": f"{number}.png", "height": 64, "width": 96}
        where = {"video_id": 7 + video, "frame_index": place} if is_video else {}
        images.append(entry | where)
        corners = [x, 20, x + 20, 20, x + 20, 40, x, 40]
        annotations.append(
            {"id": number + 1, "image_id": number, "category_id": 3, "bbox": [x, 20, 20, 20],
             "area": 400, "iscrowd": 0, "segmentation": [corners], "track_id": 50 + video}
        )  # fmt: skip
    document = {"images": images, "annotations": annotations}
    document["categories"] = [{"id": 3, "name": "square"}]
    for split in ("train", "val"):
        (root / f"{split}.json").write_text(json.dumps(document))
    return root
