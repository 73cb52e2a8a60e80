"""From a frame to results: the runtime's front door for Python programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np

from runtime.contract.bundle import Bundle
from runtime.contract.errors import BundleError, SessionError
from runtime.contract.manifest import Manifest
from runtime.contract.outputs import IMAGE, SCORE_THRESHOLD
from runtime.preprocess import Frame, Letterbox, frame_hw
from runtime.results import Detections
from runtime.sessions import open_session
from runtime.sessions.base import Array, Session, Stream, Ticket
from runtime.tasks import IouThreshold, ScoreThreshold, load_task

_PADDING_THRESHOLD = 2.0  # rows that only fill a batch: no score exceeds it


def load(
    path: str | Path,
    backend: str = "auto",
    precision: str | None = None,
    *,
    allow_unverified: bool = False,
    **options: Any,
) -> Predictor:
    """Load a bundle and make it ready for frames.

    Args:
        path: a bundle's folder, or one .onnx file of a one-graph model.
        backend: "auto", "tensorrt", "tensorrt_rtx", "onnxruntime" or "openvino".
        precision: one of the bundle's; None takes fp16 on a GPU and fp32 on a CPU.
        allow_unverified: load an artifact whose verdict is "fail".
        **options: the backend's own, e.g. threads=2.

    Raises:
        BundleError: no bundle there, damaged, lacks the precision, or failed its verification.
        SessionError: no backend can run it.
    """
    bundle = Bundle.open(path, allow_unverified=allow_unverified)
    load_task(bundle.manifest.task)  # a task that is unknown should not cost an engine build
    try:
        return Predictor(open_session(bundle, backend, precision, **options), bundle.manifest)
    except BundleError:
        now = Bundle.open(path, allow_unverified=allow_unverified)
        if now.manifest == bundle.manifest:
            raise
    # An export put another bundle there meanwhile, and files of two do not go together.
    return Predictor(open_session(now, backend, precision, **options), now.manifest)


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one frame or batch went, in milliseconds.

    Attributes:
        preprocess_ms: frames to the network's input.
        engine_ms: from submission until the results are read; with overlap, other work included.
        finish_ms: outputs to results in source pixels.
    """

    preprocess_ms: float
    engine_ms: float
    finish_ms: float


