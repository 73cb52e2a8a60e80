"""What an image file says of itself, read before any decoder sees it.

A decoder believes the size in the header and asks for the memory; a few damaged bytes there make
gigabytes. PNG's checksums are verified here, too: libpng writes to stderr where they are wrong.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from runtime.contract.errors import SourceError

MOST_SCANS = 100  # of a progressive JPEG; usual ones have 10, crafted ones cost minutes

_JPEG_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..SOF15: size
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
_PNG_SIGN = b"\x89PNG\r\n\x1a\n"
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 256, 257, 322, 323
_TIFF_SAMPLES = 277
_TIFF_MOST_SAMPLES = 64
_TIFF_FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # field type -> struct


class ImageError(SourceError):
    """An image that cannot be decoded; the text says why, without the file's name."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """An image's kind and size as its header states them.

    Attributes:
        kind: "JPEG", "PNG", "BMP", "WebP" or "TIFF", by the first bytes, whatever the suffix.
        width, height: pixels, at least 1, as stored: EXIF's orientation is not applied.
    """

    kind: str
    width: int
    height: int

    @property
    def num_pixels(self) -> int:
        return self.width * self.height


def read_header(data: bytes | memoryview) -> ImageHeader:
    """Kind and size of an image, from its first bytes.

    Args:
        data: the whole file.

    Raises:
        ImageError: empty, of another kind, or a header that is broken off or makes no sense.
    """
    if not data:
        raise ImageError("is empty (0 bytes)")
    view = memoryview(data)
    head = bytes(view[:16])
    kind = next((name for name, is_it in _SIGNS.items() if is_it(head)), None)
    if kind is None:
        raise ImageError("is no JPEG, PNG, BMP, WebP or TIFF")
    try:
        width, height = _SIZES[kind](view)
    except (struct.error, IndexError, OverflowError):
        raise ImageError(f"is a {kind} whose header is damaged or broken off") from None
    if width < 1 or height < 1:
        raise ImageError(f"is a {kind} of {width}x{height} pixels; expected at least 1x1")
    return ImageHeader(kind, width, height)


def _jpeg_size(view: memoryview) -> tuple[int, int]:
    """From the frame header (ITU-T T.81, B.2.2); what is coded must be able to fill the frame.

    libjpeg paints what is missing grey, and OpenCV gives that as a picture.
    """
    data = bytes(view)
    size, is_huffman = None, False
    place = 2
    while data[place : place + 2] != _JPEG_SCAN:
        marker = data[place + 1]
        if data[place] != 0xFF or marker == 0xFF:
            place += 1  # decoders look for the next marker, too
            continue
        if marker in _JPEG_FRAMES and size is None:
            height, width = struct.unpack_from(">HH", data, place + 5)
            size, is_huffman = (width, height), marker <= 0xC2
        has_length = marker not in _JPEG_WITHOUT_LENGTH
        place += 2 + (struct.unpack_from(">H", data, place + 2)[0] if has_length else 0)
    # Within coded data 0xFF is stuffed, so the first end marker after the first scan is the end.
    # What follows it (a second picture, a phone's short film) is not looked at.
    end = data.find(_JPEG_END, place)
    if size is None or end < 0:
        raise ImageError("is a JPEG that is broken off: its end is missing")
    num_scans = data.count(_JPEG_SCAN, place, end)
    if num_scans > MOST_SCANS:
        raise ImageError(f"is a JPEG of {num_scans} scans; expected at most {MOST_SCANS}")
    num_blocks = -(-size[0] // 8) * -(-size[1] // 8)
    if is_huffman and (end - place) * 8 < num_blocks:  # a bit is the least for a block
        raise ImageError(f"is a JPEG of {size[0]}x{size[1]} pixels that holds a small part of them")
    return size


def _png_size(view: memoryview) -> tuple[int, int]:
    """From IHDR; every chunk that decoding needs is held against its checksum (PNG, 5.3)."""
    size = None
    place = len(_PNG_SIGN)
    while True:
        length, name = struct.unpack_from(">I4s", view, place)
        end = place + 8 + length
        (checksum,) = struct.unpack_from(">I", view, end)
        is_needed = not name[0] & 0x20  # an upper-case letter: critical
        if is_needed and zlib.crc32(view[place + 4 : end]) != checksum:
            raise ImageError(f"is a damaged PNG: the checksum of {name!r} at {place} is wrong")
        if name == b"IHDR" and size is None:
            width, height = struct.unpack_from(">II", view, place + 8)
            size = width, height
        if name == b"IEND":
            break
        place = end + 4
    if size is None:
        raise ImageError("is a damaged PNG: it has no IHDR")
    return size


def _bmp_size(view: memoryview) -> tuple[int, int]:
    (header_size,) = struct.unpack_from("<I", view, 14)
    if header_size == 12:  # OS/2
        width, height = struct.unpack_from("<HH", view, 18)
    else:
        width, height = struct.unpack_from("<ii", view, 18)
    return width, abs(height)  # negative: from the top row down


def _webp_size(view: memoryview) -> tuple[int, int]:
    """From the first chunk: VP8 (RFC 6386, 9.1), VP8L or VP8X."""
    (riff_size,) = struct.unpack_from("<I", view, 4)
    if riff_size + 8 > len(view) + 1:  # the last byte of padding may be missing
        raise ImageError("is a WebP that is broken off: its end is missing")
    name = bytes(view[12:16])
    if name == b"VP8X":
        width = 1 + int.from_bytes(view[24:27], "little")
        return width, 1 + int.from_bytes(view[27:30], "little")
    if name == b"VP8L":
        (bits,) = struct.unpack_from("<I", view, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", view, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ImageError(f"is a WebP that begins with the unknown chunk {name!r}")


def _tiff_size(view: memoryview) -> tuple[int, int]:
    """From the first directory; a tile may be larger than the image, and is counted then."""
    order = "<" if view[0] == ord("I") else ">"
    is_big = struct.unpack_from(order + "H", view, 2)[0] == 43
    (place,) = struct.unpack_from(order + ("Q" if is_big else "I"), view, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), view, place)
    place += 8 if is_big else 2
    length, value_at = (20, 12) if is_big else (12, 8)
    values: dict[int, int] = {}
    for entry in range(place, place + length * min(count, 65535), length):
        tag, kind = struct.unpack_from(order + "HH", view, entry)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT, _TIFF_SAMPLES):
            # An unknown type is for libtiff to judge; its size is not believed.
            form = _TIFF_FORMATS.get(kind, "B" if is_big else "I")
            values[tag] = struct.unpack_from(order + form, view, entry + value_at)[0]
    samples = values.get(_TIFF_SAMPLES, 1)
    if samples > _TIFF_MOST_SAMPLES:
        raise ImageError(f"is a TIFF of {samples} values a pixel; expected 1 to 4")
    width, height = values.get(_TIFF_WIDTH, 0), values.get(_TIFF_HEIGHT, 0)
    if min(width, height) < 1:
        return width, height
    return max(width, values.get(_TIFF_TILE_WIDTH, 0)), max(
        height, values.get(_TIFF_TILE_HEIGHT, 0)
    )


_SIGNS: dict[str, Callable[[bytes], bool]] = {
    "JPEG": lambda head: head.startswith(b"\xff\xd8\xff"),
    "PNG": lambda head: head.startswith(_PNG_SIGN),
    "BMP": lambda head: head.startswith(b"BM"),
    "WebP": lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP",
    "TIFF": lambda head: head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_SIZES: dict[str, Callable[[memoryview], tuple[int, int]]] = {
    "JPEG": _jpeg_size,
    "PNG": _png_size,
    "BMP": _bmp_size,
    "WebP": _webp_size,
    "TIFF": _tiff_size,
}
