"""What a search has measured so far, on disk, and how long it may still take."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from runtime.contract.files import write_json

SCHEMA = 1


class TimeUp(Exception):  # noqa: N818 - no error: what was found so far is used
    """The time for the search is over."""


class SearchState:
    """Measurements by name, written after each; those of another network or other data are dropped.

    Attributes:
        path: of the JSON file.
        num_found: how many measurements were there already.
        is_other: the file was there, but of another search.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        """Read the file, where it is there.

        Args:
            path: where to keep the measurements.
            key: what they hold for, as JSON takes it: network, calibration, frames, backend.
        """
        self.path = path
        self._key = json.loads(json.dumps(key))
        self._values: dict[str, Any] = {}
        self.is_other = False
        if path.is_file():
            self.is_other = not self._read()
        self.num_found = len(self._values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def put(self, name: str, value: Any) -> None:
        """Keep a measurement, and write all."""
        self._values[name] = value
        document = {"schema": SCHEMA, "key": self._key, "measured": self._values}
        write_json(self.path, document)

    def _read(self) -> bool:
        """Whether the file holds measurements of this search."""
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            if document["schema"] != SCHEMA or document["key"] != self._key:
                return False
            self._values = dict(document["measured"])
        except (ValueError, KeyError, TypeError):
            return False
        return True


class Progress:
    """A bar over all frames that are still to be run, with the time that remains.

    Args:
        total: frames, a guess until the search is done.
        minutes: how long it may take from now; None: as long as it takes.
    """

    def __init__(self, total: int, minutes: float | None = None) -> None:
        self._bar = tqdm(total=total, desc="searching", unit="frame", disable=None)
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def advance(self) -> None:
        """A frame was run.

        Raises:
            TimeUp: no time is left.
        """
        self._bar.update()
        self.check()

    def check(self) -> None:
        """Raise TimeUp where no time is left."""
        if self._end is not None and time.monotonic() >= self._end:
            raise TimeUp

    def skip(self, frames: int) -> None:
        """Frames that need not be run after all."""
        if self._bar.total is not None:
            self._bar.total = max(self._bar.n, self._bar.total - frames)
            self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
