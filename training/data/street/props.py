"""Things that stand in the street and are not to be detected: trees, posts, signs, bins ...

They hide objects and they look a little like them, so a detector must look twice.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from training.data.street.textures import fractal_noise

# name -> height range in metres, width over height of its picture, number of variants, green?
PROPS: dict[str, tuple[tuple[float, float], float, int, bool]] = {
    "tree": ((4.5, 8.0), 0.72, 8, True),
    "conifer": ((4.0, 7.5), 0.5, 4, True),
    "bush": ((0.7, 1.3), 1.5, 4, True),
    "lamp": ((4.5, 6.0), 0.24, 4, False),
    "sign": ((2.3, 2.9), 0.28, 10, False),
    "bin": ((0.9, 1.2), 0.62, 6, False),
    "bollard": ((0.8, 1.1), 0.2, 6, False),
    "signal": ((3.0, 3.6), 0.2, 3, False),
    "hydrant": ((0.6, 0.8), 0.55, 3, False),
    "planter": ((0.9, 1.2), 1.1, 4, False),
    "cabinet": ((1.1, 1.7), 0.7, 5, False),
    "pillar": ((2.4, 2.9), 0.42, 5, False),
    "globe_lamp": ((2.6, 3.4), 0.2, 3, False),
}
PICTURE_H = 320


def _blank(aspect: float, height: int = PICTURE_H) -> np.ndarray:
    return np.zeros((height, max(8, round(height * aspect)), 4), np.uint8)


def _round(picture: np.ndarray, x1: int, y1: int, x2: int, y2: int, colour: np.ndarray) -> None:
    """A standing cylinder: vertical strips from light to dark."""
    across = np.arange(x1, x2)
    part = (across - x1 + 0.5) / max(1, x2 - x1)
    gain = 0.55 + 0.62 * np.sin(np.pi * np.clip(part * 0.85 + 0.22, 0, 1))
    strip = np.clip(colour[None] * gain[:, None], 0, 255)
    picture[y1:y2, x1:x2, :3] = strip[None]
    picture[y1:y2, x1:x2, 3] = 255


def _leaves(picture: np.ndarray, blobs: np.ndarray, rng: np.random.Generator) -> None:
    """Clusters of leaves (x, y, radius), lighter above and to one side."""
    green = np.array(
        [(45, 105, 70), (40, 90, 60), (60, 120, 80), (40, 120, 130), (50, 95, 150)][rng.choice(
            5, p=[0.3, 0.25, 0.25, 0.12, 0.08])], np.float32,
    )  # fmt: skip
    top, bottom = blobs[:, 1].min(), blobs[:, 1].max() + 1
    for x, y, radius in blobs[np.argsort(-blobs[:, 1])]:
        base = green * (1.22 - 0.6 * (y - top) / (bottom - top))
        for _ in range(70):
            angle, far = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.random())
            at = (int(x + far * np.cos(angle)), int(y + far * np.sin(angle) * 0.85))
            gain = rng.uniform(0.62, 1.18) * (1.1 - 0.25 * np.sin(angle))
            colour = np.clip(base * gain, 0, 255).tolist()
            cv2.circle(picture, at, int(rng.integers(2, 6)), (*colour, 255), -1, cv2.LINE_AA)


def _tree(rng: np.random.Generator, aspect: float) -> np.ndarray:
    picture = _blank(aspect)
    height, width = picture.shape[:2]
    middle = width // 2
    _round(picture, middle - 7, height // 2, middle + 7, height, np.array((55, 70, 90.0)))
    count = 34
    angle, far = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count))
    x = middle + far * np.cos(angle) * width * 0.36
    y = height * 0.33 + far * np.sin(angle) * height * 0.25
    _leaves(picture, np.stack([x, y, rng.uniform(18, 30, count)], axis=1), rng)
    return picture


def _conifer(rng: np.random.Generator, aspect: float) -> np.ndarray:
    picture = _blank(aspect)
    height, width = picture.shape[:2]
    _round(picture, width // 2 - 6, height - 50, width // 2 + 6, height, np.array((50, 62, 80.0)))
    part = np.linspace(0.05, 1.0, 40)
    x = width / 2 + (rng.random(40) - 0.5) * part * width * 0.72
    _leaves(picture, np.stack([x, 20 + part * height * 0.78, 6 + part * 16], axis=1), rng)
    return picture


def _bush(rng: np.random.Generator, aspect: float) -> np.ndarray:
    picture = _blank(aspect, 160)
    height, width = picture.shape[:2]
    x = rng.uniform(0.14, 0.86, 26) * width
    y = height * (0.45 + 0.4 * rng.random(26))
    _leaves(picture, np.stack([x, y, rng.uniform(14, 24, 26)], axis=1), rng)
    return picture


def _pole(picture: np.ndarray, half: int, grey: float, top: int = 0) -> None:
    middle = picture.shape[1] // 2
    colour = np.full(3, grey)
    _round(picture, middle - half, top, middle + half, picture.shape[0], colour)


def _lamp(rng: np.random.Generator, aspect: float) -> np.ndarray:
    picture = _blank(aspect)
    grey = rng.uniform(50, 130)
    _pole(picture, 3, grey, 10)
    middle = picture.shape[1] // 2
    cv2.line(picture, (middle, 12), (8, 8), (grey, grey, grey, 255), 4, cv2.LINE_AA)
    cv2.ellipse(picture, (14, 10), (13, 5), 0, 0, 360, (210, 225, 230, 255), -1, cv2.LINE_AA)
    return picture


def _globe_lamp(rng: np.random.Generator, aspect: float) -> np.ndarray:
    picture = _blank(aspect)
    _pole(picture, 4, rng.uniform(35, 70), 50)
    middle = picture.shape[1] // 2
    cv2.circle(picture, (middle, 30), 24, (205, 222, 228, 255), -1, cv2.LINE_AA)
    cv2.circle(picture, (middle - 6, 24), 10, (235, 245, 248, 255), -1, cv2.LINE_AA)
    cv2.rectangle(picture, (middle - 12, 52), (middle + 12, 58), (50, 50, 50, 255), -1)
    return picture


def _sign(rng: np.random.Generator, aspect: float) -> np.ndarray:
    picture = _blank(aspect)
    _pole(picture, 4, 140, 20)
    width = picture.shape[1]
    middle, radius = width // 2, width // 2 - 3
    kind = int(rng.integers(5))
    white, red, blue = (238, 238, 238, 255), (45, 40, 200, 255), (190, 95, 30, 255)
    yellow = (50, 205, 240, 255)
    if kind == 0:
        cv2.circle(picture, (middle, 46), radius, red, -1, cv2.LINE_AA)
        cv2.circle(picture, (middle, 46), radius - 9, white, -1, cv2.LINE_AA)
        cv2.putText(picture, "50", (middle - 18, 56), 0, 0.8, (20, 20, 20, 255), 3)
    elif kind == 1:
        cv2.circle(picture, (middle, 46), radius, red, -1, cv2.LINE_AA)
        cv2.rectangle(picture, (middle - 24, 40), (middle + 24, 52), white, -1)
    elif kind == 2:
        points = np.array([[middle, 4], [width - 3, 78], [3, 78]])
        cv2.fillPoly(picture, [points], red, cv2.LINE_AA)
        inner = ((points - (middle, 54)) * 0.66 + (middle, 54)).astype(np.int32)
        cv2.fillPoly(picture, [inner], white, cv2.LINE_AA)
    elif kind == 3:
        cv2.rectangle(picture, (4, 10), (width - 4, 84), blue, -1)
        cv2.putText(picture, "P", (middle - 18, 66), 0, 1.7, white, 5, cv2.LINE_AA)
    else:
        cv2.rectangle(picture, (3, 20), (width - 3, 64), yellow, -1)
        cv2.line(picture, (14, 42), (width - 18, 42), (20, 20, 20, 255), 6, cv2.LINE_AA)
    return picture


def _bin(rng: np.random.Generator, aspect: float) -> np.ndarray:
    picture = _blank(aspect)
    height, width = picture.shape[:2]
    colours = [(60, 90, 50), (70, 70, 70), (120, 80, 40), (60, 60, 110), (90, 120, 100)]
    colour = np.array(colours[int(rng.integers(5))], np.float32)
    _round(picture, 12, 50, width - 12, height - 4, colour)
    _round(picture, 4, 24, width - 4, 58, colour * 0.75)
    cv2.rectangle(picture, (width // 4, 80), (3 * width // 4, 100), (25, 25, 25, 255), -1)
    cv2.rectangle(picture, (20, height - 8), (width - 20, height), (30, 30, 30, 255), -1)
    return picture


def _bollard(rng: np.random.Generator, aspect: float) -> np.ndarray:
    picture = _blank(aspect)
    height, width = picture.shape[:2]
    _round(picture, 6, 10, width - 6, height, np.full(3, rng.uniform(40, 160)))
    if rng.random() < 0.6:
        _round(picture, 6, 50, width - 6, 90, np.array((220.0, 225, 228)))
    cv2.ellipse(picture, (width // 2, 12), (width // 2 - 6, 9), 0, 0, 360, (120, 120, 122, 255), -1)
    return picture


def _signal(rng: np.random.Generator, aspect: float) -> np.ndarray:
    picture = _blank(aspect)
    _pole(picture, 4, 90, 90)
    middle = picture.shape[1] // 2
    cv2.rectangle(picture, (middle - 20, 2), (middle + 20, 104), (35, 38, 36, 255), -1)
    lit = int(rng.integers(3))
    colours = ((60, 60, 235), (60, 200, 250), (110, 220, 60))
    for number, colour in enumerate(colours):
        shown = colour if number == lit else tuple(c * 0.28 for c in colour)
        cv2.circle(picture, (middle, 20 + 33 * number), 13, (*shown, 255), -1, cv2.LINE_AA)
    return picture


def _hydrant(rng: np.random.Generator, aspect: float) -> np.ndarray:
    picture = _blank(aspect, 160)
    height, width = picture.shape[:2]
    colour = np.array([(40, 40, 190), (40, 180, 220), (170, 90, 40)][int(rng.integers(3))], float)
    _round(picture, width // 4, 40, 3 * width // 4, height, colour)
    _round(picture, 6, 70, width - 6, 92, colour * 0.85)
    cv2.ellipse(
        picture, (width // 2, 42), (width // 4, 30), 0, 180, 360, (*(colour * 0.9), 255), -1
    )
    return picture


def _planter(rng: np.random.Generator, aspect: float) -> np.ndarray:
    picture = _blank(aspect, 200)
    height, width = picture.shape[:2]
    x = rng.uniform(0.2, 0.8, 20) * width
    y = height * (0.28 + 0.2 * rng.random(20))
    _leaves(picture, np.stack([x, y, rng.uniform(14, 22, 20)], axis=1), rng)
    _round(picture, 14, height // 2, width - 14, height, np.full(3, rng.uniform(110, 180)))
    _round(picture, 8, height // 2, width - 8, height // 2 + 12, np.full(3, 165.0))
    return picture


def _cabinet(rng: np.random.Generator, aspect: float) -> np.ndarray:
    picture = _blank(aspect, 200)
    height, width = picture.shape[:2]
    colour = rng.uniform(60, 190) * rng.uniform(0.8, 1.1, 3)
    cv2.rectangle(picture, (6, 8), (width - 6, height), (*colour.tolist(), 255), -1)
    cv2.rectangle(picture, (6, 8), (width // 5, height), (*(colour * 0.7).tolist(), 255), -1)
    cv2.rectangle(picture, (2, 2), (width - 2, 12), (*(colour * 0.85).tolist(), 255), -1)
    for y in range(36, 100, 10):
        cv2.line(picture, (width // 3, y), (width - 20, y), (*(colour * 0.6).tolist(), 255), 3)
    return picture


def _pillar(rng: np.random.Generator, aspect: float) -> np.ndarray:
    """An advertising pillar with posters: patches of colour, no figures."""
    picture = _blank(aspect)
    height, width = picture.shape[:2]
    _round(picture, 8, 26, width - 8, height, np.array((130.0, 140, 120)))
    for top in (50, 150, 230):
        colour = rng.uniform(40, 230, 3)
        x1 = int(rng.integers(14, 40))
        _round(picture, x1, top, width - 20, top + int(rng.integers(50, 86)), colour)
        cv2.line(picture, (x1 + 8, top + 20), (width - 40, top + 20), (240, 240, 240, 255), 5)
    cv2.ellipse(picture, (width // 2, 28), (width // 2 - 3, 22), 0, 180, 360, (70, 90, 60, 255), -1)
    return picture


@lru_cache(maxsize=1)
def prop_pictures() -> dict[str, list[list[np.ndarray]]]:
    """Premultiplied (h, w, 4) uint8 pictures of every prop; the last row stands on the ground.

    Each variant is a list of its picture at full, half, quarter ... resolution.
    """
    rng = np.random.default_rng(907)
    painters = {
        "tree": _tree, "conifer": _conifer, "bush": _bush, "lamp": _lamp, "sign": _sign,
        "bin": _bin, "bollard": _bollard, "signal": _signal, "hydrant": _hydrant,
        "planter": _planter, "cabinet": _cabinet, "pillar": _pillar, "globe_lamp": _globe_lamp,
    }  # fmt: skip
    bank = {}
    for name, (_, aspect, count, _) in PROPS.items():
        bank[name] = [[painters[name](rng, aspect)] for _ in range(count)]
        for pictures in bank[name]:
            picture = pictures[0]
            grain = fractal_noise(rng, picture.shape[:2], base=8, octaves=4)
            gain = (0.86 + 0.28 * grain)[..., None]
            picture[..., :3] = np.clip(picture[..., :3] * gain, 0, 255).astype(np.uint8)
            np.minimum(picture[..., :3], picture[..., 3:], out=picture[..., :3])
            while min(pictures[-1].shape[:2]) > 8:
                h, w = pictures[-1].shape[:2]
                half = (max(1, w // 2), max(1, h // 2))
                pictures.append(cv2.resize(pictures[-1], half, interpolation=cv2.INTER_AREA))
    return bank
