"""One frame after the other, the next when the last is done: what a frame costs by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.measure.process import Usage, read_usage
from runtime.pipeline.sinks import FrameResult, Sink
from runtime.pipeline.sources import Source
from runtime.pipeline.stages import Infers, Pipeline, RunSummary
from runtime.pipeline.stopping import StopSignal
from runtime.pipeline.timing import StageTimes

CAPACITY = 1_000_000  # frames whose times are all kept


@dataclass(frozen=True)
class Measurement:
    """A closed loop that was run.

    Attributes:
        times: of the measured frames, in order, the warm-up left out and nothing else.
        summary: of the whole run, warm-up included.
        num_warm_up: frames before the first measured one.
        num_objects: results over all measured frames.
        before, after: the process at the first measured frame and at the end.
    """

    times: StageTimes
    summary: RunSummary
    num_warm_up: int
    num_objects: int
    before: Usage
    after: Usage


def run_closed_loop(
    source: Source,
    predictor: Infers,
    *,
    num_frames: int,
    num_warm_up: int,
    stop: StopSignal | None = None,
) -> Measurement:
    """Capture, infer and draw frame by frame on one thread; nothing is encoded.

    Args:
        source: read and closed.
        predictor: loaded.
        num_frames: measured frames, 1 or more.
        num_warm_up: frames before them.
        stop: ends the run early.
    """
    times = _TimesAfterWarmUp(num_warm_up)
    counter = _CountingSink(num_warm_up)
    pipeline = Pipeline(
        source,
        predictor,
        [counter],
        max_frames=num_warm_up + num_frames,
        is_sequential=True,
        caption=lambda run: (f"{run.rate.fps:.1f} fps",),
        stop=stop,
        times=times,
    )
    summary = pipeline.run()
    after = read_usage()
    return Measurement(
        times, summary, num_warm_up, counter.num_objects, counter.before or after, after
    )


class _TimesAfterWarmUp(StageTimes):
    """Leaves out the first frames, and only them."""

    def __init__(self, num_warm_up: int) -> None:
        super().__init__(CAPACITY)
        self._left = num_warm_up

    def add(self, times_ms: Mapping[str, float]) -> None:
        if self._left > 0:
            self._left -= 1
            return
        super().add(times_ms)


class _CountingSink(Sink):
    """Wants pictures, so that drawing is measured; counts objects; notes when warm-up ended."""

    wants_picture = True

    def __init__(self, num_warm_up: int) -> None:
        self._left = num_warm_up
        self.num_objects = 0
        self.before: Usage | None = read_usage() if num_warm_up == 0 else None

    def write(self, result: FrameResult) -> None:
        if self._left > 0:
            self._left -= 1
            if self._left == 0:
                self.before = read_usage()
            return
        self.num_objects += len(result.results)

    def close(self) -> None:
        pass
