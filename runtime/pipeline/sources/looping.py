"""A source played again from its start."""

from __future__ import annotations

from collections.abc import Callable

from runtime.pipeline.sources.base import Frame, Source


class LoopingSource(Source):
    """Frames of a file again and again; a camera as it is. Indices and times go on rising.

    Args:
        open_one: opens the file at its start, each time anew.
        num_rounds: how often it is played; None is without end.

    Attributes:
        round_number: of the round under way, from 1.
    """

    def __init__(self, open_one: Callable[[], Source], num_rounds: int | None = None) -> None:
        assert num_rounds is None or num_rounds >= 1
        self._open_one = open_one
        self._num_rounds = num_rounds
        self._source = open_one()
        super().__init__(self._source.name, fps=self._source.fps, is_live=self._source.is_live)
        self.size_wh = self._source.size_wh
        self.round_number = 1
        if num_rounds is not None and self._source.num_promised is not None:
            self.num_promised = self._source.num_promised * num_rounds
        self._corrupt_before = 0
        self._offset_s = 0.0
        self._time_s = 0.0

    def read(self) -> Frame | None:
        frame = self._read()
        if frame is None:
            if self.round_number == self._num_rounds:
                return None
            self._start_again()
            frame = self._read()
        if frame is None:
            return None
        frame.index = self.num_decoded
        frame.time_s = self._time_s = self._offset_s + frame.time_s
        self.num_decoded += 1
        return frame

    def _read(self) -> Frame | None:
        """The next frame of this round; frames may be corrupt before it, and at the round's end."""
        try:
            return self._source.read()
        finally:
            self.num_corrupt = self._corrupt_before + self._source.num_corrupt

    def recycle(self, frame: Frame) -> None:
        self._source.recycle(frame)

    def close(self) -> None:
        self._source.close()

    def _start_again(self) -> None:
        promised = self._source.num_promised
        if self.round_number == 1 and self._num_rounds is not None and promised is not None:
            # What is missing at the end of the file is missing once, not once a round.
            found = self.num_decoded + self.num_corrupt
            self.num_promised = promised + found * (self._num_rounds - 1)
        self._corrupt_before = self.num_corrupt
        self._offset_s = self._time_s + 1.0 / self.fps
        self._source.close()
        self._source = self._open_one()
        self.round_number += 1
