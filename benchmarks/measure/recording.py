"""A run that records video and JSON lines until it is killed, and what it left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.sleeping_engine import open_sleeping_predictor
from benchmarks.measure.synthetic_source import SyntheticSource
from runtime.pipeline.sinks import BufferedSink
from runtime.pipeline.sinks.json_lines import JsonLinesSink
from runtime.pipeline.sinks.video_file import open_video_sink
from runtime.pipeline.sources import Frame, Image
from runtime.pipeline.stages import Pipeline

ROOT = Path(__file__).resolve().parents[2]
FPS = 25.0
SIZE_WH = (320, 240)
ENGINE_MS = 10.0
KINDS = ("camera .mp4", "camera .mkv", "camera .avi", "film .mp4")
MOST_LOST_S = 1.0
START_S = 60.0  # longest time to the first line
NUM_BITS = 16  # of a picture's number: squares along its lower edge
TICK_S = 2e-3  # Matroska's clock counts milliseconds

_RECORD = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    "from benchmarks.measure.recording import record; record(*sys.argv[1:])"
)


class NumberedSource(SyntheticSource):
    """Its pictures carry their number, so that a video's frames can be told."""

    def read(self) -> Frame | None:
        frame = super().read()
        if frame is not None:
            write_number(frame.image_bgr, frame.index)
        return frame


@dataclass
class Loss:
    """What one kill cost.

    Attributes:
        kind: of KINDS. after_s: how long it had recorded.
        num_lines, num_frames: whole JSON lines, and frames of the video that decode.
        lines_lost_s: of a camera, from the last line's capture to the kill.
        video_lost_s: the same of the video's last frame; of a film, from the last line's frame to
            the video's last, in the film's time. Of a video without a frame, all of it: one that
            was killed in its first second may be empty.
        problems: what is broken; empty where nothing is.
    """

    kind: str
    after_s: float
    num_lines: int = 0
    num_frames: int = 0
    lines_lost_s: float | None = None
    video_lost_s: float | None = None
    problems: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Everything opens, and no more than the last second is lost."""
        lost = [each for each in (self.lines_lost_s, self.video_lost_s) if each is not None]
        return not self.problems and bool(lost) and max(lost) <= MOST_LOST_S

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        for name in ("after_s", "lines_lost_s", "video_lost_s"):
            document[name] = None if document[name] is None else round(document[name], 3)
        return {**document, "problems": list(self.problems)}


def record(kind: str, video: str, lines: str) -> None:
    """Record until killed, as run_video.py does it."""
    is_live = kind.startswith("camera")
    source = NumberedSource("street", size_wh=SIZE_WH, fps=FPS, is_live=is_live)
    predictor, _ = open_sleeping_predictor(ENGINE_MS, input_wh=(160, 96))
    sinks = [
        BufferedSink(JsonLinesSink(lines), keeps_all=not is_live),
        BufferedSink(
            open_video_sink(Path(video), size_wh=SIZE_WH, fps=FPS, is_live=is_live),
            keeps_all=not is_live,
        ),
    ]
    Pipeline(source, predictor, sinks).run()


def kill_once(kind: str, folder: Path, after_s: float) -> Loss:
    """Start a recording, kill it `after_s` seconds behind its first line, and look at the files."""
    folder.mkdir(parents=True)
    video, lines = folder / f"a{kind.split()[1]}", folder / "a.jsonl"
    child = subprocess.Popen([sys.executable, "-c", _RECORD, kind, str(video), str(lines)])
    try:
        deadline = time.monotonic() + START_S
        while not (lines.exists() and lines.stat().st_size):
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the recording did not begin within {START_S:g} s")
            time.sleep(0.01)
        time.sleep(after_s)
    finally:
        killed_at = time.time()
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    return examine(kind, video, lines, killed_at=killed_at, after_s=after_s)


def examine(kind: str, video: Path, lines: Path, *, killed_at: float, after_s: float) -> Loss:
    """What a killed recording left.

    Args:
        killed_at: Unix time.
    """
    problems: list[str] = []
    records = _read_lines(lines, problems)
    numbers, times_s = _read_video(video, problems)
    loss = Loss(kind, after_s, len(records), len(numbers))
    if records:
        by_number = {each["frame"]: each for each in records}
        first, last = records[0], records[-1]
        last_frame_s = _time_of(numbers[-1], by_number, last) if numbers else first["time_s"]
        if kind.startswith("camera"):
            lived_s = killed_at - first["wall_time_s"] + first["time_s"]  # the source, until then
            loss.lines_lost_s = lived_s - last["time_s"]
            loss.video_lost_s = lived_s - last_frame_s
        else:
            loss.video_lost_s = last["time_s"] - last_frame_s
        has_clock = not kind.endswith(".avi")  # AVI counts frames: its times are about right
        problems += _compare(by_number, numbers, times_s if has_clock else [])
    loss.problems = tuple(problems)
    return loss


def write_number(image_bgr: Image, number: int) -> None:
    """Paint a number's bits along the lower edge, in place."""
    side = image_bgr.shape[1] // NUM_BITS
    for place in range(NUM_BITS):
        bit = number >> place & 1
        image_bgr[-side:, place * side : (place + 1) * side] = 230 if bit else 20


