"""A source whose samples are kept on disk once they were made.

For rendered data, which costs more to make than to read. Images are kept as JPEG and come out the
same on every reading, the first included, so that a resumed run sees what the first saw.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import cv2
import numpy as np

from training.data.sample import Sample, Source

JPEG_QUALITY = 95
CACHE_FOLDER = Path("runs/.cache")


class CachedSource:
    """Keep the samples of a source in a folder; masks and keypoints are not kept.

    Args:
        source: asked once for each index.
        folder: made where missing; belongs to this source and split alone.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self.source = source
        self.folder = folder
        self.classes = source.classes
        self.category_ids = source.category_ids
        folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        path = self.folder / f"{index:07d}.npz"
        if not path.exists():
            self._keep(path, self.source[index])
        with np.load(path) as kept:
            return Sample(
                image=cv2.imdecode(kept["jpeg"], cv2.IMREAD_COLOR),
                boxes_xyxy=kept["boxes_xyxy"],
                classes=kept["classes"],
                is_crowd=kept["is_crowd"],
                image_id=int(kept["image_id"]),
                file_name=str(kept["file_name"]),
            )

    def _keep(self, path: Path, sample: Sample) -> None:
        _, jpeg = cv2.imencode(".jpg", sample.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as stream:
            np.savez(
                stream,
                jpeg=jpeg,
                boxes_xyxy=sample.boxes_xyxy,
                classes=sample.classes,
                is_crowd=sample.is_crowd,
                image_id=sample.image_id,
                file_name=sample.file_name,
            )
        temporary.replace(path)


def cached_street(source: Source, split: str) -> CachedSource:
    """Keep a split of the street under runs/.cache, by a hash of the code that draws it."""
    code = Path(__file__).parent / "street"
    digest = hashlib.sha256()
    for path in sorted(code.rglob("*.py")):
        digest.update(path.read_bytes())
    return CachedSource(source, CACHE_FOLDER / f"street-{split}-{digest.hexdigest()[:12]}")
