"""Small premultiplied BGRA canvases that objects are drawn on, and their compositing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np

SHIFT = 4  # fractional bits of the polygon coordinates given to OpenCV
SOLID_ALPHA = 110  # a pixel belongs to an object when its coverage, of 255, is above this

Colour: TypeAlias = tuple[float, float, float]


@dataclass(slots=True, kw_only=True)
class Sprite:
    """What an object covers of the frame.

    bgra is (h, w, 4) uint8 premultiplied by alpha; solid is (h, w) uint8 0/255, the amodal mask;
    x and y are the frame pixel of its first pixel; inside is the share of its whole box that lies
    in the frame.
    """

    bgra: np.ndarray
    solid: np.ndarray
    x: int
    y: int
    inside: float


def shade(colour: Colour, gain: float) -> Colour:
    """The colour times a gain, kept within 0..255."""
    blue, green, red = colour
    return min(255.0, blue * gain), min(255.0, green * gain), min(255.0, red * gain)


def mix(first: Colour, second: Colour, part: float) -> Colour:
    """First at part 0, second at part 1."""
    (b1, g1, r1), (b2, g2, r2) = first, second
    return b1 + (b2 - b1) * part, g1 + (g2 - g1) * part, r1 + (r2 - r1) * part


class Canvas:
    """A supersampled drawing surface over the part of the frame that an object can cover."""

    def __init__(
        self, extent_xyxy: tuple[float, float, float, float], size_hw: tuple[int, int]
    ) -> None:
        height, width = size_hw
        x1, y1, x2, y2 = extent_xyxy
        self.x, self.y = max(0, int(np.floor(x1))), max(0, int(np.floor(y1)))
        self.w = min(width, int(np.ceil(x2))) - self.x
        self.h = min(height, int(np.ceil(y2))) - self.y
        self.is_empty = self.w <= 0 or self.h <= 0
        whole = max(1.0, (x2 - x1) * (y2 - y1))
        self.inside = 0.0 if self.is_empty else min(1.0, self.w * self.h / whole)
        side = max(x2 - x1, y2 - y1)
        self.scale = 4 if side < 50 else 2 if side < 150 else 1
        self.line_type = cv2.LINE_8 if self.scale >= 3 else cv2.LINE_AA
        if not self.is_empty:
            shape = (self.h * self.scale, self.w * self.scale)
            self.bgra = np.zeros((*shape, 4), np.uint8)
            self.extra: np.ndarray | None = None
        self.unit = float(self.scale << SHIFT)
        half = 0.5 / self.scale
        self.left, self.top = self.x + half, self.y + half
        self.origin = np.array([self.left, self.top])
        self.is_wide = side > 800

    def fixed(self, uv: np.ndarray) -> np.ndarray:
        """(N, 2) frame pixels to the fixed-point coordinates of the canvas."""
        local = (uv - self.origin) * self.unit
        if self.is_wide:  # OpenCV's fixed-point coordinates overflow far outside
            local = np.clip(local, -60_000, 60_000)
        return local.astype(np.int32)

    def poly(self, uv: np.ndarray, colour: Colour) -> None:
        """Fill a polygon (N, 2), frame pixels."""
        cv2.fillPoly(self.bgra, [self.fixed(uv)], (*colour, 255), self.line_type, SHIFT)

    def fill(self, fixed: np.ndarray, colour: Colour) -> None:
        """Fill a polygon that `fixed` has converted."""
        cv2.fillPoly(self.bgra, [fixed], (*colour, 255), self.line_type, SHIFT)

    def line(self, uv: np.ndarray, width: float, colour: Colour, *, closed: bool = False) -> None:
        """Stroke a polyline (N, 2); width in frame pixels, at least one pixel of the canvas."""
        thickness = max(1, round(width * self.scale))
        fixed = self.fixed(uv)
        cv2.polylines(self.bgra, [fixed], closed, (*colour, 255), thickness, self.line_type, SHIFT)

    def disc(self, centre: Sequence[float] | np.ndarray, radius: float, colour: Colour) -> None:
        """Fill a circle; radius in frame pixels."""
        x, y = int((centre[0] - self.left) * self.unit), int((centre[1] - self.top) * self.unit)
        size = max(1, round(radius * self.unit))
        if max(abs(x), abs(y), size) < 60_000:
            shape = (*colour, 255)
            cv2.circle(self.bgra, (x, y), size, shape, cv2.FILLED, self.line_type, SHIFT)

    def capsule(self, p: np.ndarray, q: np.ndarray, r1: float, r2: float, colour: Colour) -> None:
        """Fill a limb: two circles of radius r1 and r2 (frame pixels) and the strip between."""
        (px, py), (qx, qy) = p.tolist(), q.tolist()
        if (r1 + r2) * self.scale < 9.0:  # one stroke with round ends will do
            unit, left, top = self.unit, self.left, self.top
            ends = (int((px - left) * unit), int((py - top) * unit)), (
                int((qx - left) * unit), int((qy - top) * unit))  # fmt: skip
            thickness = max(1, round((r1 + r2) * self.scale))
            shape = (*colour, 255)
            cv2.line(self.bgra, *ends, shape, thickness, self.line_type, SHIFT)
            return
        length = math.hypot(qx - px, qy - py)
        self.disc((px, py), r1, colour)
        self.disc((qx, qy), r2, colour)
        if length > 1e-3:
            sx, sy = (py - qy) / length, (qx - px) / length
            ring = [[px + sx * r1, py + sy * r1], [qx + sx * r2, qy + sy * r2],
                    [qx - sx * r2, qy - sy * r2], [px - sx * r1, py - sy * r1]]  # fmt: skip
            self.poly(np.array(ring), colour)

    def cover(self, uv: np.ndarray) -> None:
        """Count a polygon as part of the object's mask although one sees through it."""
        if self.extra is None:
            self.extra = np.zeros(self.bgra.shape[:2], np.uint8)
        cv2.fillPoly(self.extra, [self.fixed(uv)], 255, cv2.LINE_8, SHIFT)

    def finish(self) -> Sprite:
        """The sprite at the frame's resolution."""
        bgra, extra = self.bgra, self.extra
        for times in range(self.scale.bit_length() - 2, -1, -1):  # halving is OpenCV's fast case
            size = (self.w << times, self.h << times)
            bgra = cv2.resize(bgra, size, interpolation=cv2.INTER_AREA)
            if extra is not None:
                extra = cv2.resize(extra, size, interpolation=cv2.INTER_AREA)
        alpha = cv2.extractChannel(bgra, 3)
        if extra is not None:
            alpha = cv2.max(alpha, extra)
        _, solid = cv2.threshold(alpha, SOLID_ALPHA, 255, cv2.THRESH_BINARY)
        return Sprite(bgra=bgra, solid=solid, x=self.x, y=self.y, inside=self.inside)


