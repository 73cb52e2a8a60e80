"""The newest annotated picture of each source, made into a JPEG when someone asks for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from runtime.pipeline.sinks.base import FrameResult, Sink
from runtime.pipeline.sources.base import Image

QUALITY = 80  # of the JPEGs, 0..100
UNSEEN_S = 1.0  # between pictures that are kept while nobody looks
LOOKING_S = (
    0.5  # since it asked for a picture, a client looks; one that is slow to take it does not
)
MOST_SPARE = 2  # pictures' memory that waits for use


class WebSink(Sink):
    """Leaves results on a board, and waits for nobody.

    Pictures are drawn and copied only while someone takes them, and once a second otherwise, so
    that a source that stops has a last picture to be seen.

    Args:
        board: where they are left.
        target: address, for people.
    """

    is_waited_for = False

    def __init__(self, board: Board, target: str) -> None:
        self.board = board
        self.target = target
        self.wants_picture = True

    def write(self, result: FrameResult) -> None:
        self.board.put(result)
        self.wants_picture = self.board.is_picture_due()

    def close(self) -> None:
        """Nothing: the server ends with the run."""


@dataclass(slots=True)
class Shown:
    """What a source showed last.

    Attributes:
        number: of its picture, rising; 0: none yet.
        image_bgr: the picture, drawn on; not to be changed.
        kept_at, seen_at: `time.monotonic()` of the picture, and of the last result.
        num_viewers: clients that are there. asked_at: when one asked for a picture last.
        age_ms, num_objects: of its last result, with a picture or without.
    """

    number: int = 0
    image_bgr: Image | None = None
    kept_at: float = -np.inf
    seen_at: float = -np.inf
    num_viewers: int = 0
    asked_at: float = -np.inf
    age_ms: float | None = None
    num_objects: int | None = None
    num_readers: int = 0  # that encode the picture now
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    jpeg: asyncio.Task[bytes] | None = None
    jpeg_number: int = 0


class Board:
    """The newest picture of each source, between the pipeline and the event loop.

    `put` is the pipeline's, from one thread; `bind`, `look`, `next` and `close` are the loop's.

    Args:
        names: of the sources; the first is shown to who names none.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.is_closed = False
        self._places = {name: Shown() for name in names}
        self._lock = threading.Lock()
        self._spare: list[Image] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._encoders = ThreadPoolExecutor(1, thread_name_prefix="web jpeg")

    # --- the pipeline's side

    def put(self, result: FrameResult) -> None:
        """Take a result; its picture only if it was drawn on and is wanted."""
        place = self._places[result.frame.source]
        place.age_ms, place.num_objects = result.age_ms, _count(result.results)
        place.seen_at = monotonic()
        if "draw" not in result.times_ms or not self._is_due(place):
            return
        picture = self._copy(result.frame.image_bgr)
        with self._lock:
            before, is_read = place.image_bgr, place.num_readers > 0
            place.image_bgr, place.number, place.num_readers = picture, place.number + 1, 0
            place.kept_at = place.seen_at
            if before is not None and not is_read and len(self._spare) < MOST_SPARE:
                self._spare.append(before)
            loop = self._loop if place.waiters else None
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._wake, place)
            except RuntimeError:  # the loop has ended
                return

    def is_picture_due(self) -> bool:
        """Whether the next result's picture is wanted."""
        return any(self._is_due(place) for place in self._places.values())

    def _is_due(self, place: Shown) -> bool:
        """Of a source that gives nothing there is nothing to be drawn: only its results count."""
        is_seen = bool(place.waiters) or place.seen_at - place.asked_at < LOOKING_S
        return is_seen or place.seen_at - place.kept_at >= UNSEEN_S

    def _copy(self, image_bgr: Image) -> Image:
        with self._lock:
            buffer = self._spare.pop() if self._spare else None
        if buffer is None or buffer.shape != image_bgr.shape:
            buffer = np.empty_like(image_bgr)
        np.copyto(buffer, image_bgr)
        return buffer

    # --- the loop's side

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say which loop waits for pictures."""
        self._loop = loop

    def last(self, name: str) -> Shown:
        """What a source showed last."""
        return self._places[name]

    @property
    def num_viewers(self) -> int:
        """Of all sources."""
        return sum(place.num_viewers for place in self._places.values())

    def look(self, name: str, step: int) -> None:
        """Count a viewer in (1) or out (-1)."""
        self._places[name].num_viewers += step

    async def next(self, name: str, after: int, wait_s: float) -> tuple[int, bytes] | None:
        """A picture's number and JPEG: the newest, where its number is above `after`.

        Each picture is encoded once at most, whoever asks.

        Args:
            after: 0 takes any; else a newer one is waited for.
            wait_s: so long.

        Returns:
            None where none came in time, or the run is over.
        """
        place = self._places[name]
        place.asked_at = monotonic()
        with self._lock:
            waiter: asyncio.Future[None] | None = None
            if place.number <= after and not self.is_closed:
                waiter = asyncio.get_running_loop().create_future()
                place.waiters.append(waiter)
        if waiter is not None:
            await asyncio.wait((waiter,), timeout=wait_s)
            if waiter in place.waiters:
                place.waiters.remove(waiter)
        if place.number <= after or self.is_closed:
            return None
        if place.jpeg is None or place.jpeg_number != place.number:
            with self._lock:
                number, image = place.number, place.image_bgr
                place.num_readers += 1
            assert image is not None
            place.jpeg_number = number
            place.jpeg = asyncio.ensure_future(self._encode(place, number, image))
        number = place.jpeg_number
        return number, await asyncio.shield(place.jpeg)

    async def _encode(self, place: Shown, number: int, image_bgr: Image) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._encoders, encode_jpeg, image_bgr)
        finally:
            with self._lock:
                if place.number == number:
                    place.num_readers -= 1
                elif len(self._spare) < MOST_SPARE:  # a newer one took its place meanwhile
                    self._spare.append(image_bgr)

    def _wake(self, place: Shown) -> None:
        with self._lock:
            waiters, place.waiters = place.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """It is over: nobody waits any longer."""
        self.is_closed = True
        for place in self._places.values():
            self._wake(place)
        self._encoders.shutdown(wait=False)


def encode_jpeg(image_bgr: Image) -> bytes:
    """A picture, (H, W, 3) uint8 BGR, as JPEG."""
    import cv2

    is_done, jpeg = cv2.imencode(".jpg", image_bgr, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
    assert is_done
    return bytes(jpeg.tobytes())


def _count(results: object) -> int | None:
    """Objects of a frame: of the first bundle, where there are several."""
    first = getattr(results, "first", results)
    return len(first) if hasattr(first, "__len__") else None
