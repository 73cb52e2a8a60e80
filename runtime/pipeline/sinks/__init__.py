"""Sinks of results: a sink is one file in this folder."""

from runtime.pipeline.sinks.base import FrameResult, NullSink, Sink, check_target

__all__ = ["FrameResult", "NullSink", "Sink", "check_target"]
