"""From a frame to results: the runtime's front door for Python programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np

from runtime.contract.bundle import Bundle
from runtime.contract.errors import BundleError, SessionError
from runtime.contract.manifest import Manifest
from runtime.contract.outputs import CHANGE, KEY, NONKEY
from runtime.feeding import Feeder, Prepared
from runtime.keyframes import (
    Choice,
    KeyframeOptions,
    KeyframeScheduler,
    KeyframeSummary,
    Sight,
    thumbnail_of,
)
from runtime.preprocess import Frame
from runtime.results import Detections
from runtime.sessions import open_session
from runtime.sessions.base import FrameStream, Results, Session, Stream
from runtime.tasks import IouThreshold, ScoreThreshold, load_task
from runtime.tickets import BatchTicket, FrameTicket, Timings

__all__ = ["FrameTicket", "Predictor", "Timings", "load"]


def load(
    path: str | Path,
    backend: str = "auto",
    precision: str | None = None,
    *,
    allow_unverified: bool = False,
    schedule: str | None = None,
    key_interval: int | None = None,
    max_key_age_ms: float | None = None,
    **options: Any,
) -> Predictor:
    """Load a bundle and make it ready for frames.

    Args:
        path: a bundle's folder, or one .onnx file of a one-graph model.
        backend: "auto", "tensorrt", "tensorrt_rtx", "onnxruntime" or "openvino".
        precision: one of the bundle's; None takes fp16 on a GPU and fp32 on a CPU.
        allow_unverified: load an artifact whose verdict is "fail".
        schedule, key_interval, max_key_age_ms: of a temporal model: which frames are key frames,
            as in `KeyframeOptions`; None takes its default.
        **options: the backend's own, e.g. threads=2.

    Raises:
        BundleError: no bundle there, damaged, lacks the precision, or failed its verification.
        SessionError: no backend can run it.
        ValueError: a wrong schedule, or one for a model that has no key frames.
    """
    asked = {
        "schedule": schedule,
        "key_interval": key_interval,
        "max_key_age_ms": max_key_age_ms,
    }
    bundle = Bundle.open(path, allow_unverified=allow_unverified)
    load_task(bundle.manifest.task)  # a task that is unknown should not cost an engine build
    keyframes = _keyframe_options(bundle, asked)
    try:
        session = open_session(bundle, backend, precision, **options)
    except BundleError:
        now = Bundle.open(path, allow_unverified=allow_unverified)
        if now.manifest == bundle.manifest:
            raise
        # An export put another bundle there meanwhile, and files of two do not go together.
        bundle, keyframes = now, _keyframe_options(now, asked)
        session = open_session(bundle, backend, precision, **options)
    return Predictor(session, bundle.manifest, keyframes=keyframes)


class Predictor:
    """Runs frames through a session.

    Not to be shared between threads: give each thread (and each camera) its own by
    `open_stream()`, which shares the engine. A context manager; closing ends the engine only in
    the predictor that `load` gave. Of a temporal model the frames are to be those of one camera in
    their order; each stream has key frames of its own.
    """

    def __init__(
        self,
        session: Session,
        manifest: Manifest,
        *,
        owns_session: bool = True,
        keyframes: KeyframeOptions | None = None,
    ) -> None:
        self.manifest = manifest
        self.timings: Timings | None = None  # of the result read last
        self._session = session
        self._owns_session = owns_session
        self._task = load_task(manifest.task)
        self._stream: Stream | None = session.open_stream()
        # Key frames are chosen by what the network sees, which must then be seen here, too.
        takes_frames = isinstance(self._stream, FrameStream) and self._stream.takes_frames
        leaves_frames = takes_frames and not manifest.state
        self._feeder = Feeder(manifest, self._task, leaves_frames=leaves_frames)
        self._keyframes = keyframes or KeyframeOptions()
        self._scheduler = KeyframeScheduler(self._keyframes) if manifest.state else None

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

    @property
    def batches(self) -> tuple[int, ...]:
        """How many frames of different cameras `submit_together` may take; rising, from 1.

        A temporal model's frame reads what its own camera left: (1,).
        """
        return (1,) if self.manifest.state else tuple(sorted({1, *self._feeder.batches}))

    @property
    def keyframes(self) -> KeyframeSummary | None:
        """Key frames and others so far, and their times; None of a model that has none."""
        return None if self._scheduler is None else self._scheduler.summary()

    def __call__(
        self,
        frame_bgr: Frame,
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
        *,
        time_s: float | None = None,
        num_dropped: int = 0,
    ) -> Detections:
        """Detect in one frame.

        Args:
            frame_bgr: (h, w, 3) uint8 BGR of any size; BGRA and grey are converted.
            score_threshold: one number, one a class, {class name: number}, or None for the
                bundle's default.
            iou_threshold: 0..1, or None for the bundle's default.
            time_s: when the frame was taken, for the age of key frames: by the video's time stamps
                or any clock that runs forward; None is now.
            num_dropped: frames of the camera that were lost since the one before.

        Returns:
            Results in pixels of the frame, by falling score.
        """
        return self.submit(
            frame_bgr, score_threshold, iou_threshold, time_s=time_s, num_dropped=num_dropped
        ).result()

    def submit(
        self,
        frame_bgr: Frame,
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
        *,
        time_s: float | None = None,
        num_dropped: int = 0,
    ) -> FrameTicket:
        """Start on one frame and return; as `__call__`. The frame may be reused at once."""
        taken = (perf_counter() if time_s is None else time_s, num_dropped)
        return FrameTicket(self._submit([frame_bgr], score_threshold, iou_threshold, taken))

    def submit_together(
        self,
        frames_bgr: Sequence[Frame],
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
    ) -> list[FrameTicket]:
        """Start on frames of different cameras in one engine call and return.

        Of a temporal model all are key frames, as of `batch`.

        Args:
            frames_bgr: 1 or more, at most the largest of `batches`; may be reused at once.
            score_threshold, iou_threshold: as of `batch`.

        Returns:
            A ticket for each frame, in order.
        """
        assert 1 <= len(frames_bgr) <= self._feeder.batches[-1]
        ticket = self._submit(frames_bgr, score_threshold, iou_threshold)
        return [FrameTicket(ticket, row) for row in range(len(frames_bgr))]

    def batch(
        self,
        frames_bgr: Sequence[Frame],
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
    ) -> list[Detections]:
        """Detect in several frames, sizes may differ; one result each, in order.

        The frames go in the manifest's batch sizes; the last batch is filled up to the next one.
        They need have nothing to do with each other: of a temporal model all are key frames.
        """
        largest = self._feeder.batches[-1]
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
        for batch in reversed(self._feeder.batches):
            self.batch([blank] * batch)
        if self._scheduler is not None:
            between = Choice(NONKEY, "", 0, 1)
            self._submit([blank], None, None, choice=between).results()
            self._scheduler = KeyframeScheduler(self._keyframes)
        self.timings = None

    def restart(self, reason: str = "asked") -> None:
        """Begin anew, as after a seek or a reconnect: the next frame is a key frame.

        Args:
            reason: for the counters of `keyframes`.
        """
        if self._scheduler is not None:
            self._scheduler.restart(reason)

    def open_stream(self) -> Predictor:
        """A predictor for one more camera or thread, on the same engine."""
        return Predictor(
            self._session, self.manifest, owns_session=False, keyframes=self._keyframes
        )

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
        taken: tuple[float, int] | None = None,
        choice: Choice | None = None,
    ) -> BatchTicket:
        """Start on some frames.

        Args:
            taken: of a camera's next frame, when and after how many lost ones.
            choice: of the graph, where it is not the scheduler's.
        """
        if self._stream is None:
            raise SessionError("this predictor is closed. Load the bundle again.")
        start = perf_counter()
        prepared = self._feeder.prepare(frames, score_threshold, iou_threshold)
        try:
            if choice is None and self._scheduler is not None:
                choice = self._choose(self._scheduler, prepared, taken)
            graph = "model" if choice is None else choice.graph
            done = perf_counter()
            ticket = prepared.submit_to(self._stream, graph)
        except BaseException:
            self.restart("error")
            self._feeder.take_back(prepared)
            raise
        return BatchTicket(self, ticket, prepared, (start, done), choice)

    def _choose(
        self, scheduler: KeyframeScheduler, prepared: Prepared, taken: tuple[float, int] | None
    ) -> Choice:
        """The graph for a camera's next frame; a batch that is of no camera is of key frames."""
        if taken is None:
            scheduler.restart("batch")  # its state takes the place of the camera's
            return Choice(KEY, "batch", -1, 0)
        time_s, num_dropped = taken
        source_hw = prepared.letterboxes[0].source_hw
        thumbnail = thumbnail_of(prepared.first_picture)
        return scheduler.choose(Sight(time_s, source_hw, thumbnail, num_dropped))

    def finish(
        self,
        prepared: Prepared,
        outputs: Results,
        choice: Choice | None,
        compute_ms: float | None,
    ) -> list[Detections]:
        """What the engine gave, as results; for the tickets alone.

        Args:
            prepared: what the engine has read.
            outputs: of the graph.
            choice: of the graph, or None where there is but one.
            compute_ms: as of `Ticket`.
        """
        self._feeder.take_back(prepared)
        results = self._task.finish(outputs, prepared.letterboxes, self.manifest)
        if choice is None:
            return results
        self._learn(choice, outputs, compute_ms)
        return [dataclasses.replace(result, is_key=choice.is_key) for result in results]

    def _learn(self, choice: Choice, outputs: Results, compute_ms: float | None) -> None:
        """Tell the scheduler what a camera's frame told."""
        if self._scheduler is not None and choice.key_number >= 0:
            change = outputs.get(CHANGE.name)
            change_px = None if change is None else float(change.flat[0])
            self._scheduler.learn(choice, change_px=change_px, compute_ms=compute_ms)


def _keyframe_options(bundle: Bundle, asked: Mapping[str, Any]) -> KeyframeOptions:
    """The options that were asked for; ValueError where they are wrong or without use."""
    given = {name: value for name, value in asked.items() if value is not None}
    options = KeyframeOptions(**given)
    if given and not bundle.manifest.state and given != {"schedule": "key"}:
        raise ValueError(
            f"{next(iter(given))} is for models with key frames; {bundle.name} has one graph for "
            "every frame. Leave it out."
        )
    return options


def _rows_of(threshold: Any, rows: slice, num_sides: int) -> Any:
    """The rows of a threshold that has one for each frame; any other kind as it is."""
    if threshold is None or isinstance(threshold, Mapping):
        return threshold
    values = np.asarray(threshold, np.float32)
    return values[rows] if values.ndim == num_sides else threshold
