"""A run's summary in words: a line for each source, and one for all; what its sinks lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.contract.errors import one_line
from runtime.pipeline.accounting import CORRUPT, RunSummary, SourceSummary
from runtime.pipeline.sinks import BufferedSink, Sink
from runtime.pipeline.sources.base import SourceState
from runtime.pipeline.timing import Spread, StageTimes


def describe_run(summary: RunSummary, times: StageTimes, *, is_whole: bool) -> str:
    """The run in one line.

    Args:
        summary: of the pipeline.
        times: of every frame.
        is_whole: the source was to be read to its end, so missing frames are worth a word.
    """
    dropped = _describe_reasons(summary.dropped)
    parts = [
        f"{summary.num_frames} frames in {summary.seconds:.1f} s ({summary.fps:.1f} fps)",
        f"decoded {summary.num_decoded}, dropped {summary.num_dropped}{dropped}",
    ]
    if summary.num_corrupt:
        parts.append(f"corrupt {summary.num_corrupt}")
    missing = (summary.num_promised or 0) - summary.num_decoded - summary.num_corrupt
    has_ended = all(each.state is SourceState.ENDED for each in summary.sources)
    is_whole = is_whole and has_ended and not summary.was_stopped
    if is_whole and missing > max(1, 0.01 * summary.num_decoded):
        parts.append(f"the header promised {summary.num_promised}: the file ends early")
    if summary.ages is not None:
        parts.append(_describe_ages(summary.ages))
    num_reconnects = sum(each.num_reconnects for each in summary.sources)
    if num_reconnects:
        parts.append(f"reconnects {num_reconnects}")
    engine = times.spread("engine")
    if engine is not None:
        parts.append(f"engine p50 {engine.p50:.2f} ms, p99 {engine.p99:.2f} ms")
    if summary.was_stopped:
        parts.append("stopped by signal")
    return "; ".join(parts)


def describe_source(summary: SourceSummary) -> str:
    """One of several sources in one line."""
    dropped = _describe_reasons(summary.dropped)
    parts = [
        f"{summary.name}: {summary.num_delivered} frames",
        f"decoded {summary.num_captured - summary.dropped[CORRUPT]}, "
        f"dropped {summary.num_dropped}{dropped}",
    ]
    if summary.dropped[CORRUPT]:
        parts.append(f"corrupt {summary.dropped[CORRUPT]}")
    if summary.ages is not None:
        parts.append(_describe_ages(summary.ages))
    if summary.num_reconnects:
        parts.append(f"reconnects {summary.num_reconnects}")
    if summary.error:
        parts.append(f"failed: {summary.error}")
    return "; ".join(parts)


def describe_sink(sink: Sink) -> str:
    """Where results went, and how many did not get there."""
    if isinstance(sink, BufferedSink):
        counts = {"dropped": sink.num_dropped, "failed": sink.num_failed}
    else:
        counts = {"failed": sink.num_lost}
    lost = [f"{word} {count}" for word, count in counts.items() if count]
    return f"{sink.target} ({', '.join(lost)})" if lost else sink.target


def sink_to_json(sink: Sink) -> dict[str, Any]:
    """The same for logs."""
    if not isinstance(sink, BufferedSink):
        return {"target": sink.target, "failed": sink.num_lost}
    return {
        "target": sink.target,
        "written": sink.num_written,
        "dropped": sink.num_dropped,
        "failed": sink.num_failed,
        "error": None if sink.error is None else one_line(sink.error),
    }


def _describe_reasons(dropped: Mapping[str, int]) -> str:
    """In brackets, the reasons that there were; corrupt frames have words of their own."""
    told = [
        f"{reason.replace('_', ' ')} {count}"
        for reason, count in dropped.items()
        if count and reason != CORRUPT
    ]
    return f" ({', '.join(told)})" if told else ""


def _describe_ages(ages: Spread) -> str:
    return f"age p50 {ages.p50:.1f} ms, p99 {ages.p99:.1f} ms, max {ages.max:.1f} ms"
