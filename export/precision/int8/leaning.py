"""What a frame between key frames is calibrated on: its image, and the state of a key frame.

Calibration frames lie far apart, so each one's key frame is made of itself, as a camera would have
seen it one to four frames earlier: shifted and a little smaller.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray

from export.precision.int8.observing import Feeds, open_part

AGES = (1, 2, 3, 4)  # frames since the key frame
WAYS = ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (0, 0))
SHIFT_SHARE, ZOOM = 0.01, 0.99  # of the width, and of the size, each frame back

Image = NDArray[np.uint8]


def leaning_feeds(
    key: onnx.ModelProto, state: Mapping[str, str], frames: Iterable[Image]
) -> Iterator[Feeds]:
    """Feeds of the graph "nonkey" for each frame, one at a time.

    Args:
        key: the float32 graph "key"; no body is needed for what its state does not depend on.
        state: of the manifest: output of "key" -> input of "nonkey".
        frames: (H, W, 3) uint8 BGR, network size.
    """
    session, names = open_part(key, [*state])
    for turn, frame in enumerate(frames):
        left = session.run(names, {"image": look_back(frame, turn)[None]})
        given = {state[name]: value for name, value in zip(names, left, strict=True)}
        yield {"image": frame[None], **given}


def look_back(frame: Image, turn: int) -> Image:
    """A frame as it was some frames earlier; `turn` chooses how long ago, and which way it went."""
    height, width = frame.shape[:2]
    age = AGES[turn % len(AGES)]
    zoom = ZOOM**age
    step = np.array(WAYS[turn % len(WAYS)]) * (age * SHIFT_SHARE * width)
    x, y = (1 - zoom) * np.array((width, height)) / 2 + step
    matrix = np.array([[zoom, 0, x], [0, zoom, y]])
    return cv2.warpAffine(frame, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
