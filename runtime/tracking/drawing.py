"""Lines and zones with their figures, drawn into the frame."""

from __future__ import annotations

import numpy as np

from runtime.draw import paste_text, sizes_of
from runtime.preprocess import Frame
from runtime.tracking.counts import Counts, LineCount, ZoneCount

LINE_BGR = ZONE_BGR = (0, 215, 255)
EVENT_BGR = (255, 255, 255)  # in the frame in which something crossed
_DARK_BGR = (20, 20, 20)
_FAR_PX = 1 << 14  # OpenCV wraps coordinates around beyond 2**15


def draw_counts(frame_bgr: Frame, counts: Counts) -> Frame:
    """Draw lines and zones into a frame, in place.

    On each side of a line stands how many crossed to it, in a zone how many are inside; what is
    crossed in this very frame is white.

    Args:
        frame_bgr: (h, w, 3) uint8, contiguous.
        counts: as of this frame.

    Returns:
        The same frame.
    """
    for zone in counts.zones:
        _draw_zone(frame_bgr, zone)
    for line in counts.lines:
        _draw_line(frame_bgr, line)
    return frame_bgr


def _draw_line(frame_bgr: Frame, count: LineCount) -> None:
    import cv2

    colour = EVENT_BGR if count.events else LINE_BGR
    thickness, font_scale = sizes_of(frame_bgr)
    start, end = (_pixel(xy) for xy in (count.line.start_xy, count.line.end_xy))
    cv2.line(frame_bgr, start, end, colour, 2 * thickness, cv2.LINE_AA)
    for place in (start, end):
        cv2.circle(frame_bgr, place, 3 * thickness, colour, cv2.FILLED, cv2.LINE_AA)
    along = np.subtract(count.line.end_xy, count.line.start_xy).astype(np.float64)
    along /= np.hypot(*along)
    middle = np.add(count.line.start_xy, count.line.end_xy) / 2
    rightward = np.array([-along[1], along[0]])  # in a picture y points down
    # A label is flat: it needs more room beside a line that stands than beside one that lies.
    reach = 40 * font_scale * (1 + abs(rightward[0]))
    for side, figures in ((1, count.to_right), (-1, count.to_left)):
        x, y = middle + side * reach * rightward
        paste_text(frame_bgr, f"{sum(figures.values())}", (x, y), _DARK_BGR)
    paste_text(frame_bgr, count.line.name, (middle[0], middle[1]), colour)


def _draw_zone(frame_bgr: Frame, count: ZoneCount) -> None:
    import cv2

    colour = EVENT_BGR if count.events else ZONE_BGR
    thickness, _ = sizes_of(frame_bgr)
    corners = np.array([_pixel(xy) for xy in count.zone.corners_xy], np.int32)
    cv2.polylines(frame_bgr, [corners], True, colour, 2 * thickness, cv2.LINE_AA)
    inside, entered, left = (
        sum(each.values()) for each in (count.inside, count.entered, count.left)
    )
    text = f"{count.zone.name}: {inside} inside, +{entered} -{left}"
    x, y = corners.mean(axis=0)
    paste_text(frame_bgr, text, (float(x), float(y)), colour)


def _pixel(xy: tuple[float, float]) -> tuple[int, int]:
    x, y = np.rint(np.clip(xy, -_FAR_PX, _FAR_PX)).astype(int).tolist()
    return x, y
