"""Changes of colour and sharpness: (H, W, 3) uint8 BGR in, a new one of the same kind out."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

NOISE_BANK = 1 << 20  # numbers drawn once; fresh noise for every image would cost 4 ms


def jitter_hsv(
    image: np.ndarray, gains: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """Multiply hue, saturation and value by 1 + u * gain, with u uniform in -1..1.

    Args:
        image: (H, W, 3) uint8, BGR.
        gains: of hue, saturation and value, 0..1 each.
        rng: of the three factors.
    """
    factors = 1 + rng.uniform(-1, 1, 3) * gains
    levels = np.arange(256)
    table = np.empty((1, 256, 3), np.uint8)
    table[0, :, 0] = (levels * factors[0]) % 180  # OpenCV's hue is 0..179
    table[0, :, 1:] = (levels[:, None] * factors[1:]).clip(0, 255)
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2BGR)


def shift_brightness(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Set contrast around mid-grey, then brightness.

    Args:
        image: (H, W, 3) uint8.
        brightness: added, in units of the full range; -1..1.
        contrast: factor around 128; 1 leaves it.
    """
    levels = (np.arange(256) - 128.0) * contrast + 128.0 + 255.0 * brightness
    return cv2.LUT(image, np.rint(levels.clip(0, 255)).astype(np.uint8))


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; ``sigma`` in pixels, 0 leaves the image."""
    if sigma <= 0:
        return image.copy()
    return cv2.GaussianBlur(image, (0, 0), sigma)


def add_noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise, independent by channel; ``sigma`` in grey levels of 255."""
    bank = _noise_bank()
    start = int(rng.integers(NOISE_BANK))
    picked = np.take(bank, np.arange(start, start + image.size), mode="wrap")
    noise = np.rint(picked * np.float32(sigma)).astype(np.int16).reshape(image.shape)
    return cv2.add(image, noise, dtype=cv2.CV_8U)


@cache
def _noise_bank() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(NOISE_BANK, dtype=np.float32)
