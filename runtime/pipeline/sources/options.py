"""Options of a source, written behind its address: "raw:-?size=640x480&rate=25"."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from runtime.contract.errors import SourceError

HIGHEST_FPS = 1000.0


def split_options(
    uri: str, known: Sequence[str], *, example: str = ""
) -> tuple[str, dict[str, str]]:
    """Split "target?key=value&key=value".

    Args:
        uri: what follows the scheme.
        known: the keys that the source takes.
        example: for the error.

    Returns:
        The target, and {key: value} without empty ones.

    Raises:
        SourceError: no "key=value", an unknown key, or one that stands twice.
    """
    target, _, text = uri.partition("?")
    options: dict[str, str] = {}
    for part in filter(None, text.split("&")):
        key, sign, value = part.partition("=")
        if not sign or not value:
            hint = f", such as {example}" if example else ""
            raise SourceError(f"source {uri}: {part!r} is no option; expected key=value{hint}.")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise SourceError(
                f"source {uri} has the unknown option {key!r}; expected {', '.join(known)}.{hint}"
            )
        if key in options:
            raise SourceError(f"source {uri} has the option {key} twice; give it once.")
        options[key] = value
    return target, options


def read_size(text: str, name: str) -> tuple[int, int]:
    """(width, height) in pixels of "640x480".

    Raises:
        SourceError: not of this form, or 0.
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None or not int(match[1]) or not int(match[2]):
        raise SourceError(f"{name} has size={text}; expected WIDTHxHEIGHT, such as 640x480.")
    return int(match[1]), int(match[2])


def read_fps(text: str, name: str) -> float:
    """Frames a second of "25", "29.97" or "30000/1001".

    Raises:
        SourceError: not of this form, or not within 0 and `HIGHEST_FPS`.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/(\d+(?:\.\d+)?))?", text)
    below = float(match[2] or 1) if match is not None else 0.0
    fps = float(match[1]) / below if match is not None and below > 0 else 0.0
    if not 0.0 < fps <= HIGHEST_FPS:
        raise SourceError(
            f"{name} has rate={text}; expected frames a second, such as 25 or 30000/1001."
        )
    return fps


def check_choice(key: str, value: str, choices: Sequence[str]) -> str:
    """The value, if it is one of the choices.

    Raises:
        SourceError: it is not.
    """
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise SourceError(f"{key}={value} is unknown; expected {', '.join(choices)}.{hint}")
    return value
