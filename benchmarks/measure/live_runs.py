"""Runs of the live pipeline that show its promises: age, stalls, overhead."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.sleeping_engine import SleepingSession, open_sleeping_predictor
from benchmarks.measure.synthetic_source import SyntheticSource
from runtime.batching import MicroBatcher
from runtime.pipeline.sinks import BufferedSink, FrameResult, NullSink, Sink
from runtime.pipeline.sinks.video_file import open_video_sink
from runtime.pipeline.stages import Pipeline, RunSummary

LIVE_WH = (640, 360)
LIVE_FPS = 100.0  # of a camera that always has a new picture
MOST_ENGINE_TIMES_P99, MOST_ENGINE_TIMES = 1.5, 3.0
MOST_OVERHEAD = 1.05


class CountingSink(Sink):
    """Counts what it is given, by source, apart from the pipeline's own count."""

    target = "count"

    def __init__(self, *, wants_picture: bool = False) -> None:
        self.wants_picture = wants_picture
        self.counts: dict[str, int] = {}
        self.last_index: dict[str, int] = {}
        self.num_out_of_order = 0

    def write(self, result: FrameResult) -> None:
        name = result.frame.source
        self.counts[name] = self.counts.get(name, 0) + 1
        if result.frame.index <= self.last_index.get(name, -1):
            self.num_out_of_order += 1
        self.last_index[name] = result.frame.index

    def close(self) -> None:
        pass


def run_age(*, seconds: float, fps: float = 30.0, engine_ms: float = 100.0) -> dict[str, Any]:
    """A camera that is three times faster than the engine: how old results are."""
    camera = SyntheticSource("camera", size_wh=LIVE_WH, fps=fps, is_live=True, seconds=seconds)
    count = CountingSink()
    summary, engine = _run([camera], count, engine_ms=engine_ms)
    (source,) = summary.sources
    assert source.ages is not None
    lost = sum(source.dropped.values())
    limits = {
        "p99_ms": MOST_ENGINE_TIMES_P99 * engine_ms + 1e3 / fps,
        "max_ms": MOST_ENGINE_TIMES * engine_ms,
    }
    return {
        "settings": {"seconds": seconds, "fps": fps, "engine_ms": engine_ms},
        "engine": _describe_engine(engine),
        "source": source.to_json(),
        "frames": {
            "captured_by_the_source": camera.num_decoded,
            "given_to_the_sink": count.counts["camera"],
            "out_of_order": count.num_out_of_order,
        },
        "limits": limits,
        "passes": {
            "p99": source.ages.p99 < limits["p99_ms"],
            "max": source.ages.max < limits["max_ms"],
            "delivered + dropped = captured": (
                count.counts["camera"] + lost == camera.num_decoded == source.num_captured
            ),
            "in order": count.num_out_of_order == 0,
        },
    }


def run_stalls(
    *, seconds: float, num_sources: int = 8, fps: float = 10.0, engine_ms: float = 20.0
) -> dict[str, Any]:
    """Cameras on one engine, one of which stalls 5 s in every 10: what the others lose."""
    sources = [
        SyntheticSource(
            f"camera {number}",
            size_wh=LIVE_WH,
            fps=fps,
            is_live=True,
            seconds=seconds,
            stall=(10.0, 5.0) if number == 0 else None,
        )
        for number in range(num_sources)
    ]
    count = CountingSink()
    summary, engine = _run(sources, count, engine_ms=engine_ms, batches=(1, 2, 4, 8))
    others = summary.sources[1:]
    return {
        "settings": {
            "seconds": seconds,
            "sources": num_sources,
            "fps": fps,
            "engine_ms": engine_ms,
            "batches": [1, 2, 4, 8],
            "stall": "camera 0 gives nothing in the last 5 s of every 10 s",
        },
        "engine": _describe_engine(engine),
        "frames_a_call": round(summary.num_frames / engine.times.num_frames, 3),
        "sources": [source.to_json() for source in summary.sources],
        "frames_not_captured_in_stalls": sources[0].num_ticks_stalled,
        "passes": {
            "the others lose no frame": all(
                sum(source.dropped.values()) == 0
                and source.num_delivered == round(seconds * fps) == count.counts[source.name]
                for source in others
            ),
            "delivered + dropped = captured": all(
                source.num_delivered + sum(source.dropped.values()) == source.num_captured
                for source in summary.sources
            ),
            "in order": count.num_out_of_order == 0,
        },
    }


def run_overhead(
    *, num_frames: int, engine_ms: float = 20.0, size_wh: tuple[int, int] = (1280, 720)
) -> dict[str, Any]:
    """What a frame costs beyond the engine, drawing on, with and without encoding.

    The mean period is over the whole run, its start and end included; beside it stands the median,
    which other programs on the machine disturb less.
    """
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("drawn", "drawn and encoded", "drawn, live"):
            is_live = name.endswith("live")
            film = SyntheticSource(
                "film",
                size_wh=size_wh,
                fps=LIVE_FPS if is_live else 50.0,
                is_live=is_live,
                seconds=num_frames * engine_ms / 1e3 if is_live else None,
                num_frames=None if is_live else num_frames,
            )
            sink: Sink = NullSink(wants_picture=True)
            if name == "drawn and encoded":
                path = Path(folder) / "annotated.mp4"
                sink = open_video_sink(path, size_wh=size_wh, fps=film.fps)
            before_s = time.process_time()
            summary, engine = _run([film], sink, engine_ms=engine_ms)
            cpu_s = time.process_time() - before_s
            period_ms = summary.seconds / summary.num_frames * 1e3
            own = engine.times.spread("engine")
            assert own is not None
            periods = engine.times.samples("engine") + engine.times.samples("idle")
            runs[name] = {
                "frames": summary.num_frames,
                "period_ms": round(period_ms, 4),
                "engine_ms": round(own.mean, 4),
                "period_over_engine": round(period_ms / own.mean, 4),
                "p50_period_over_engine": round(float(np.median(periods)) / own.p50, 4),
                "cpu_a_frame_ms": round(cpu_s * 1e3 / summary.num_frames, 4),
            }
    return {
        "settings": {"frames": num_frames, "engine_ms": engine_ms, "frame_wh": list(size_wh)},
        "runs": runs,
        "limits": {"period_over_engine": MOST_OVERHEAD},
        "passes": {name: run["period_over_engine"] <= MOST_OVERHEAD for name, run in runs.items()},
    }


def _run(
    sources: Sequence[SyntheticSource],
    sink: Sink,
    *,
    engine_ms: float,
    batches: tuple[int, ...] = (1,),
) -> tuple[RunSummary, SleepingSession]:
    """Run to the sources' end, as run_video.py does it."""
    with contextlib.ExitStack() as stack:
        predictor, engine = open_sleeping_predictor(engine_ms, batches=batches)
        stack.enter_context(predictor)
        predictor.warm_up()
        engine.forget()
        batcher = MicroBatcher(predictor)
        is_live = any(source.is_live for source in sources)
        pipeline = Pipeline(
            sources,
            [batcher.open_stream() for _ in sources] if len(sources) > 1 else predictor,
            [BufferedSink(sink, keeps_all=not is_live)],
            batchers=[batcher] if len(sources) > 1 else (),
            caption=lambda lane: (f"{lane.rate.fps:.1f} fps",),
        )
        summary = pipeline.run()
    return summary, engine


def _describe_engine(engine: SleepingSession) -> dict[str, float]:
    own = engine.times.spread("engine")
    assert own is not None
    return {"calls": own.count, "mean_ms": round(own.mean, 4), "max_ms": round(own.max, 4)}
