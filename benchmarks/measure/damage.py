"""Ways to damage a file: cut, flip, overwrite, drop, repeat, splice, claim another size.

Headers are hit more than payload.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from random import Random

from benchmarks.measure.whole_files import SIZE_WH

HEADER_BYTES = 512
HEADER_SHARE = 0.65  # of damage that hits a header or a field behind a name or marker
MOST_WOUNDS = 4  # of one kind at once
RESEALED_SHARE = 0.7  # of damaged PNGs: with wrong checksums nothing behind them is tried
# Names of boxes and chunks (MP4, AVI, PNG, WebP), markers of JPEG, starts of H.264's units.
_MARKS = re.compile(rb"[A-Za-z][A-Za-z0-9 ]{3}|\xff[\xc0-\xfe]|\x00\x00\x01|[IM][IM]\*?\0")
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

# (width, height): what a frame may have at most, what fields hold at most, and nothing.
_CLAIMS = (
    (7000, 7000),
    (16383, 16383),
    (65535, 65535),
    (14000, 14000),
    (65535, 1),
    (1, 1),
    (0, 64),
)

Damage = Callable[[bytearray, Random, bytes], None]


def damage_file(data: bytes, random: Random, other: bytes) -> tuple[bytes, str]:
    """Damage a file in one way, in one or a few places.

    Args:
        data: the file.
        random: decides on all.
        other: a file of the same form, to splice with.

    Returns:
        The damaged file, and the name of the way.
    """
    name, wound = random.choice(_WAYS)
    damaged = bytearray(data)
    for _ in range(1 if name in _ONCE else random.randint(1, MOST_WOUNDS)):
        if damaged:
            wound(damaged, random, other)
    if random.random() < RESEALED_SHARE:
        _reseal_png(damaged)
    return bytes(damaged), name


def _reseal_png(data: bytearray) -> None:
    """Make a PNG's checksums right again, as far as its chunks can be followed."""
    place = 8
    while data[:4] == b"\x89PNG" and place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            return
        struct.pack_into(">I", data, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4


def _choose_place(data: bytearray, random: Random) -> int:
    """A byte; mostly one of a header, or of a field close behind a name or marker."""
    if random.random() > HEADER_SHARE:
        return random.randrange(len(data))
    marks = [match.end() for match in _MARKS.finditer(data)]
    if marks and random.random() < 0.6:
        return min(random.choice(marks) + random.randrange(-8, 16), len(data) - 1) % len(data)
    return random.randrange(min(HEADER_BYTES, len(data)))


def _cut(data: bytearray, random: Random, other: bytes) -> None:
    share = random.choice((random.random(), random.random() ** 4, 1 - random.random() ** 4))
    del data[int(len(data) * share) :]


def _flip_bits(data: bytearray, random: Random, other: bytes) -> None:
    data[_choose_place(data, random)] ^= 1 << random.randrange(8)


def _overwrite_number(data: bytearray, random: Random, other: bytes) -> None:
    place, width = _choose_place(data, random), random.choice((1, 2, 4))
    order = random.choice(("big", "little"))
    value = random.choice(_NUMBERS) & (256**width - 1)
    data[place : place + width] = value.to_bytes(width, "big" if order == "big" else "little")


def _claim_size(data: bytearray, random: Random, other: bytes) -> None:
    """Another width and height wherever those of the whole file stand side by side."""
    claim = random.choice(_CLAIMS)
    for form in ("<HH", ">HH", "<II", ">II"):
        for turn in (1, -1):
            data[:] = data.replace(
                struct.pack(form, *SIZE_WH[::turn]), struct.pack(form, *claim[::turn])
            )


def _overwrite_noise(data: bytearray, random: Random, other: bytes) -> None:
    place = _choose_place(data, random)
    length = random.choice((1, 4, 16, 64, max(1, len(data) // 8)))
    data[place : place + length] = random.randbytes(min(length, len(data) - place))


def _zero(data: bytearray, random: Random, other: bytes) -> None:
    place = _choose_place(data, random)
    length = min(random.choice((1, 4, 32, max(1, len(data) // 4))), len(data) - place)
    data[place : place + length] = bytes(length)


def _drop(data: bytearray, random: Random, other: bytes) -> None:
    place = _choose_place(data, random)
    del data[place : place + random.choice((1, 2, 4, 16, max(1, len(data) // 8)))]


def _repeat(data: bytearray, random: Random, other: bytes) -> None:
    place = _choose_place(data, random)
    part = data[place : place + random.choice((1, 4, 16, max(1, len(data) // 4)))]
    data[place:place] = part * random.choice((1, 1, 8))


def _splice(data: bytearray, random: Random, other: bytes) -> None:
    """Its own beginning, another's end."""
    place = random.randrange(len(data))
    data[place:] = other[min(place, len(other)) :]


_WAYS: tuple[tuple[str, Damage], ...] = (
    ("cut", _cut),
    ("flip", _flip_bits),
    ("flip", _flip_bits),
    ("number", _overwrite_number),
    ("number", _overwrite_number),
    ("size", _claim_size),
    ("noise", _overwrite_noise),
    ("zero", _zero),
    ("drop", _drop),
    ("repeat", _repeat),
    ("splice", _splice),
)
_ONCE = frozenset(("cut", "splice", "size"))
MAY_ADD_FRAMES = frozenset(("repeat", "splice"))
