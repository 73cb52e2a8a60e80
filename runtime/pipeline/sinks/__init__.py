"""Sinks of results: a sink is one file in this folder."""

from runtime.pipeline.sinks.base import FrameResult, NullSink, Sink, check_target
from runtime.pipeline.sinks.buffered import BufferedSink

__all__ = ["BufferedSink", "FrameResult", "NullSink", "Sink", "check_target"]
