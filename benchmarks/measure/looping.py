"""A clip played again from its start until enough frames were measured."""

from __future__ import annotations

from pathlib import Path

from runtime.pipeline.sources import Frame, Source, open_source

STREET = "street"


class LoopingSource(Source):
    """Frames of a file again and again; a camera as it is. Indices and times go on rising."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._source = _open(uri)
        super().__init__(uri, fps=self._source.fps, is_live=self._source.is_live)
        self.size_wh = self._source.size_wh
        self.num_rounds = 1
        self._corrupt_before = 0
        self._offset_s = 0.0
        self._time_s = 0.0

    def read(self) -> Frame | None:
        frame = self._source.read()
        if frame is None:
            self._start_again()
            frame = self._source.read()
        if frame is None:
            return None
        frame.index = self.num_decoded
        frame.time_s = self._time_s = self._offset_s + frame.time_s
        self.num_decoded += 1
        self.num_corrupt = self._corrupt_before + self._source.num_corrupt
        return frame

    def recycle(self, frame: Frame) -> None:
        self._source.recycle(frame)

    def close(self) -> None:
        self._source.close()

    def _start_again(self) -> None:
        self._corrupt_before = self.num_corrupt
        self._offset_s = self._time_s + 1.0 / self.fps
        self._source.close()
        self._source = _open(self._uri)
        self.num_rounds += 1


def _open(uri: str) -> Source:
    """A source of the runtime's, or the street where there is no file of that name."""
    if uri == STREET and not Path(uri).exists():
        from benchmarks.measure.street_clip import StreetSource

        return StreetSource()
    return open_source(uri)
