"""One pipeline over several sources: order, accounts, failures, batches, the end."""

from __future__ import annotations

import io
import threading
import time

import pytest
from pipeline_fakes import CollectingSink, NumberedSource, NumberPredictor, picture

from runtime.contract.errors import SourceError
from runtime.pipeline.accounting import AT_END, REPLACED
from runtime.pipeline.sinks import BufferedSink, FrameResult
from runtime.pipeline.sinks.by_source import BySource
from runtime.pipeline.sinks.progress import ProgressSink
from runtime.pipeline.sources import Frame
from runtime.pipeline.sources.base import NoFrameYet, SourceState
from runtime.pipeline.stages import Pipeline
from runtime.pipeline.stopping import StopSignal

NO_HANG_S = 20.0


class NamedSource(NumberedSource):
    """A numbered source with a name of its own; fails as sources do."""

    def __init__(self, name: str, num_frames: int, *, loses_at: int | None = None, **options):
        super().__init__(num_frames, **options)
        self.name = name
        self.loses_at = loses_at

    def read(self):
        if self.num_decoded == self.loses_at:
            raise SourceError(f"{self.name} was unplugged")
        return super().read()


class StalledSource(NamedSource):
    """Gives `num_frames`, then nothing until it is let go, then ends."""

    def read(self):
        if self.num_decoded == self.num_frames and not self.let_go.wait(0.02):
            raise NoFrameYet
        return super().read()


class NamedSink(CollectingSink):
    """Collects by source."""

    def __init__(self, **options):
        super().__init__(**options)
        self.by_source: dict[str, list[int]] = {}

    def write(self, result: FrameResult):
        super().write(result)
        self.by_source.setdefault(result.frame.source, []).append(result.frame.index)


class GroupingBatcher:
    """Notes how many frames were submitted before each flush."""

    batches = (1, 2, 4)

    def __init__(self, predictors: list[NumberPredictor]):
        self.predictors = predictors
        self.sizes: list[int] = []

    def flush(self):
        self.sizes.append(sum(len(each.told) for each in self.predictors) - sum(self.sizes))


def run(sources, sink=None, **options):
    sink = sink or NamedSink()
    predictors = options.pop("predictors", None) or [NumberPredictor() for _ in sources]
    pipeline = Pipeline(sources, predictors, [sink], **options)
    return pipeline.run(), sink


def assert_balanced(summary):
    for source in summary.sources:
        assert source.num_delivered + sum(source.dropped.values()) == source.num_captured
    assert summary.num_frames + summary.num_dropped == summary.num_decoded


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + NO_HANG_S
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("is_sequential", [True, False], ids=["sequential", "overlap"])
def test_every_frame_of_every_file_arrives_once_and_in_order(is_sequential):
    sources = [NamedSource(name, 40 + 30 * place) for place, name in enumerate("abc")]
    summary, sink = run(sources, is_sequential=is_sequential)
    assert sink.by_source == {s.name: list(range(s.num_frames)) for s in sources}
    assert all(number == index for index, number, _ in sink.rows)
    assert summary.num_frames == summary.num_decoded == 210
    assert_balanced(summary)
    assert all(source.is_closed for source in sources)


def test_each_source_has_its_own_predictor_and_hears_its_own_losses():
    predictors = [NumberPredictor(), NumberPredictor()]
    sources = [
        NamedSource("file", 30),
        NamedSource("camera", 60, is_live=True, interval_s=0.001),
    ]
    sink = NamedSink(delay_s=0.002)
    summary, _ = run(sources, sink, predictors=predictors)
    assert [lost for _, lost in predictors[0].told] == [0] * 30
    indices = sink.by_source["camera"]
    told = [lost for _, lost in predictors[1].told]
    assert told == [now - before - 1 for before, now in zip([-1, *indices], indices, strict=False)]
    assert_balanced(summary)


