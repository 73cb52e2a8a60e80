"""Results as one COCO results file, which appears when it is whole."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.contract.errors import SinkError
from runtime.contract.files import replacing, unwritable
from runtime.pipeline.sinks.base import FrameResult, Sink
from runtime.pipeline.sinks.records import to_json_bytes

_END = b"\n]\n"


class CocoSink(Sink):
    """Writes [{"image_id", "category_id", "bbox", "score", ...}], as the results' `to_coco` gives.

    Frames are numbered from 1 in the order they come; NAME.images.json beside the file says which
    source and frame each is, in the form of COCO's "images". Both are put in place when they are
    closed: until then, and in a killed run, what was there before stays. Nothing is kept in memory.

    Args:
        path: the file.
        category_ids: the data set's id of each class, as in the manifest.

    Raises:
        SinkError: it cannot be opened.
    """

    def __init__(self, path: Path, category_ids: Sequence[int]) -> None:
        self.target = str(path)
        self._category_ids = tuple(category_ids)
        self._num_frames = 0
        self._is_closed = False
        self._results = JsonListFile(path)
        try:
            self._images = JsonListFile(images_path(path))
        except SinkError:
            self._results.abandon()
            raise

    def write(self, result: FrameResult) -> None:
        found, frame = result.results, result.frame
        if not hasattr(found, "to_coco"):
            raise SinkError(
                f"output {self.target} takes boxes, masks or joints of one bundle; these results "
                "have no COCO form. Use --json instead."
            )
        image_id = self._num_frames + 1
        height, width = frame.image_bgr.shape[:2]
        image = {
            "id": image_id,
            "file_name": frame.file or f"{frame.source}#{frame.index}",
            "width": width,
            "height": height,
            "source": frame.source,
            "frame": frame.index,
            "time_s": round(frame.time_s, 6),
        }
        self._images.extend([image])
        self._results.extend(found.to_coco(image_id, self._category_ids))
        self._num_frames = image_id

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._images.close()
        finally:
            self._results.close()

    def abandon(self) -> None:
        """Close and leave what was there before."""
        if self._is_closed:
            return
        self._is_closed = True
        self._images.abandon()
        self._results.abandon()


def images_path(path: Path) -> Path:
    """Where the list of frames of a results file is: "a.json" -> "a.images.json"."""
    return path.with_suffix(".images.json")


class JsonListFile:
    """A JSON list in a file that grows entry by entry, and is a whole list after each.

    Args:
        path: what `close` puts in place.

    Raises:
        SinkError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()
        temporary = self._stack.enter_context(replacing(path))
        try:
            self._file = temporary.open("wb", buffering=0)
            self._length = 0  # without the end
            self._is_empty = True
            self._put(b"[", 0)
        except OSError as error:
            self._stack.close()
            raise unwritable(path, error) from None

    def extend(self, entries: Sequence[dict[str, Any]]) -> None:
        """Add entries, all or none.

        Raises:
            SinkError: the disk is full, for instance; the list is what it was before.
        """
        if not entries:
            return
        text = b",\n".join(to_json_bytes(entry) for entry in entries)
        try:
            self._put((b"\n" if self._is_empty else b",\n") + text, self._length)
        except OSError as error:
            raise unwritable(self._path, error) from None
        self._is_empty = False

    def close(self) -> None:
        """Put the file in place; SinkError where that fails."""
        self._file.close()
        self._stack.close()

    def abandon(self) -> None:
        """Remove the file."""
        self._file.close()
        with contextlib.suppress(_AbandonedError), self._stack:
            raise _AbandonedError

    def _put(self, data: bytes, place: int) -> None:
        """Write over the list's end, and the end behind it; or leave the list as it is."""
        try:
            self._write(data + _END, place)
        except OSError:
            self._file.truncate(place)
            if place:
                self._write(_END, place)  # where it stood before: room is there
            raise
        self._length = place + len(data)

    def _write(self, data: bytes, place: int) -> None:
        self._file.seek(place)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]


class _AbandonedError(Exception):
    pass
