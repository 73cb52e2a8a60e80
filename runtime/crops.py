"""How the surroundings of a box become a pose network's input, and how joints find their way back.

This file is the definition of the crop; training's is held to it by test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.contract.errors import SourceError
from runtime.contract.manifest import InputGeometry
from runtime.preprocess import Frame, frame_hw, to_bgr


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """The map between a part of a frame and the network's input: one scale, nothing distorted.

    The box grows about its centre by `margin`, then on its shorter side to the aspect of the
    network's input. That part is sampled at the centre of every input pixel, bilinear, without
    antialiasing; what lies outside of the frame is `pad_value`.

    Attributes:
        box_xyxy: (4,) float32, pixels of the frame: the box that the crop was made for.
        source_hw: height and width of the frame.
        network_hw: height and width of the network's input.
        left, top: where the part begins, in pixels of the frame.
        pixel: side of one input pixel, in pixels of the frame.
        pad_value: 0..255, for every channel.
    """

    box_xyxy: NDArray[np.float32]
    source_hw: tuple[int, int]
    network_hw: tuple[int, int]
    left: float
    top: float
    pixel: float
    pad_value: int

    @classmethod
    def around(
        cls,
        box_xyxy: NDArray[Any],
        source_hw: tuple[int, int],
        geometry: InputGeometry,
        margin: float,
    ) -> Crop:
        """The crop around a box, (4,) in pixels of a frame; sides under 1 pixel count as 1.

        Raises:
            SourceError: the box is no finite number.
        """
        box = np.asarray(box_xyxy, np.float32)
        x1, y1, x2, y2 = (float(side) for side in box)
        if not np.isfinite(box).all():
            raise SourceError(
                f"the box is {box.tolist()}; expected four finite numbers (x1, y1, x2, y2)."
            )
        width, height = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
        pixel = max(width * margin / geometry.width, height * margin / geometry.height)
        left = (x1 + x2) / 2 - geometry.width * pixel / 2
        top = (y1 + y2) / 2 - geometry.height * pixel / 2
        network_hw = (geometry.height, geometry.width)
        return cls(box, source_hw, network_hw, left, top, pixel, geometry.pad_value)

    def apply(self, frame: Frame, out: Frame | None = None) -> Frame:
        """Sample one frame.

        Args:
            frame: (h, w, 3) BGR, (h, w, 4) BGRA or (h, w) grey, uint8, of `source_hw`.
            out: (H, W, 3) uint8, C-contiguous, written in place; made where absent.

        Returns:
            `out`.

        Raises:
            SourceError: a frame of another size, type or number of channels.
        """
        import cv2

        if frame_hw(frame) != self.source_hw:
            height, width = self.source_hw
            raise SourceError(
                f"a frame of shape {frame.shape} came to a crop of {width}x{height} frames. "
                "Make crops for the new size."
            )
        if out is None:
            out = np.empty((*self.network_hw, 3), np.uint8)
        zoom = 1 / self.pixel
        matrix = np.array([[zoom, 0, -self.left * zoom], [0, zoom, -self.top * zoom]])
        matrix[:, 2] += zoom / 2 - 0.5  # OpenCV counts from pixel centres
        cut = cv2.warpAffine(
            to_bgr(frame),
            matrix,
            self.network_hw[::-1],
            dst=out,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(self.pad_value,) * 3,
        )
        if cut is not out:
            np.copyto(out, cut)
        return out

    def points_to_source(self, points_xy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map points (..., 2) from pixels of the network's input to the frame's; not clipped."""
        origin = np.array((self.left, self.top))
        return np.asarray(points_xy * self.pixel + origin, np.float32)

    def to_network(self, points_xy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map points (..., 2) from pixels of the frame to the network's input."""
        origin = np.array((self.left, self.top))
        return np.asarray((points_xy - origin) / self.pixel, np.float32)