def test_delivered_and_dropped_are_what_was_captured_by_an_independent_count():
    sources = [
        NamedSource(str(place), 80, is_live=place != 0, interval_s=0.001) for place in range(4)
    ]
    summary, sink = run(sources, NamedSink(delay_s=0.003))
    for source, told in zip(sources, summary.sources, strict=True):
        assert told.num_captured == source.num_decoded == 80
        assert told.num_delivered == len(sink.by_source[source.name])
        assert told.dropped[REPLACED] == 80 - told.num_delivered
    assert summary.sources[0].num_delivered == 80
    assert sum(told.dropped[REPLACED] for told in summary.sources) > 0


def test_stalled_source_delays_no_other():
    stalled = StalledSource("stalled", 2, is_live=True)
    others = [NamedSource(str(place), 50) for place in range(3)]
    sink = NamedSink()

    class Release(NamedSink):
        def write(self, result):
            sink.write(result)
            if all(len(sink.by_source.get(other.name, ())) == 50 for other in others):
                stalled.let_go.set()  # only when all others are through

    started = time.monotonic()
    summary, _ = run([stalled, *others], Release())
    assert time.monotonic() - started < NO_HANG_S
    assert stalled.let_go.is_set()
    assert [len(sink.by_source[other.name]) for other in others] == [50] * 3
    assert_balanced(summary)


def test_run_goes_on_and_says_so_when_one_of_several_sources_dies(caplog):
    caplog.set_level("INFO")
    sources = [NamedSource("a", 100, loses_at=5), NamedSource("b", 60)]
    summary, sink = run(sources)
    assert sink.by_source == {"a": list(range(5)), "b": list(range(60))}
    assert [each.state for each in summary.sources] == [SourceState.FAILED, SourceState.ENDED]
    assert summary.sources[0].error == "a was unplugged"
    assert "a: failed (a was unplugged)" in caplog.text
    assert "of 2 sources go on" in caplog.text
    assert_balanced(summary)


def test_run_ends_with_the_error_when_every_source_dies():
    sink = NamedSink()
    sources = [NamedSource("a", 100, loses_at=5), NamedSource("b", 100, loses_at=9)]
    with pytest.raises(SourceError, match="a was unplugged"):
        run(sources, sink)
    assert len(sink.rows) == 14  # what was captured before is delivered


@pytest.mark.parametrize("is_sequential", [True, False], ids=["sequential", "overlap"])
def test_frames_are_accounted_for_when_every_source_dies(is_sequential, caplog):
    source = NamedSource("a", 100, loses_at=5)
    pipeline = Pipeline(source, NumberPredictor(), [NamedSink()], is_sequential=is_sequential)
    with pytest.raises(SourceError, match="a was unplugged"):
        pipeline.run()
    assert pipeline.summary is not None
    assert pipeline.summary.num_frames == 5
    assert pipeline.summary.sources[0].error == "a was unplugged"
    assert not caplog.records  # it is raised, and not said twice
    assert_balanced(pipeline.summary)


def test_all_sinks_hear_of_the_end_before_one_is_closed():
    said = []

    class Hearing(NamedSink):
        def expect_no_more(self):
            said.append("end")

        def close(self):
            said.append("close")

    Pipeline([NamedSource("a", 3)], NumberPredictor(), [Hearing(), Hearing()]).run()
    assert said == ["end", "end", "close", "close"]


def test_predictor_begins_anew_with_the_first_frame_after_a_reconnect():
    class Restarting(NumberPredictor):
        def __init__(self):
            super().__init__()
            self.restarts = []

        def restart(self, reason="asked"):
            self.restarts.append((reason, len(self.told)))

    class Reconnecting(NamedSource):
        def read(self):
            if self.num_decoded == 12:
                self.num_reconnects = 1
            return super().read()

    predictors = [Restarting(), Restarting()]
    summary, _ = run([Reconnecting("a", 20), NamedSource("b", 20)], predictors=predictors)
    assert predictors[0].restarts == [("reconnect", 12)]
    assert predictors[1].restarts == []
    assert summary.sources[0].num_reconnects == 1


