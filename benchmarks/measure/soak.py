"""Many frames through the live pipeline: what the process holds must not grow."""

from __future__ import annotations

import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.process import read_usage
from benchmarks.measure.sleeping_engine import open_sleeping_predictor
from benchmarks.measure.synthetic_source import SyntheticSource
from runtime.batching import MicroBatcher
from runtime.pipeline.sinks import BufferedSink, FrameResult, NullSink, Sink
from runtime.pipeline.sinks.json_lines import JsonLinesSink
from runtime.pipeline.stages import Pipeline

TINY_WH = (32, 24)
WARM_UP_FRAMES = 2000
NUM_SAMPLES = 200
ENDING = 100  # frames
MOST_GROWTH_MIB = 5.0
CAMERA_FPS = 500.0  # many of its frames are replaced

_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True, slots=True)
class Sample:
    """The process after some frames."""

    num_frames: int
    rss_mib: float
    num_descriptors: int
    num_threads: int


class SamplingSink(Sink):
    """Looks at the process after the warm-up, and every so many frames."""

    target = "samples"

    def __init__(self, warm_up: int, every: int) -> None:
        self.samples: list[Sample] = []
        self._warm_up = warm_up
        self._every = every
        self._num_frames = 0

    def write(self, result: FrameResult) -> None:
        self._num_frames += 1
        if self._num_frames == self._warm_up or self._num_frames % self._every == 0:
            self.samples.append(take_sample(self._num_frames))

    def close(self) -> None:
        pass


def take_sample(num_frames: int) -> Sample:
    """Measure now."""
    num_descriptors = len(os.listdir(_DESCRIPTORS)) if _DESCRIPTORS.exists() else 0  # noqa: PTH208
    return Sample(num_frames, read_usage().rss_mib, num_descriptors, threading.active_count())


def run_soak(*, num_frames: int, warm_up: int = WARM_UP_FRAMES) -> dict[str, Any]:
    """Two endless files and a camera on one engine, drawn, into JSON lines and a picture sink.

    Args:
        num_frames: delivered in all, more than `warm_up`.
        warm_up: what it holds after so many frames is what it may hold.
    """
    if num_frames < warm_up + 2 * ENDING:
        raise ValueError(
            f"--frames is {num_frames}; expected {warm_up + 2 * ENDING} or more: the first "
            f"{warm_up} are the warm-up."
        )
    sampling = SamplingSink(warm_up, max((num_frames - warm_up) // NUM_SAMPLES, 1))
    sources = [
        SyntheticSource("film 0", size_wh=TINY_WH, fps=30.0, is_live=False),
        SyntheticSource("film 1", size_wh=TINY_WH, fps=30.0, is_live=False),
        SyntheticSource("camera", size_wh=TINY_WH, fps=CAMERA_FPS, is_live=True),
    ]
    predictor, engine = open_sleeping_predictor(0.0, input_wh=(64, 64), batches=(1, 2, 4))
    with predictor:
        predictor.warm_up()
        batcher = MicroBatcher(predictor)
        pipeline = Pipeline(
            sources,
            [batcher.open_stream() for _ in sources],
            [
                sampling,
                BufferedSink(JsonLinesSink(os.devnull), keeps_all=True),
                BufferedSink(NullSink(wants_picture=True), keeps_all=True),
            ],
            batchers=[batcher],
            max_frames=num_frames,
            max_age_ms=1000.0,
            caption=lambda lane: (f"{lane.rate.fps:.1f} fps",),
        )
        summary = pipeline.run()
    # The last results are written while the threads end.
    warm = [each for each in sampling.samples if warm_up <= each.num_frames < num_frames - ENDING]
    first, highest = warm[0], max(sample.rss_mib for sample in warm)
    growth_mib = highest - first.rss_mib
    return {
        "settings": {"frames": num_frames, "warm_up_frames": warm_up, "frame_wh": list(TINY_WH)},
        "seconds": round(summary.seconds, 2),
        "fps": round(summary.fps, 1),
        "engine_calls": engine.times.num_frames,
        "rss_after_warm_up_mib": round(first.rss_mib, 2),
        "rss_highest_mib": round(highest, 2),
        "growth_mib": round(growth_mib, 3),
        "descriptors": sorted({sample.num_descriptors for sample in warm}),
        "threads": sorted({sample.num_threads for sample in warm}),
        "sources": [source.to_json() for source in summary.sources],
        "samples": [asdict(sample) for sample in warm[:: len(warm) // 20 or 1]],
        "limits": {"growth_mib": MOST_GROWTH_MIB},
        "passes": {
            "memory": growth_mib < MOST_GROWTH_MIB,
            "descriptors": len({sample.num_descriptors for sample in warm}) == 1,
            "threads": len({sample.num_threads for sample in warm}) == 1,
            "delivered": summary.num_frames == num_frames,
            "delivered + dropped = captured": all(
                source.num_delivered + sum(source.dropped.values()) == source.num_captured
                for source in summary.sources
            ),
        },
    }
