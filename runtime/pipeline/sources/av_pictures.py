"""Decoded frames of PyAV as pictures."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from runtime.pipeline.sources.base import Image


class AvPictures:
    """Turns frames of one stream into BGR, upright as the stream tells. For one thread."""

    def __init__(self) -> None:
        import av

        self._reformatter = av.video.reformatter.VideoReformatter()

    def to_bgr(self, frame: Any, buffer: Image | None) -> Image:
        """A frame as (H, W, 3) uint8, in `buffer` where that has its size and nothing is turned.

        Raises:
            av.error.FFmpegError, ValueError, MemoryError: a pixel format without a way to BGR.
        """
        bgr = self._reformatter.reformat(frame, format="bgr24")
        plane = bgr.planes[0]
        rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)[: bgr.height]
        picture = cast(Image, rows[:, : bgr.width * 3].reshape(bgr.height, bgr.width, 3))
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        if turns:
            return np.ascontiguousarray(np.rot90(picture, turns))  # counter-clockwise, as told
        if buffer is None or buffer.shape != picture.shape:
            buffer = np.empty(picture.shape, np.uint8)
        np.copyto(buffer, picture)
        return buffer
