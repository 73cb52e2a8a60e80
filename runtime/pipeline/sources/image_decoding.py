"""Bytes of an image file to a picture, whatever the file holds: the picture, or a reason."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.contract.errors import SourceError, one_line
from runtime.pipeline.sources.base import Image
from runtime.pipeline.sources.capture import quieten
from runtime.pipeline.sources.image_headers import ImageError, ImageHeader, read_header

LARGEST_FILE_PIXELS = 200_000_000  # the largest sensors of phones; more is not decoded
LARGEST_FRAME_PIXELS = 50_000_000  # of a frame in a pipeline, which holds ten: 1.5 GB
LARGEST_FILE_BYTES = 2_000_000_000
_REDUCTIONS = (1, 2, 4, 8)

_log = logging.getLogger(__name__)


def read_image(path: Path, *, largest_pixels: int = LARGEST_FRAME_PIXELS) -> Image:
    """Read an image file; see `decode_image`.

    Raises:
        SourceError: it cannot be read or decoded; the message names it and says why.
    """
    try:
        num_bytes = path.stat().st_size
        if num_bytes > LARGEST_FILE_BYTES:
            raise SourceError(
                f"{path} has {num_bytes} bytes; expected at most {LARGEST_FILE_BYTES} of an image"
            )
        data = np.fromfile(path, np.uint8)  # paths that OpenCV cannot spell are read, too
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {one_line(error)}") from None
    try:
        return decode_image(data, largest_pixels=largest_pixels, name=str(path))
    except ImageError as error:
        raise SourceError(f"{path} {error}") from None


def decode_image(
    data: NDArray[np.uint8], *, largest_pixels: int = LARGEST_FRAME_PIXELS, name: str = "image"
) -> Image:
    """Decode a JPEG, PNG, BMP, WebP or TIFF, by its content.

    Turned upright as its EXIF says. Grey becomes three equal channels, CMYK becomes BGR, alpha is
    dropped and the colours below it are kept (as Pillow's convert("RGB") does). 16-bit values are
    divided by 257, so that white stays white; floating point is taken as 0..1 and clipped.

    Args:
        data: the whole file.
        largest_pixels: a larger picture is given at 1/2, 1/4 or 1/8 of its sides, and the log
            says so.
        name: for the log.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        ImageError: no such image, damaged, broken off, or over `LARGEST_FILE_PIXELS`.
    """
    quieten()
    import cv2

    header = read_header(data.data)
    reduction = _choose_reduction(header, largest_pixels)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    if reduction > 1 and header.kind == "JPEG":
        flags = {
            2: cv2.IMREAD_REDUCED_COLOR_2,
            4: cv2.IMREAD_REDUCED_COLOR_4,
            8: cv2.IMREAD_REDUCED_COLOR_8,
        }[reduction]
    try:
        picture: NDArray[Any] | None = cv2.imdecode(data, flags)
    except (cv2.error, MemoryError):
        picture = None
    if picture is None or picture.size == 0:
        raise ImageError(f"is a {header.kind} that does not decode: damaged, or of a rare form")
    image = _to_8_bits(picture)
    if reduction > 1:
        if header.kind != "JPEG":
            sides = (-(-image.shape[1] // reduction), -(-image.shape[0] // reduction))
            image = np.asarray(cv2.resize(image, sides, interpolation=cv2.INTER_AREA), np.uint8)
        _log.warning(
            "%s of %dx%d pixels is read at 1/%d of its sides; results are in pixels of %dx%d",
            name, header.width, header.height, reduction, image.shape[1], image.shape[0],
        )  # fmt: skip
    return image


def _choose_reduction(header: ImageHeader, largest_pixels: int) -> int:
    if header.num_pixels <= LARGEST_FILE_PIXELS:
        for reduction in _REDUCTIONS:
            if -(-header.width // reduction) * -(-header.height // reduction) <= largest_pixels:
                return reduction
    raise ImageError(
        f"is a {header.kind} of {header.width}x{header.height} pixels; expected at most "
        f"{LARGEST_FILE_PIXELS // 1_000_000} million"
    )


def _to_8_bits(picture: NDArray[Any]) -> Image:
    """(H, W, 3) uint8 of uint8, uint16 (0..65535) or floating point (0..1)."""
    import cv2

    if picture.ndim == 2:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    if picture.dtype == np.uint8:
        return np.asarray(picture, np.uint8)
    if picture.dtype == np.uint16:
        return np.asarray(cv2.convertScaleAbs(picture, alpha=1 / 257), np.uint8)
    if picture.dtype in (np.float32, np.float64):
        unit = np.nan_to_num(picture, nan=0.0, posinf=1.0, neginf=0.0)
        return np.asarray(np.rint(np.clip(unit, 0.0, 1.0) * 255.0), np.uint8)
    raise ImageError(f"holds values of type {picture.dtype}; expected 8 or 16 bits, or 0..1")
