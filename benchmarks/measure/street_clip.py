"""Our own rendered street as a clip, where no video is at hand."""

from __future__ import annotations

import functools
import time

from runtime.pipeline.sources import Frame, Image, Source

SCENE = 2_000_001  # of the test split
NUM_FRAMES = 50
FPS = 12.5


class StreetSource(Source):
    """A rendered scene, held in memory; reading a frame copies it (decoding is not measured)."""

    def __init__(self, num_frames: int = NUM_FRAMES) -> None:
        super().__init__("street", fps=FPS, is_live=False)
        self._pictures = _render(num_frames)
        height, width = self._pictures[0].shape[:2]
        self.size_wh = (width, height)
        self.num_promised = num_frames

    def read(self) -> Frame | None:
        index = self.num_decoded
        if index >= len(self._pictures):
            return None
        started = time.perf_counter()
        image = self._pictures[index].copy()  # frames are drawn on
        self.num_decoded += 1
        capture_ms = (time.perf_counter() - started) * 1000.0
        return Frame(image, index, index / FPS, started, capture_ms, self.name)

    def close(self) -> None:
        self._pictures = self._pictures[:0]


@functools.lru_cache(maxsize=1)
def _render(num_frames: int) -> tuple[Image, ...]:
    """Rendered once, for every round of a measurement."""
    from training.data.street import render_frame

    return tuple(render_frame(SCENE, index).image for index in range(num_frames))
