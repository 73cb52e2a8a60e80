"""What every source of frames offers: `Frame` and `Source`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]

POOL_SIZE = 16  # frames that wait for reuse; more than the pipeline ever holds


@dataclass(slots=True)
class Frame:
    """One picture of a source.

    Attributes:
        image_bgr: (H, W, 3) uint8; the holder's own until it is given to `Source.recycle`.
        index: 0, 1, 2 ... over the frames that the source decoded, dropped ones included.
        time_s: seconds since the first frame, by the video's time stamps or the clock; rising.
        captured_at: `time.perf_counter()` when a camera's picture came, or the reading of a file's
            frame began; a frame's age counts from here.
        capture_ms: reading and decoding, without the wait for a camera's next picture.
        source: the source's name.
    """

    image_bgr: Image
    index: int
    time_s: float
    captured_at: float
    capture_ms: float
    source: str


class Source(ABC):
    """Frames of a camera, a video or a folder of images, one after the other.

    Attributes:
        name: for people and for results.
        is_live: a camera: late frames are worthless, so the pipeline keeps the newest.
        fps: nominal frames a second, over 0.
        size_wh: (width, height) of the first frame, in pixels.
        num_promised: frames that the header promises; None where there is no end or no promise.
        num_decoded: frames delivered by `read` so far.
        num_corrupt: frames that could not be decoded, so far.
    """

    def __init__(self, name: str, *, fps: float, is_live: bool) -> None:
        self.name = name
        self.fps = fps
        self.is_live = is_live
        self.size_wh = (0, 0)
        self.num_promised: int | None = None
        self.num_decoded = 0
        self.num_corrupt = 0
        self._pool: deque[Image] = deque(maxlen=POOL_SIZE)

    @abstractmethod
    def read(self) -> Frame | None:
        """The next frame, or None at the end. For one thread.

        Raises:
            SourceError: the camera went away.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the device or file; twice is harmless."""

    def recycle(self, frame: Frame) -> None:
        """Give a frame's memory back for a later `read`; the frame is not to be used after it.

        Optional: a frame that is never given back is freed as usual. From any thread.
        """
        self._pool.append(frame.image_bgr)

    def take_buffer(self) -> Image | None:
        """A buffer given back earlier, or None. From any thread."""
        try:
            return self._pool.pop()
        except IndexError:
            return None

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self.read()) is not None:
            yield frame

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
