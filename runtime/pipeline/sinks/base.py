"""What every sink of results offers: `FrameResult`, `Sink` and the checks before a run."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.contract.errors import SinkError, one_line
from runtime.pipeline.sources.base import Frame

SOURCE_FIELD = "{source}"  # in a target: stands for the source's name


@dataclass(slots=True)
class FrameResult:
    """A frame with what was found in it.

    Attributes:
        frame: its picture is drawn on where a sink wants pictures, and untouched otherwise.
        results: the task's result type, such as `runtime.results.Detections`.
        age_ms: how old the frame was when its results were there.
        times_ms: stage -> milliseconds, as in `runtime.pipeline.timing.STAGES`.
    """

    frame: Frame
    results: Any
    age_ms: float
    times_ms: dict[str, float] = field(default_factory=dict)


class Sink(ABC):
    """Takes the result of every frame, in order, on one thread.

    Attributes:
        target: where results go, for people.
        wants_picture: whether frames should be drawn on for this sink; asked for each frame. It may
            change only in a sink that is given to the pipeline as it is.
        is_waited_for: whether a run over files may wait until there is room for a result; False of
            what is on a network or a screen, where the result is dropped.
        num_lost: results that `write` took and that never got to their place, so far (a server
            that did not answer).
    """

    target = ""
    wants_picture = False
    is_waited_for = True
    num_lost = 0

    @abstractmethod
    def write(self, result: FrameResult) -> None:
        """Take one result; keep no reference to the frame's picture.

        Raises:
            SinkError: it cannot be written.
        """

    def idle(self) -> None:  # noqa: B027 - most sinks have nothing to do
        """Called now and then while no result comes, on the thread of `write`.

        Raises:
            SinkError: as of `write`.
        """

    def expect_no_more(self) -> None:  # noqa: B027 - most sinks have nothing to do
        """Be told that no result will come, before any sink of the run is closed."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file; twice is harmless.

        Raises:
            SinkError: the rest cannot be written.
        """

    def abandon(self) -> None:
        """Close where the run does not start: what would be put in place at the end is not."""
        self.close()


class NullSink(Sink):
    """Throws results away, and makes the pipeline draw (for measuring)."""

    target = "nowhere"

    def __init__(self, *, wants_picture: bool = False) -> None:
        self.wants_picture = wants_picture

    def write(self, result: FrameResult) -> None:
        pass

    def close(self) -> None:
        pass


def check_target(path: Path, *, suffixes: Iterable[str], taken: Iterable[Path] = ()) -> None:
    """Refuse a target that cannot be written, before anything is; write nothing.

    Args:
        path: the file to be.
        suffixes: those that the sink knows; empty takes any.
        taken: the source and the other targets.

    Raises:
        SinkError: an unknown suffix, a folder, another's file, no right to write.
    """
    known = tuple(suffixes)
    if known and path.suffix.lower() not in known:
        raise SinkError(
            f"output {path} ends in {path.suffix or 'no suffix'!r}; "
            f"expected one of {', '.join(known)}. Choose another name."
        )
    if path.is_dir():
        raise SinkError(f"output {path} is a folder; expected a file. Add a file's name.")
    for other in taken:
        if _is_same(path, other):
            raise SinkError(
                f"output {path} is the file that is read or written already ({other}). "
                "Choose another name."
            )
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    is_writable = os.access(path, os.W_OK) if path.exists() else os.access(folder, os.W_OK)
    if not folder.is_dir() or not is_writable:
        raise SinkError(
            f"output {path} cannot be written: no right to write in {folder}, or it is no folder. "
            "Choose another place."
        )


def as_word(name: str) -> str:
    """A source's name as a part of a path, a topic or an address: what is no word becomes "_"."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_") or "source"


def make_folder(path: Path) -> None:
    """Make the folder of a target.

    Raises:
        SinkError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(
            f"folder {path.parent} cannot be made: {one_line(error)}. Choose another place."
        ) from None


def _is_same(path: Path, other: Path) -> bool:
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()
