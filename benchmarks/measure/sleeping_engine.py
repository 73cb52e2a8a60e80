"""An engine that sleeps: everything around the network, with the network's time known exactly."""

from __future__ import annotations

import queue
import threading
import time

import numpy as np

from runtime.contract.manifest import SCHEMA, Graph, InputGeometry, Manifest
from runtime.contract.outputs import IMAGE, INPUTS, OUTPUTS
from runtime.pipeline.timing import AT_ONCE, StageTimes
from runtime.predictor import Predictor
from runtime.sessions.base import Feeds, Results, Stream

CLASSES = ("person", "car", "bicycle")
NUM_OBJECTS = 10


def open_sleeping_predictor(
    engine_ms: float, *, input_wh: tuple[int, int] = (640, 384), batches: tuple[int, ...] = (1,)
) -> tuple[Predictor, SleepingSession]:
    """A `Predictor` as `runtime.load` gives it, whose engine sleeps.

    Args:
        engine_ms: what an engine call sleeps, of any batch size.
        input_wh: of the network.
        batches: of the bundle.

    Returns:
        The predictor, which closes the session with it, and the session.
    """
    width, height = input_wh
    manifest = Manifest(
        schema=SCHEMA,
        model="sleeping",
        variant="engine",
        task="detection",
        classes=CLASSES,
        category_ids=(1, 2, 3),
        inputs=INPUTS["detection"],
        outputs=OUTPUTS["detection"],
        geometry=InputGeometry(height, width),
        graphs={"model": Graph(files={"fp32": "none.onnx"})},
        precisions=("fp32",),
        batches=batches,
        max_detections=NUM_OBJECTS,
    )
    session = SleepingSession(manifest, engine_ms / 1e3)
    return Predictor(session, manifest), session


class SleepingSession:
    """Runs calls one after the other on a thread of its own, each as long as it takes to sleep.

    Attributes:
        times: "engine", from the start to the end of each call, and "idle", since the one before.
    """

    backend = "sleeping"
    device = "no device"
    precision = "fp32"

    def __init__(self, manifest: Manifest, sleep_s: float) -> None:
        self.sleep_s = sleep_s
        self.forget()
        self._answers = {
            batch: _answer(batch, manifest.geometry) for batch in {1, *manifest.batches}
        }
        self._calls: queue.SimpleQueue[SleepingTicket | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """Count from here on, as after the warm-up."""
        self.times = StageTimes(AT_ONCE, stages=("engine", "idle"))

    def open_stream(self) -> Stream:
        return SleepingStream(self)

    def run(self, feeds: Feeds, graph: str = "model") -> Results:
        return self.start(feeds).result()

    def start(self, feeds: Feeds) -> SleepingTicket:
        """Queue a call."""
        ticket = SleepingTicket(self._answers[len(feeds[IMAGE.name])])
        self._calls.put(ticket)
        return ticket

    def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._calls.put(None)
            thread.join()

    def _work(self) -> None:
        free_at = time.perf_counter()
        while (ticket := self._calls.get()) is not None:
            begun = time.perf_counter()
            if self.sleep_s > 0:
                time.sleep(self.sleep_s)
            idle_ms, free_at = (begun - free_at) * 1e3, time.perf_counter()
            ticket.compute_ms = (free_at - begun) * 1e3
            ticket.done.set()
            self.times.add({"engine": ticket.compute_ms, "idle": idle_ms})


class SleepingStream:
    """One camera's; nothing is kept."""

    def __init__(self, session: SleepingSession) -> None:
        self._session = session

    def submit(self, feeds: Feeds, graph: str = "model") -> SleepingTicket:
        return self._session.start(feeds)

    def close(self) -> None:
        pass


class SleepingTicket:
    """A call under way."""

    def __init__(self, answer: Results) -> None:
        self.compute_ms: float | None = None
        self.done = threading.Event()
        self._answer = answer

    def result(self) -> Results:
        self.done.wait()
        return {name: array.copy() for name, array in self._answer.items()}


def _answer(batch: int, geometry: InputGeometry) -> Results:
    """NUM_OBJECTS boxes in every row, by falling score."""
    place = np.arange(NUM_OBJECTS, dtype=np.float32)
    x1 = place / NUM_OBJECTS * geometry.width * 0.8
    y1 = place % 3 / 4 * geometry.height
    boxes = np.stack([x1, y1, x1 + 0.15 * geometry.width, y1 + 0.3 * geometry.height], axis=1)
    rows: Results = {
        "num_detections": np.asarray(NUM_OBJECTS, np.int32),
        "boxes_xyxy": boxes.astype(np.float32),
        "scores": (0.95 - 0.05 * place).astype(np.float32),
        "classes": (place % len(CLASSES)).astype(np.int32),
    }
    return {name: np.repeat(array[None], batch, axis=0) for name, array in rows.items()}
