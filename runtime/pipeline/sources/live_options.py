"""What a user may set of a live source, behind its address."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.contract.errors import SourceError
from runtime.pipeline.sources.options import check_choice, read_fps, read_size, split_options

EVERYWHERE = ("open-timeout", "stall-timeout", "wait", "reconnect")
_AFTER_A_URL = re.compile(r"#((?:[a-z-]+=[^#&/@]*)(?:&[a-z-]+=[^#&/@]*)*)$")


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """How a live source is opened and watched.

    Attributes:
        size_wh: (width, height) that a camera is asked for; None leaves it as it is.
        fps: that a camera is asked for; of a stream, what is taken for its rate (it may tell none,
            or a wrong one), in a video written from it.
        pixel_format: four letters that a camera is asked for. USB cameras give large pictures at
            full rate only as MJPG.
        transport: of RTSP: "tcp", or "udp": no wait for what was lost on the way.
        open_timeout_s: an attempt to open ends after this, and so does the wait for its first
            picture.
        stall_timeout_s: without a picture for so long it is opened anew.
        wait_s: how long it is waited for when it is not there at first.
        reconnects: opened anew whenever it is lost; else its loss is the end.
    """

    size_wh: tuple[int, int] | None = None
    fps: float | None = None
    pixel_format: str | None = None
    transport: str = "tcp"
    open_timeout_s: float = 10.0
    stall_timeout_s: float = 5.0
    wait_s: float = 0.0
    reconnects: bool = True


def device_options(uri: str, known: Sequence[str], name: str) -> tuple[str, LiveOptions]:
    """Take the options off a device: "0?size=1280x720&rate=30".

    Args:
        uri: what follows the scheme.
        known: the words that this kind of source takes, beside those of `EVERYWHERE`.
        name: for errors.

    Raises:
        SourceError: an unknown word, or a value that is none.
    """
    target, words = split_options(uri, (*known, *EVERYWHERE), example="size=1280x720&rate=30")
    return target, _read(words, name)


def url_options(url: str, known: Sequence[str], name: str) -> tuple[str, LiveOptions]:
    """Take the options off a URL: "rtsp://camera/live?channel=1#transport=udp".

    What follows the question mark is the server's. A # that is followed by anything else (in a
    password) stays where it is.
    """
    match = _AFTER_A_URL.search(url)
    if match is None:
        return url, LiveOptions()
    shown = re.split(r"[?#]", name)[0]
    text = f"{shown}?{match[1]}"
    _, words = split_options(text, (*known, *EVERYWHERE), example="stall-timeout=3")
    return url[: match.start()], _read(words, name)


def _read(words: dict[str, str], name: str) -> LiveOptions:
    fields: dict[str, Any] = {}
    if "size" in words:
        fields["size_wh"] = read_size(words["size"], name)
    if "rate" in words:
        fields["fps"] = read_fps(words["rate"], name)
    if "format" in words:
        fields["pixel_format"] = _letters(words["format"], name)
    if "transport" in words:
        fields["transport"] = check_choice("transport", words["transport"], ("tcp", "udp"))
    if "reconnect" in words:
        fields["reconnects"] = check_choice("reconnect", words["reconnect"], ("yes", "no")) == "yes"
    for word in ("open-timeout", "stall-timeout", "wait"):
        if word in words:
            fields[word.replace("-", "_") + "_s"] = _seconds(word, words[word], name)
    return LiveOptions(**fields)


def _letters(text: str, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]{4}", text):
        raise SourceError(f"{name} has format={text}; expected four letters, such as MJPG or YUYV.")
    return text.upper()


def _seconds(word: str, text: str, name: str) -> float:
    value = float(text) if re.fullmatch(r"\d{1,9}(\.\d*)?|\.\d+", text) else 0.0
    if value <= 0.0:
        raise SourceError(f"{name} has {word}={text}; expected seconds over 0.")
    return value
