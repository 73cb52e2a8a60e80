"""Stand-ins for a source, a predictor and a sink; every picture carries its number."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from runtime.pipeline.sinks import FrameResult, Sink
from runtime.pipeline.sources import Frame, Source

CLIPS = Path("/work/shared/data/video")
CAR, BOOK = CLIPS / "car-detection.mp4", CLIPS / "book.mkv"
NO_CLIPS = f"{CLIPS} is missing: no real video on this machine"
SIZE_WH = (64, 48)


def picture(number: int, size_wh: tuple[int, int] = SIZE_WH) -> np.ndarray:
    """(H, W, 3) uint8, all of one colour that says which number it is."""
    return np.full((size_wh[1], size_wh[0], 3), (number % 256, number // 256, 7), np.uint8)


def number_of(image: np.ndarray) -> int:
    return int(image[-1, -1, 0]) + 256 * int(image[-1, -1, 1])


class NumberedSource(Source):
    """`num_frames` pictures; a live one gives them every `interval_s`."""

    def __init__(
        self,
        num_frames: int,
        *,
        is_live: bool = False,
        interval_s: float = 0.0,
        fails_at: int | None = None,
        hangs_at: int | None = None,
    ):
        super().__init__("numbered", fps=25.0, is_live=is_live)
        self.size_wh = SIZE_WH
        self.num_frames = num_frames
        self.interval_s = interval_s
        self.fails_at = fails_at
        self.hangs_at = hangs_at
        self.let_go = threading.Event()
        self.is_closed = False

    def read(self):
        index = self.num_decoded
        if index == self.fails_at:
            raise RuntimeError("the source broke")
        if index == self.hangs_at:
            self.let_go.wait(20)
        if index >= self.num_frames:
            return None
        time.sleep(self.interval_s)
        self.num_decoded += 1
        buffer = self.take_buffer()
        image = picture(index) if buffer is None else buffer
        image[:] = picture(index)
        return Frame(image, index, index / self.fps, time.perf_counter(), 0.1, self.name)

    def close(self):
        self.is_closed = True


class NumberResults:
    """The number that was read from the picture, as the results of a task."""

    def __init__(self, number: int):
        self.number = number

    def __len__(self):
        return 1

    def to_json(self):
        return {"detections": [{"number": self.number}]}


class NumberPredictor:
    """Reads a picture's number when it is submitted."""

    def __init__(self, *, delay_s: float = 0.0, fails_at: int | None = None):
        self.delay_s = delay_s
        self.fails_at = fails_at
        self.threads: set[int] = set()
        self.told: list[tuple[float, int]] = []  # the time of each frame, and how many were lost

    def submit(
        self, frame_bgr, score_threshold=None, iou_threshold=None, *, time_s=None, num_dropped=0
    ):
        self.told.append((time_s, num_dropped))
        self.threads.add(threading.get_ident())
        number = number_of(frame_bgr)
        if number == self.fails_at:
            raise RuntimeError("the engine broke")

        def result():
            time.sleep(self.delay_s)
            return NumberResults(number)

        timings = SimpleNamespace(preprocess_ms=1.0, engine_ms=2.0, finish_ms=0.5)
        return SimpleNamespace(result=result, timings=timings)

    def draw(self, frame_bgr, result):
        frame_bgr[0, 0] = 255
        return frame_bgr


class CollectingSink(Sink):
    """Keeps (index, number found, number in the picture) of every result."""

    target = "memory"

    def __init__(
        self, *, delay_s: float = 0.0, fails_at: int | None = None, wants_picture: bool = False
    ):
        self.delay_s = delay_s
        self.fails_at = fails_at
        self.wants_picture = wants_picture
        self.rows: list[tuple[int, int, int]] = []
        self.ages_ms: list[float] = []
        self.is_closed = False

    def write(self, result: FrameResult):
        time.sleep(self.delay_s)
        if len(self.rows) == self.fails_at:
            raise RuntimeError("the sink broke")
        image = result.frame.image_bgr
        self.rows.append((result.frame.index, result.results.number, number_of(image)))
        self.ages_ms.append(result.age_ms)

    def close(self):
        self.is_closed = True


def results_of(num_frames: int, size_wh: tuple[int, int] = SIZE_WH, fps: float = 25.0):
    """Results as a pipeline hands them to sinks."""
    for number in range(num_frames):
        frame = Frame(picture(number, size_wh), number, number / fps, 0.0, 0.1, "numbered")
        yield FrameResult(frame, NumberResults(number), age_ms=1.5)


def decode_with_pyav(path: Path) -> tuple[int, list[float]]:
    """Number of frames and their times in seconds; a damaged end is the end."""
    import av

    times = []
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.thread_type = "NONE"
        for packet in file.demux(stream):
            try:
                times += [frame.time for frame in packet.decode()]
            except av.error.InvalidDataError:
                continue
    return len(times), times


def count_with_opencv(path: Path) -> int:
    import cv2

    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.read()[0]:
        count += 1
    return count