def test_max_frames_counts_all_sources_together():
    summary, sink = run([NamedSource(name, 100) for name in "abc"], max_frames=25)
    assert len(sink.rows) == summary.num_frames == 25
    assert summary.dropped[AT_END] == summary.num_decoded - 25
    assert_balanced(summary)


def test_stop_drains_every_source():
    stop = StopSignal()
    sources = [NamedSource(name, 100_000) for name in "ab"]
    sources.append(NamedSource("camera", 100_000, is_live=True, interval_s=0.001))

    class Stopping(NamedSink):
        def write(self, result):
            super().write(result)
            stop.is_set = stop.is_set or len(self.rows) == 30

    summary, sink = run(sources, Stopping(), stop=stop)
    assert summary.was_stopped
    assert len(sink.rows) == summary.num_frames
    assert_balanced(summary)


def test_run_ends_when_nobody_wants_its_results():
    sink = NamedSink()
    summary, _ = run([NamedSource("a", 10_000)], sink, is_wanted=lambda: len(sink.rows) < 20)
    assert 20 <= summary.num_frames < 100
    assert summary.dropped[AT_END] == summary.num_decoded - summary.num_frames


def test_waiting_frames_of_several_sources_go_into_one_engine_call():
    predictors = [NumberPredictor() for _ in range(4)]
    batcher = GroupingBatcher(predictors)
    sources = [NamedSource(str(place), 50) for place in range(4)]
    summary, sink = run(sources, NamedSink(), predictors=predictors, batchers=[batcher])
    assert sum(batcher.sizes) == 200 == summary.num_frames
    assert set(batcher.sizes) <= {1, 2, 4}
    assert 4 in batcher.sizes
    assert sink.by_source == {str(place): list(range(50)) for place in range(4)}


def test_failing_sink_ends_neither_the_run_nor_the_other_sinks():
    broken, whole = NamedSink(fails_at=3), NamedSink()
    sinks = [BufferedSink(sink, keeps_all=True) for sink in (broken, whole)]
    Pipeline([NamedSource("a", 40)], NumberPredictor(), sinks).run()
    assert len(whole.rows) == 40
    assert (sinks[0].num_written, sinks[0].num_failed) == (3, 37)


def test_each_sources_results_reach_its_own_sink():
    sinks = {name: NamedSink(wants_picture=True) for name in "ab"}
    run([NamedSource("a", 7), NamedSource("b", 9)], BySource(sinks))
    assert [sink.by_source for sink in sinks.values()] == [
        {"a": list(range(7))},
        {"b": list(range(9))},
    ]
    assert all(sink.is_closed for sink in sinks.values())


def test_progress_adds_up_what_all_sources_dropped(monkeypatch):
    monkeypatch.setattr("runtime.pipeline.sinks.progress.INTERVAL_S", 0.0)
    stream = io.StringIO()
    sink = ProgressSink(stream, None)
    for name, index in (("a", 0), ("b", 2), ("a", 4), ("b", 3)):
        frame = Frame(picture(index), index, 0.0, 0.0, 0.1, name)
        sink.write(FrameResult(frame, None, age_ms=1.0))
    assert "4 frames" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("dropped 5")  # a: 1, 2, 3; b: 0, 1


def test_memory_of_every_source_is_used_again():
    sources = [NamedSource(name, 200) for name in "abc"]
    images: dict[str, set[int]] = {}

    class Sink(NamedSink):
        def write(self, result):
            super().write(result)
            images.setdefault(result.frame.source, set()).add(result.frame.image_bgr.ctypes.data)

    run(sources, Sink())
    # Waiting, being read, in the engine, and on its way to the sinks.
    assert all(len(places) <= 12 for places in images.values()), images