def read_number(image_bgr: Image) -> int:
    """The number that `write_number` painted."""
    side = image_bgr.shape[1] // NUM_BITS
    strip = image_bgr[-side:].reshape(side, NUM_BITS, side, -1).mean(axis=(0, 2, 3))
    return int(sum(1 << place for place, light in enumerate(strip) if light > 128))


def _read_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        problems.append("the last JSON line has no end")
    records = []
    for number, line in enumerate(text.splitlines()):
        try:
            records.append(json.loads(line))
        except ValueError:
            problems.append(f"JSON line {number} does not parse")
    frames = [each["frame"] for each in records]
    if frames != sorted(set(frames)):
        problems.append("JSON lines are out of order")
    if not records:
        problems.append("no JSON line")
    return records


def _read_video(path: Path, problems: list[str]) -> tuple[list[int], list[float]]:
    """The number in each frame that decodes, and its time."""
    import av
    import cv2

    numbers: list[int] = []
    times_s: list[float] = []
    try:
        with av.open(str(path)) as file, contextlib.suppress(av.error.InvalidDataError):
            for frame in file.decode(video=0):  # a damaged end is the end
                numbers.append(read_number(np.asarray(frame.to_ndarray(format="bgr24"))))
                times_s.append(float(frame.time))
    except (OSError, av.error.FFmpegError) as error:
        problems.append(f"the video does not open: {error}")
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.read()[0]:
        count += 1
    capture.release()
    if abs(count - len(numbers)) > 1:
        problems.append(f"OpenCV reads {count} frames, PyAV {len(numbers)}")
    return numbers, times_s


def _time_of(number: int, by_number: dict[int, dict[str, Any]], last: dict[str, Any]) -> float:
    """A frame's time in its source; one without a JSON line is counted on from the last line."""
    told = by_number.get(number)
    if told is not None:
        return float(told["time_s"])
    return float(last["time_s"]) + (number - int(last["frame"])) / FPS


def _compare(
    by_number: dict[int, dict[str, Any]], numbers: list[int], times_s: list[float]
) -> list[str]:
    """What is wrong with the order and the times of the video's frames; no times: order alone."""
    problems = []
    if any(later <= earlier for earlier, later in zip(times_s, times_s[1:], strict=False)):
        problems.append("the video's times do not rise")
    if any(later <= earlier for earlier, later in zip(numbers, numbers[1:], strict=False)):
        problems.append("the video's frames are out of order")
    told = by_number.get(numbers[0]) if numbers else None
    start_s = 0.0 if told is None else float(told["time_s"])
    for number, time_s in zip(numbers, times_s, strict=False):
        told = by_number.get(number)
        if told is not None and abs(told["time_s"] - start_s - time_s) > TICK_S:
            problems.append(f"frame {number} is {time_s - told['time_s'] + start_s:+.3f} s off")
            break
    return problems
