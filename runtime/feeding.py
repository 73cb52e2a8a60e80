"""From frames and thresholds to what a graph is fed, in memory that is used again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.contract.manifest import Manifest
from runtime.contract.outputs import IMAGE, SCORE_THRESHOLD
from runtime.preprocess import Frame, Letterbox, frame_hw
from runtime.sessions.base import Array, FrameStream, RawFrames, Stream, Ticket
from runtime.sessions.frame_upload import frames_for_gpu
from runtime.tasks import IouThreshold, ScoreThreshold, Task

_PADDING_THRESHOLD = 2.0  # rows that only fill a batch: no score exceeds it
_MOST_LETTERBOXES = 256  # kept: a folder of images of all sizes has more
_MOST_THRESHOLDS = 64  # kept: a slider that is being dragged gives more


class Buffer:
    """The engine's input, (B, H, W, 3), and whose border each row holds."""

    def __init__(self, batch: int, manifest: Manifest) -> None:
        geometry = manifest.geometry
        shape = (batch, geometry.height, geometry.width, 3)
        self.images = np.full(shape, geometry.pad_value, np.uint8)
        self._owners: list[Letterbox | None] = [None] * batch

    def fill(self, frames: Sequence[Frame], letterboxes: Sequence[Letterbox]) -> None:
        """Write frames into the first rows; what is in the others does not matter."""
        for row, (frame, letterbox) in enumerate(zip(frames, letterboxes, strict=True)):
            is_new = self._owners[row] is not letterbox
            self._owners[row] = None  # whose border it is stays open if the next line fails
            letterbox.apply(frame, self.images[row], fill_border=is_new)
            self._owners[row] = letterbox


@dataclass(frozen=True, slots=True)
class Prepared:
    """What one inference is fed, and how its results find their way back.

    Attributes:
        buffer: holds the frames, letterboxed; None where the stream does it.
        letterboxes: of the frames; rows of the batch beyond them are padding.
        thresholds: the graph's other inputs.
        frames: for a stream that letterboxes them; None where `buffer` holds them.
    """

    buffer: Buffer | None
    letterboxes: list[Letterbox]
    thresholds: dict[str, Array]
    frames: RawFrames | None = None

    def submit_to(self, stream: Stream, graph: str) -> Ticket:
        """Start the inference."""
        if self.frames is not None:
            assert isinstance(stream, FrameStream)
            return stream.submit_frames(self.frames, self.thresholds, graph)
        assert self.buffer is not None
        return stream.submit({IMAGE.name: self.buffer.images, **self.thresholds}, graph)

    @property
    def first_picture(self) -> Frame:
        """The first frame as the network sees it, without the border; a view."""
        assert self.buffer is not None
        return self.letterboxes[0].content_of(self.buffer.images[0])


class Feeder:
    """Prepares the frames of one stream. For one thread.

    Args:
        manifest: of the bundle. task: its task.
        leaves_frames: give frames as they are to a stream that letterboxes them, where it can.
    """

    def __init__(self, manifest: Manifest, task: Task, *, leaves_frames: bool = False) -> None:
        self._leaves_frames = leaves_frames
        self.batches = sorted(manifest.batches)
        self._manifest = manifest
        self._task = task
        self._letterboxes: dict[tuple[int, int], Letterbox] = {}
        self._thresholds: dict[Any, dict[str, Array]] = {}
        self._free: dict[int, list[Buffer]] = {batch: [] for batch in self.batches}

    def prepare(
        self, frames: Sequence[Frame], score: ScoreThreshold, iou: IouThreshold
    ) -> Prepared:
        """Make the smallest batch that holds some frames.

        Raises:
            SourceError: something that is no frame.
            ValueError: a wrong threshold.
        """
        size = next(batch for batch in self.batches if batch >= len(frames))
        letterboxes = [self._letterbox(frame) for frame in frames]
        thresholds = self._feed_thresholds(size, len(frames), score, iou)
        if self._leaves_frames:
            raw = frames_for_gpu(frames, letterboxes)
            if raw is not None:
                return Prepared(None, letterboxes, thresholds, RawFrames(raw, letterboxes, size))
        free = self._free[size]
        buffer = free.pop() if free else Buffer(size, self._manifest)
        prepared = Prepared(buffer, letterboxes, thresholds)
        try:
            buffer.fill(frames, letterboxes)
        except BaseException:
            self.take_back(prepared)
            raise
        return prepared

    def take_back(self, prepared: Prepared) -> None:
        """Use its memory again; the engine must have read it."""
        if prepared.buffer is not None:
            self._free[len(prepared.buffer.images)].append(prepared.buffer)

    def _letterbox(self, frame: Frame) -> Letterbox:
        source_hw = frame_hw(frame)
        letterbox = self._letterboxes.get(source_hw)
        if letterbox is None:
            if len(self._letterboxes) > _MOST_LETTERBOXES:
                self._letterboxes.clear()
            letterbox = Letterbox.fit(source_hw, self._manifest.geometry)
            self._letterboxes[source_hw] = letterbox
        return letterbox

    def _feed_thresholds(
        self, size: int, num_frames: int, score: ScoreThreshold, iou: IouThreshold
    ) -> dict[str, Array]:
        """The threshold inputs; those of plain numbers are kept."""
        is_plain = isinstance(score, float | int | None) and isinstance(iou, float | int | None)
        key = (size, num_frames, score, iou)
        if is_plain and key in self._thresholds:
            return self._thresholds[key]
        given = self._task.thresholds(self._manifest, num_frames, score, iou)
        feeds: dict[str, Array] = {}
        for name, rows in given.items():
            padding = np.repeat(rows[-1:], size - num_frames, axis=0)
            if name == SCORE_THRESHOLD.name:
                padding[:] = _PADDING_THRESHOLD
            feeds[name] = np.concatenate([rows, padding])
        if is_plain:
            if len(self._thresholds) > _MOST_THRESHOLDS:
                self._thresholds.clear()
            self._thresholds[key] = feeds
        return feeds
