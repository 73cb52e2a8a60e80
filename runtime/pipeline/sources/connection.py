"""One connection to a live source, from its opening to its loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from runtime.pipeline.sources.base import Image

TakeBuffer = Callable[[], Image | None]


class ConnectionLost(Exception):  # noqa: N818 - what happened, and no fault of ours
    """The other side is not there, went away, or sends nothing; the text says why, for people."""


class StreamEnded(Exception):  # noqa: N818 - not an error
    """A video at the other side was read to its end."""


class Picture(NamedTuple):
    """What a connection gives.

    Attributes:
        image_bgr: (H, W, 3) uint8.
        captured_at: `time.perf_counter()` when it came.
        capture_ms: decoding, in milliseconds.
        time_s: by the stream's time stamps, where it is a video with an end; else None.
        may_be_cut: if the connection turns out to be lost right after it, it was cut off with it.
    """

    image_bgr: Image
    captured_at: float
    capture_ms: float
    time_s: float | None = None
    may_be_cut: bool = False


class Connection(Protocol):
    """Opened by whoever makes it. One thread opens, reads and closes it.

    Attributes:
        fps: nominal frames a second, over 0.
        has_end: it is a video of known length, such as a file on a web server, and no camera.
        num_corrupt: pictures that came and could not be decoded, so far.
    """

    fps: float
    has_end: bool
    num_corrupt: int

    def read(self, take_buffer: TakeBuffer) -> Picture | None:
        """The next picture; None where what came made none, or none that is whole.

        Args:
            take_buffer: gives memory of an earlier picture, of any size, or None.

        Raises:
            ConnectionLost: it is gone, or sent nothing for the time that it was opened with.
            StreamEnded: of one that `has_end`.
        """

    def close(self) -> None: ...


# Opens a connection. Raises ConnectionLost where another attempt may succeed, SourceError where
# none ever will.
Connect = Callable[[], Connection]
