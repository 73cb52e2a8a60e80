"""Video4Linux by ioctl: what a camera calls itself and which formats it gives.

Numbers and structures are those of <linux/videodev2.h>, which do not change.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from typing import Any

# _IOC(direction, 'V', number, size): read 2, write 1; the same on x86 and Arm
_CAPABILITY_BYTES, _FORMAT_BYTES = 104, 64
QUERY_CAPABILITY = 2 << 30 | _CAPABILITY_BYTES << 16 | ord("V") << 8 | 0
ENUMERATE_FORMATS = 3 << 30 | _FORMAT_BYTES << 16 | ord("V") << 8 | 2

VIDEO_CAPTURE, VIDEO_CAPTURE_MPLANE = 0x1, 0x1000
MEMORY_TO_MEMORY, MEMORY_TO_MEMORY_MPLANE = 0x8000, 0x4000
DEVICE_CAPABILITIES = 0x80000000
_BUFFER_CAPTURE, _BUFFER_CAPTURE_MPLANE = 1, 9
_MOST_FORMATS = 64


def describe_device(path: str) -> dict[str, Any]:
    """Open a device without starting it.

    Returns:
        `{card, driver, gives_pictures, is_codec, formats: ["MJPG", "YUYV", ...]}`.

    Raises:
        OSError: it cannot be opened (EBUSY: another program holds it), or is no V4L2 device.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENODEV, "Video4Linux is Linux's", path)
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        block = bytearray(_CAPABILITY_BYTES)
        fcntl.ioctl(descriptor, QUERY_CAPABILITY, block)
        found = parse_capability(bytes(block))
        kind = _BUFFER_CAPTURE_MPLANE if found.pop("is_multiplanar") else _BUFFER_CAPTURE
        found["formats"] = []
        for index in range(_MOST_FORMATS if found["gives_pictures"] else 0):
            block = bytearray(struct.pack("=II", index, kind).ljust(_FORMAT_BYTES, b"\0"))
            try:
                fcntl.ioctl(descriptor, ENUMERATE_FORMATS, block)
            except OSError:  # EINVAL ends the list
                break
            found["formats"].append(parse_format(bytes(block)))
    finally:
        os.close(descriptor)
    return found


def parse_capability(block: bytes) -> dict[str, Any]:
    """`struct v4l2_capability`, 104 bytes."""
    driver, card, _, _, whole, own = struct.unpack_from("=16s32s32sIII", block)
    flags = own if whole & DEVICE_CAPABILITIES else whole
    return {
        "driver": _text(driver),
        "card": _text(card),
        "gives_pictures": bool(flags & (VIDEO_CAPTURE | VIDEO_CAPTURE_MPLANE)),
        "is_multiplanar": bool(flags & VIDEO_CAPTURE_MPLANE),
        "is_codec": bool(flags & (MEMORY_TO_MEMORY | MEMORY_TO_MEMORY_MPLANE)),
    }


def parse_format(block: bytes) -> str:
    """The four letters of `struct v4l2_fmtdesc`, 64 bytes."""
    return _text(struct.unpack_from("=4s", block, 44)[0]).strip()


def _text(data: bytes) -> str:
    return data.split(b"\0")[0].decode("utf-8", "replace")