class Predictor:
    """Runs frames through a session.

    Not to be shared between threads: give each thread (and each camera) its own by
    `open_stream()`, which shares the engine. A context manager; closing ends the engine only in
    the predictor that `load` gave.
    """

    def __init__(self, session: Session, manifest: Manifest, *, owns_session: bool = True) -> None:
        self.manifest = manifest
        self.timings: Timings | None = None  # of the result read last
        self._session = session
        self._owns_session = owns_session
        self._task = load_task(manifest.task)
        self._stream: Stream | None = session.open_stream()
        self._letterboxes: dict[tuple[int, int], Letterbox] = {}
        self._thresholds: dict[Any, dict[str, Array]] = {}
        self._free: dict[int, list[_Buffer]] = {}
        self._batches = sorted(manifest.batches)

    @property
    def backend(self) -> str:
        """Which of "onnxruntime", "openvino", "tensorrt" and "tensorrt_rtx" runs."""
        return self._session.backend

    @property
    def device(self) -> str:
        """The device in words."""
        return self._session.device

    @property
    def precision(self) -> str:
        """The bundle's precision that runs."""
        return self._session.precision

    def __call__(
        self,
        frame_bgr: Frame,
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
    ) -> Detections:
        """Detect in one frame.

        Args:
            frame_bgr: (h, w, 3) uint8 BGR of any size; BGRA and grey are converted.
            score_threshold: one number, one a class, {class name: number}, or None for the
                bundle's default.
            iou_threshold: 0..1, or None for the bundle's default.

        Returns:
            Results in pixels of the frame, by falling score.
        """
        return self.submit(frame_bgr, score_threshold, iou_threshold).result()

    def submit(
        self,
        frame_bgr: Frame,
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
    ) -> FrameTicket:
        """Start on one frame and return; as `__call__`. The frame may be reused at once."""
        return FrameTicket(self._submit([frame_bgr], score_threshold, iou_threshold))

    def batch(
        self,
        frames_bgr: Sequence[Frame],
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
    ) -> list[Detections]:
        """Detect in several frames, sizes may differ; one result each, in order.

        The frames go in the manifest's batch sizes; the last batch is filled up to the next one.
        """
        largest = self._batches[-1]
        results: list[Detections] = []
        for start in range(0, len(frames_bgr), largest):
            rows = slice(start, start + largest)
            limits = (_rows_of(score_threshold, rows, 2), _rows_of(iou_threshold, rows, 1))
            results += self._submit(frames_bgr[rows], *limits).results()
        return results

    def draw(self, frame_bgr: Frame, result: Detections) -> Frame:
        """Draw a result into its frame, in place."""
        return self._task.draw(frame_bgr, result)

    def warm_up(self) -> None:
        """Run every batch size once on blank input, so that no frame pays for the first run."""
        geometry = self.manifest.geometry
        blank = np.full((geometry.height, geometry.width, 3), geometry.pad_value, np.uint8)
        for batch in self._batches:
            self.batch([blank] * batch)
        self.timings = None

    def open_stream(self) -> Predictor:
        """A predictor for one more camera or thread, on the same engine."""
        return Predictor(self._session, self.manifest, owns_session=False)

    def close(self) -> None:
        """Free the stream, and the engine where this predictor owns it; twice is harmless."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            if self._owns_session:
                self._session.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _submit(
        self,
        frames: Sequence[Frame],
        score_threshold: ScoreThreshold,
        iou_threshold: IouThreshold,
    ) -> _BatchTicket:
        if self._stream is None:
            raise SessionError("this predictor is closed. Load the bundle again.")
        start = perf_counter()
        size = next(batch for batch in self._batches if batch >= len(frames))
        letterboxes = [self._letterbox(frame) for frame in frames]
        feeds = self._feed_thresholds(size, len(frames), score_threshold, iou_threshold)
        free = self._free.setdefault(size, [])
        buffer = free.pop() if free else _Buffer(size, self.manifest)
        try:
            buffer.fill(frames, letterboxes)
            done = perf_counter()
            ticket = self._stream.submit({IMAGE.name: buffer.images, **feeds})
        except BaseException:
            free.append(buffer)
            raise
        return _BatchTicket(self, ticket, buffer, letterboxes, (start, done))

    def _letterbox(self, frame: Frame) -> Letterbox:
        source_hw = frame_hw(frame)
        letterbox = self._letterboxes.get(source_hw)
        if letterbox is None:
            if len(self._letterboxes) > 256:  # a folder of images of all sizes
                self._letterboxes.clear()
            letterbox = Letterbox.fit(source_hw, self.manifest.geometry)
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
        given = self._task.thresholds(self.manifest, num_frames, score, iou)
        feeds: dict[str, Array] = {}
        for name, rows in given.items():
            padding = np.repeat(rows[-1:], size - num_frames, axis=0)
            if name == SCORE_THRESHOLD.name:
                padding[:] = _PADDING_THRESHOLD
            feeds[name] = np.concatenate([rows, padding])
        if is_plain:
            if len(self._thresholds) > 64:  # a slider that is being dragged
                self._thresholds.clear()
            self._thresholds[key] = feeds
        return feeds


class FrameTicket:
    """A frame under way."""

    def __init__(self, ticket: _BatchTicket) -> None:
        self._ticket = ticket

    def result(self) -> Detections:
        """Wait for the frame's result; again gives the same."""
        return self._ticket.results()[0]

    @property
    def timings(self) -> Timings | None:
        """Where the time went; None until `result` was called."""
        return self._ticket.timings


class _Buffer:
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


class _BatchTicket:
    """A batch under way; its input buffer goes back when the engine has read it."""

    def __init__(
        self,
        predictor: Predictor,
        ticket: Ticket,
        buffer: _Buffer,
        letterboxes: list[Letterbox],
        marks: tuple[float, float],
    ) -> None:
        self.timings: Timings | None = None
        self._predictor = predictor
        self._ticket = ticket
        self._buffer: _Buffer | None = buffer
        self._letterboxes = letterboxes
        self._marks = marks
        self._results: list[Detections] = []

    def results(self) -> list[Detections]:
        if self._buffer is None:
            return self._results
        predictor, (start, submitted) = self._predictor, self._marks
        outputs = self._ticket.result()
        answered = perf_counter()
        buffer, self._buffer = self._buffer, None
        predictor._free[len(buffer.images)].append(buffer)
        self._results = predictor._task.finish(outputs, self._letterboxes, predictor.manifest)
        end = perf_counter()
        self.timings = Timings(
            (submitted - start) * 1e3, (answered - submitted) * 1e3, (end - answered) * 1e3
        )
        predictor.timings = self.timings
        return self._results


def _rows_of(threshold: Any, rows: slice, num_sides: int) -> Any:
    """The rows of a threshold that has one for each frame; any other kind as it is."""
    if threshold is None or isinstance(threshold, Mapping):
        return threshold
    values = np.asarray(threshold, np.float32)
    return values[rows] if values.ndim == num_sides else threshold
