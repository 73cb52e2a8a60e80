"""A folder, a pattern or a single file of images, in the order of their names."""

from __future__ import annotations

import glob
import logging
import re
import time
from pathlib import Path

from runtime.contract.errors import SourceError, one_line
from runtime.pipeline.sources.base import Frame, Source
from runtime.pipeline.sources.image_decoding import read_image
from runtime.pipeline.sources.network import as_shown

IMAGES_PER_SECOND = 10.0  # of the video that is made of them

_log = logging.getLogger(__name__)


class ImageSource(Source):
    """Images as frames; one that does not decode is counted, named in the log and passed over."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, fps=IMAGES_PER_SECOND, is_live=False)
        self._paths = find_images(uri)
        self.num_promised = len(self._paths)
        self._next = 0
        self._last_error = ""
        self._first = self._load()
        if self._first is None:
            what = (
                f"not one of {len(self._paths)} images of {uri} decodes; {self._last_error}"
                if len(self._paths) > 1
                else self._last_error
            )
            raise SourceError(
                f"source: {what}. Expected images that are whole: JPEG, PNG, BMP, WebP or TIFF."
            )
        height, width = self._first.image_bgr.shape[:2]
        self.size_wh = (width, height)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, in the order in which they are read."""
        return tuple(self._paths)

    def read(self) -> Frame | None:
        frame, self._first = self._first, None
        if frame is not None:  # read when opened
            frame.captured_at = time.perf_counter() - frame.capture_ms / 1000.0
            frame.wall_time_s = time.time() - frame.capture_ms / 1000.0
            return frame
        return self._load()

    def recycle(self, frame: Frame) -> None:
        """Images differ in size, so their memory is not kept."""

    def close(self) -> None:
        self._next = len(self._paths)

    def _load(self) -> Frame | None:
        while self._next < len(self._paths):
            place = self._next
            path = self._paths[place]
            self._next += 1
            started, started_wall_s = time.perf_counter(), time.time()
            try:
                image = read_image(path)
            except SourceError as error:
                self.num_corrupt += 1
                self._last_error = str(error)
                _log.warning("%s; passed over", error)
                continue
            capture_ms = (time.perf_counter() - started) * 1000.0
            self.num_decoded += 1
            index = self.num_decoded - 1
            time_s = place / self.fps
            return Frame(
                image, index, time_s, started, capture_ms, self.name, started_wall_s, str(path)
            )
        return None


def find_images(uri: str) -> list[Path]:
    """Image files of a folder, a pattern ("photos/*.jpg") or a path; img2 comes before img10.

    Raises:
        SourceError: nothing there.
    """
    from runtime.pipeline.sources import IMAGE_SUFFIXES

    path = Path(uri)
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            found = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
            what = f"a folder without images ({', '.join(sorted(IMAGE_SUFFIXES))})"
        else:
            # Path.glob refuses absolute patterns.
            found = [Path(name) for name in glob.glob(uri, recursive=True)]  # noqa: PTH207
            what = "neither a file nor a folder, and no file matches it as a pattern"
        found = [each for each in found if each.is_file()]
    except OSError as error:
        raise SourceError(f"source {as_shown(uri)} cannot be read: {one_line(error)}.") from None
    if not found:
        raise SourceError(f"source {as_shown(uri)} is {what}; expected images. Check the path.")
    return sorted(found, key=_natural_order)


def _natural_order(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
