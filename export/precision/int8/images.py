"""The frames that int8 is calibrated on: evenly spread over a source, at network size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.contract.errors import SourceError
from runtime.contract.manifest import InputGeometry
from runtime.preprocess import Letterbox
from training.data import DataError, open_data
from training.data.records import IMAGE_SUFFIXES, read_image
from training.data.sample import Source

VIDEO_SUFFIXES = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mjpg"}

Image = NDArray[np.uint8]
Opener = Callable[[str, str], Source]  # of a data set and a split


class CalibrationFrames:
    """Frames of one source; going through them reads one at a time, again each time.

    Attributes:
        data: what they come from, as it was named.
        num_frames: how many there are; fewer than asked for where the source is smaller.
        sha256: of the pixels that are fed, in order; empty until they were gone through.
    """

    def __init__(
        self, data: str, geometry: InputGeometry, count: int, opened: Opener = open_data
    ) -> None:
        """Open the source.

        Args:
            data: "street" or a data set's folder (its training split), a folder of pictures, or
                a video file.
            geometry: of the network's input.
            count: how many frames at most, evenly spread over the source.
            opened: opens a split of a data set.

        Raises:
            DataError, SourceError: nothing there that holds frames.
        """
        if count < 1:
            raise SourceError(f"{count} calibration frames were asked for. Give 1 or more.")
        self.data = data
        self._geometry = geometry
        self._source = _open(data, opened)
        self._places = np.unique(
            np.linspace(0, len(self._source) - 1, min(count, len(self._source))).round().astype(int)
        )
        self.num_frames = len(self._places)
        self.sha256 = ""

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[Image]:
        """(H, W, 3) uint8 BGR frames, letterboxed as the runtime does it."""
        digest = hashlib.sha256()
        for image in self._source.read(self._places.tolist()):
            frame = Letterbox.fit(image.shape[:2], self._geometry).apply(image)
            digest.update(str(frame.shape).encode())
            digest.update(frame.data)
            yield frame
        self.sha256 = digest.hexdigest()

    def hash(self) -> str:
        """`sha256`, gone through for it where that was not done yet."""
        if not self.sha256:
            for _ in self:
                pass
        return self.sha256


class _DataSet:
    def __init__(self, data: str, opened: Opener) -> None:
        self._samples = opened(data, "train")

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, places: list[int]) -> Iterator[Image]:
        for place in places:
            yield self._samples[place].image


class _Pictures:
    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def read(self, places: list[int]) -> Iterator[Image]:
        for place in places:
            path = self._folder / self._names[place]
            image = read_image(path)
            if image is None:
                raise SourceError(f"{path} cannot be read as a picture. Mend or remove it.")
            yield image


class _Video:
    """A video file; it is decoded from its start each time, since seeking is not exact."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = sum(1 for _ in self._grab())
        if not self._count:
            raise SourceError(f"{path} holds no frame that OpenCV decodes. Give another file.")

    def __len__(self) -> int:
        return self._count

    def read(self, places: list[int]) -> Iterator[Image]:
        wanted = {*places}
        for place, capture in enumerate(self._grab()):
            if place in wanted:
                is_read, image = capture.retrieve()
                if not is_read:
                    raise SourceError(f"frame {place} of {self._path} cannot be decoded.")
                yield image

    def _grab(self) -> Iterator[cv2.VideoCapture]:
        capture = cv2.VideoCapture(str(self._path))
        try:
            while capture.grab():
                yield capture
        finally:
            capture.release()


def _open(data: str, opened: Opener) -> _DataSet | _Pictures | _Video:
    path = Path(data).expanduser()
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return _Video(path)
    try:
        return _DataSet(data, opened)
    except DataError:
        names = [] if not path.is_dir() else sorted(each.name for each in path.iterdir())
        pictures = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        if not pictures:
            raise
        return _Pictures(path, pictures)
