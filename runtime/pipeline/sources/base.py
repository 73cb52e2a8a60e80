"""What every source of frames offers: `Frame` and `Source`."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]

POOL_SIZE = 16  # frames that wait for reuse; more than the pipeline ever holds

_log = logging.getLogger(__name__)


class SourceState(str, Enum):
    """What a source is doing; see `Source.set_state`."""

    OPENING = "opening"
    RUNNING = "running"
    STALLED = "stalled"  # open, but no picture came for longer than its time allows
    RECONNECTING = "reconnecting"
    ENDED = "ended"
    FAILED = "failed"  # lost for good


class NoFrameYet(TimeoutError):  # noqa: N818 - not an error: call again
    """A live source has no new picture yet; its reader looks at the stop signal and calls again."""


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
        wall_time_s: Unix time of `captured_at`, seconds.
        file: path of the picture, of a source of images; else "".
    """

    image_bgr: Image
    index: int
    time_s: float
    captured_at: float
    capture_ms: float
    source: str
    wall_time_s: float = field(default_factory=time.time)
    file: str = ""


class Source(ABC):
    """Frames of a camera, a video or a folder of images, one after the other.

    Attributes:
        name: for people and for results.
        is_live: a camera: late frames are worthless, so the pipeline keeps the newest.
        fps: nominal frames a second, over 0.
        size_wh: (width, height) of the first frame, in pixels; (0, 0) of a live source that is not
            there yet.
        num_promised: frames that the header promises; None where there is no end or no promise.
        num_decoded: frames delivered by `read` so far.
        num_overtaken: frames that a newer one replaced before `read` came for them, so far.
        num_corrupt: frames that could not be decoded, so far.
        num_reconnects: times that it was lost and came back, so far; or came when others ran.
        state: what it is doing.
        on_state: called with the source, its new state and the reason, on the reader's thread.
    """

    def __init__(self, name: str, *, fps: float, is_live: bool) -> None:
        self.name = name
        self.fps = fps
        self.is_live = is_live
        self.size_wh = (0, 0)
        self.num_promised: int | None = None
        self.num_decoded = 0
        self.num_overtaken = 0
        self.num_corrupt = 0
        self.num_reconnects = 0
        self.state = SourceState.OPENING
        self.on_state: Callable[[Source, SourceState, str], None] | None = None
        self._pool: deque[Image] = deque(maxlen=POOL_SIZE)

    @abstractmethod
    def read(self) -> Frame | None:
        """The next frame, or None at the end. For one thread.

        Raises:
            NoFrameYet: nothing came for a while (1 s at most); call again.
            SourceError: the camera went away for good.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the device or file; twice is harmless."""

    def set_state(self, state: SourceState, reason: str = "") -> None:
        """Note a change: one line in the log, and `on_state`. The same state again is no change.

        A file's states are logged for debugging only, but for its failure.
        """
        if state is self.state:
            return
        self.state = state
        is_worth_a_line = self.is_live or state is SourceState.FAILED
        _log.log(
            logging.INFO if is_worth_a_line else logging.DEBUG,
            "%s: %s%s",
            self.name,
            state.value,
            f" ({reason})" if reason else "",
            extra={"event": "state", "source": self.name, "state": state.value, "reason": reason},
        )
        if self.on_state is not None:
            self.on_state(self, state, reason)

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
        while True:
            try:
                frame = self.read()
            except NoFrameYet:
                continue
            if frame is None:
                return
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