def place_picture(
    pictures: list[np.ndarray], extent_xyxy: tuple[float, float, float, float],
    size_hw: tuple[int, int], *, is_mirrored: bool = False,
) -> Sprite | None:  # fmt: skip
    """Scale a premultiplied (h, w, 4) picture into an extent of the frame, in pixels.

    pictures holds it at falling resolutions, each half the one before.
    """
    x1, y1, x2, y2 = extent_xyxy
    left, top = max(0, int(np.floor(x1))), max(0, int(np.floor(y1)))
    width = min(size_hw[1], int(np.ceil(x2))) - left
    height = min(size_hw[0], int(np.ceil(y2))) - top
    if width <= 0 or height <= 0 or x2 - x1 < 1 or y2 - y1 < 1:
        return None
    for picture in pictures:
        sx, sy = picture.shape[1] / (x2 - x1), picture.shape[0] / (y2 - y1)
        if min(sx, sy) <= 2.0:
            break
    offset = (left - x1 + 0.5) * sx - 0.5
    if is_mirrored:
        sx, offset = -sx, picture.shape[1] - 1 - offset
    matrix = np.array([[sx, 0, offset], [0, sy, (top - y1 + 0.5) * sy - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    bgra = cv2.warpAffine(picture, matrix, (width, height), flags=flags)
    _, solid = cv2.threshold(cv2.extractChannel(bgra, 3), SOLID_ALPHA, 255, cv2.THRESH_BINARY)
    inside = min(1.0, width * height / ((x2 - x1) * (y2 - y1)))
    return Sprite(bgra=bgra, solid=solid, x=left, y=top, inside=inside)


def tone(sprite: Sprite, gain: Colour, haze: Colour, haze_part: float) -> None:
    """Light a sprite: BGR times gain, then haze_part (0..1) of the way to the haze's colour."""
    keep = 1.0 - haze_part
    weights = np.zeros((4, 4), np.float32)
    for channel in range(3):
        weights[channel, channel] = gain[channel] * keep
        weights[channel, 3] = haze[channel] * haze_part / 255.0
    weights[3, 3] = 1.0
    sprite.bgra = cv2.transform(sprite.bgra, weights)


def smear(sprite: Sprite, length: int, size_hw: tuple[int, int]) -> None:
    """Blur a sprite along the rows by `length` pixels: the motion within one exposure."""
    pad = length // 2 + 1
    left, right = min(pad, sprite.x), min(pad, size_hw[1] - sprite.x - sprite.bgra.shape[1])
    padded = cv2.copyMakeBorder(sprite.bgra, 0, 0, left, right, cv2.BORDER_CONSTANT, value=0)
    sprite.bgra = cv2.blur(padded, (length, 1), borderType=cv2.BORDER_CONSTANT)
    solid = cv2.copyMakeBorder(sprite.solid, 0, 0, left, right, cv2.BORDER_CONSTANT, value=0)
    sprite.solid = solid
    sprite.x -= left


def composite(frame: np.ndarray, sprite: Sprite) -> None:
    """Lay a sprite over the frame (H, W, 3) uint8, in place."""
    h, w = sprite.solid.shape
    target = frame[sprite.y : sprite.y + h, sprite.x : sprite.x + w]
    rest = cv2.cvtColor(cv2.bitwise_not(cv2.extractChannel(sprite.bgra, 3)), cv2.COLOR_GRAY2BGR)
    colour = cv2.cvtColor(sprite.bgra, cv2.COLOR_BGRA2BGR)
    cv2.multiply(target, rest, dst=rest, scale=1 / 255)
    target[:] = cv2.add(rest, colour)
