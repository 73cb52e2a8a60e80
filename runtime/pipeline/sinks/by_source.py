"""A sink for each of several sources, such as a video for each camera."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.pipeline.sinks.base import FrameResult, Sink


class BySource(Sink):
    """Gives each result to the sink of its source.

    Args:
        sinks: a source's name -> its sink; closed with this one.
    """

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = dict(sinks)
        self.target = " and ".join(sink.target for sink in self._sinks.values())
        self.wants_picture = any(sink.wants_picture for sink in self._sinks.values())

    def write(self, result: FrameResult) -> None:
        self._sinks[result.frame.source].write(result)

    def idle(self) -> None:
        for sink in self._sinks.values():
            sink.idle()

    def expect_no_more(self) -> None:
        for sink in self._sinks.values():
            sink.expect_no_more()

    def close(self) -> None:
        errors = []
        for sink in self._sinks.values():
            try:
                sink.close()
            except Exception as error:  # the others are closed whatever happens
                errors.append(error)
        if errors:
            raise errors[0]
