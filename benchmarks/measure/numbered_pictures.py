"""Pictures that carry a number through any codec: 32 squares, dark for 0 and light for 1.

Plain Python: a server run by the system's Python draws them, too.
"""

from __future__ import annotations

from typing import Any

BITS_PER_ROW, NUM_ROWS = 8, 4
DARK, LIGHT = b"\x20", b"\xe0"


def draw_number(number: int, size_wh: tuple[int, int]) -> bytes:
    """Draw the lowest 32 bits.

    Args:
        number: 0 or more.
        size_wh: (width, height), multiples of 8 and 4.

    Returns:
        height x width grey bytes, row by row; from the left and top, the highest bits first.
    """
    width, height = size_wh
    assert width % BITS_PER_ROW == 0
    assert height % NUM_ROWS == 0
    picture = b""
    for row in reversed(range(NUM_ROWS)):
        line = b"".join(
            (LIGHT if number >> (row * BITS_PER_ROW + place) & 1 else DARK)
            * (width // BITS_PER_ROW)
            for place in reversed(range(BITS_PER_ROW))
        )
        picture += line * (height // NUM_ROWS)
    return picture


def read_number(image_bgr: Any) -> int:
    """Find the number in a picture, (H, W, 3) or (H, W)."""
    height, width = image_bgr.shape[:2]
    number = 0
    for row in range(NUM_ROWS):
        for place in range(BITS_PER_ROW):
            y = (2 * row + 1) * height // (2 * NUM_ROWS)
            x = (2 * place + 1) * width // (2 * BITS_PER_ROW)
            value = image_bgr[y, x] if image_bgr.ndim == 2 else image_bgr[y, x, 1]
            number = number << 1 | int(value > 128)
    return number
