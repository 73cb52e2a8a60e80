"""A folder, a pattern or a single file of images, in the order of their names."""

from __future__ import annotations

import glob
import logging
import re
import time
from pathlib import Path

import numpy as np

from runtime.contract.errors import SourceError
from runtime.pipeline.sources.base import Frame, Image, Source

IMAGES_PER_SECOND = 10.0  # of the video that is made of them

_log = logging.getLogger(__name__)


class ImageSource(Source):
    """Images as frames; one that does not decode is counted, named in the log and passed over."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, fps=IMAGES_PER_SECOND, is_live=False)
        self._paths = find_images(uri)
        self.num_promised = len(self._paths)
        self._next = 0
        self._first = self._load()
        if self._first is None:
            raise SourceError(
                f"source {uri}: not one of {len(self._paths)} images decodes; "
                "expected JPEG, PNG, BMP, WebP or TIFF. The files are damaged or of another kind."
            )
        height, width = self._first.image_bgr.shape[:2]
        self.size_wh = (width, height)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, in the order in which they are read."""
        return tuple(self._paths)

    def read(self) -> Frame | None:
        frame, self._first = self._first, None
        if frame is not None:
            frame.captured_at = time.perf_counter() - frame.capture_ms / 1000.0  # read when opened
            return frame
        return self._load()

    def close(self) -> None:
        self._next = len(self._paths)

    def _load(self) -> Frame | None:
        while self._next < len(self._paths):
            place = self._next
            path = self._paths[place]
            self._next += 1
            started = time.perf_counter()
            image = read_image(path)
            capture_ms = (time.perf_counter() - started) * 1000.0
            if image is None:
                self.num_corrupt += 1
                _log.warning("%s does not decode; passed over", path)
                continue
            self.num_decoded += 1
            index = self.num_decoded - 1
            return Frame(image, index, place / self.fps, started, capture_ms, str(path))
        return None


def find_images(uri: str) -> list[Path]:
    """Image files of a folder, a pattern ("photos/*.jpg") or a path; img2 comes before img10.

    Raises:
        SourceError: nothing there.
    """
    from runtime.pipeline.sources import IMAGE_SUFFIXES

    path = Path(uri)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        what = f"a folder without images ({', '.join(sorted(IMAGE_SUFFIXES))})"
    else:
        names = glob.glob(uri, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
        found = [Path(name) for name in names if Path(name).is_file()]
        what = "neither a file nor a folder, and no file matches it as a pattern"
    if not found:
        raise SourceError(f"source {uri} is {what}; expected images. Check the path.")
    return sorted(found, key=_natural_order)


def read_image(path: Path) -> Image | None:
    """(H, W, 3) uint8 BGR, turned upright as its EXIF says, or None if it does not decode."""
    import cv2

    try:
        data = np.fromfile(path, np.uint8)  # paths that OpenCV cannot spell are read, too
    except OSError:
        return None
    if data.size == 0:
        return None
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:  # a size beyond OpenCV's own limit
        return None
    return None if image is None else image.astype(np.uint8, copy=False)


def _natural_order(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
