"""How a frame becomes the network's input, and how boxes find their way back.

This file is the definition of the letterbox; the CUDA kernel is held to it by test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.contract.errors import SourceError
from runtime.contract.manifest import InputGeometry

Frame = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Letterbox:
    """The map between one size of source frame and the network's input.

    With scale = min(W / w, H / h) the frame is resized to int(w * scale + 0.5) by
    int(h * scale + 0.5), at least 1, bilinear with half-pixel centres and no antialiasing
    (cv2.INTER_LINEAR), and laid at (left, top) on a ground of `pad_value`. "stretch" resizes to
    the whole input.

    Attributes:
        source_hw: height and width of the frame.
        network_hw: height and width of the network's input.
        content_hw: height and width of the resized frame within it.
        left, top: where the resized frame begins, in pixels of the network's input.
        pad_value: 0..255, for every channel.
    """

    source_hw: tuple[int, int]
    network_hw: tuple[int, int]
    content_hw: tuple[int, int]
    left: int
    top: int
    pad_value: int

    @classmethod
    def fit(cls, source_hw: tuple[int, int], geometry: InputGeometry) -> Letterbox:
        """The letterbox for frames of one size.

        Raises:
            SourceError: a frame without pixels.
        """
        height, width = source_hw
        if height < 1 or width < 1:
            raise SourceError(f"the frame is {width}x{height} pixels; expected at least 1x1.")
        network_hw = (geometry.height, geometry.width)
        if geometry.resize == "stretch":
            return cls(source_hw, network_hw, network_hw, 0, 0, geometry.pad_value)
        scale = min(geometry.width / width, geometry.height / height)
        content_h = max(1, int(height * scale + 0.5))
        content_w = max(1, int(width * scale + 0.5))
        left, top = (geometry.width - content_w) // 2, (geometry.height - content_h) // 2
        if geometry.alignment == "top_left":
            left, top = 0, 0
        return cls(source_hw, network_hw, (content_h, content_w), left, top, geometry.pad_value)

    def apply(self, frame: Frame, out: Frame | None = None, *, fill_border: bool = True) -> Frame:
        """Resize and pad one frame.

        Args:
            frame: (h, w, 3) BGR, (h, w, 4) BGRA or (h, w) grey, uint8, of `source_hw`; any strides.
            out: (H, W, 3) uint8, C-contiguous, written in place; made where absent.
            fill_border: False where `out` was filled by this letterbox before.

        Returns:
            `out`.

        Raises:
            SourceError: a frame of another size, type or number of channels.
        """
        if out is None:
            out = np.empty((*self.network_hw, 3), np.uint8)
        if frame_hw(frame) != self.source_hw:
            height, width = self.source_hw
            raise SourceError(
                f"a frame of shape {frame.shape} came to a letterbox for {width}x{height} frames. "
                "Fit a letterbox to the new size."
            )
        if fill_border:
            self.fill_border(out)
        height, width = self.content_hw
        content = self.content_of(out)
        bgr = to_bgr(frame)
        if self.content_hw == self.source_hw:
            np.copyto(content, bgr)
            return out
        import cv2

        resized = cv2.resize(bgr, (width, height), dst=content, interpolation=cv2.INTER_LINEAR)
        if resized is not content:
            np.copyto(content, resized)
        return out

    def fill_border(self, out: Frame) -> None:
        """Write the ground around the resized frame into `out` (H, W, 3)."""
        (height, width), left, top = self.content_hw, self.left, self.top
        out[:top] = self.pad_value
        out[top + height :] = self.pad_value
        out[top : top + height, :left] = self.pad_value
        out[top : top + height, left + width :] = self.pad_value

    def content_of(self, network: Frame) -> Frame:
        """The resized frame within a network's input (H, W, 3); a view."""
        (height, width), left, top = self.content_hw, self.left, self.top
        return network[top : top + height, left : left + width]

    def to_source(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes (..., 4) from pixels of the network's input to the frame's, clipped to it."""
        points = self.points_to_source(boxes_xyxy.reshape(-1, 2))
        np.maximum(points, 0, out=points)
        np.minimum(points, np.asarray(self.source_hw[::-1], np.float32), out=points)
        return points.reshape(boxes_xyxy.shape)

    def points_to_source(self, points_xy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map points (..., 2) from pixels of the network's input to the frame's; not clipped."""
        mapped = (points_xy - self._offset_xy()) / self._scale_xy()
        return np.asarray(mapped, np.float32)

    def to_network(self, points_xy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map points (..., 2), or boxes (..., 4), from pixels of the frame to the network's."""
        points = np.asarray(points_xy, np.float32)
        mapped = points.reshape(-1, 2) * self._scale_xy() + self._offset_xy()
        return np.asarray(mapped, np.float32).reshape(points.shape)

    def _offset_xy(self) -> NDArray[np.float32]:
        return np.asarray((self.left, self.top), np.float32)

    def _scale_xy(self) -> NDArray[np.float32]:
        (height, width), (new_h, new_w) = self.source_hw, self.content_hw
        return np.asarray((new_w / width, new_h / height), np.float32)


def frame_hw(frame: Frame) -> tuple[int, int]:
    """Height and width of a frame.

    Raises:
        SourceError: not an array of two or three sides, such as the None of a failed read.
    """
    if not isinstance(frame, np.ndarray) or frame.ndim not in (2, 3):
        came = f"of shape {frame.shape}" if isinstance(frame, np.ndarray) else repr(type(frame))
        raise SourceError(
            f"the frame is {came}; expected a uint8 array (h, w, 3). Check that it was read."
        )
    return frame.shape[0], frame.shape[1]


def to_bgr(frame: Frame) -> Frame:
    """A frame as (h, w, 3) BGR that OpenCV reads without complaint; a view where it is one.

    Raises:
        SourceError: not uint8, or not grey, BGR or BGRA.
    """
    if frame.dtype != np.uint8:
        raise SourceError(
            f"the frame's type is {frame.dtype}; expected uint8 BGR. Convert it to 0..255 first."
        )
    if frame.ndim == 3 and frame.shape[2] == 3:
        is_plain = frame.strides[1:] == (3, 1) and frame.strides[0] > 0
        return frame if is_plain else np.ascontiguousarray(frame)
    import cv2

    if frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 1):
        grey = np.ascontiguousarray(frame)
        return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), np.uint8)
    if frame.ndim == 3 and frame.shape[2] == 4:
        bgra = np.ascontiguousarray(frame)
        return np.asarray(cv2.cvtColor(bgra, cv2.COLOR_BGRA2BGR), np.uint8)
    raise SourceError(
        f"the frame's shape is {frame.shape}; expected (h, w, 3) BGR, (h, w, 4) BGRA or (h, w)."
    )
