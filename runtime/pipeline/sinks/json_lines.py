"""Results as JSON lines: one line a frame, whole lines whatever happens."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from runtime.contract.errors import SinkError, one_line
from runtime.pipeline.sinks.base import FrameResult, Sink, make_folder
from runtime.pipeline.sinks.disk_sync import DiskSync
from runtime.pipeline.sinks.records import to_json_bytes, to_record

STDOUT = "-"


class JsonLinesSink(Sink):
    """Writes a line for each frame; see `runtime.pipeline.sinks.records`.

    A line goes out at once, in one unbuffered write: a killed run leaves whole lines, unless it is
    killed within the microseconds of such a write, so a reader takes no line that does not end.
    Lines are on the disk, safe from a power cut, a second later. Where the disk is full the last,
    broken line is taken back.

    Args:
        path: the file, or "-" for standard output.
        is_appending: keep what the file holds and write behind it. Where a killed run left a line
            without its end, the first line written begins with a newline, so that it is no part
            of the broken one.

    Raises:
        SinkError: the file cannot be opened.
    """

    def __init__(self, path: str | Path, *, is_appending: bool = False) -> None:
        self.target = "standard output" if str(path) == STDOUT else str(path)
        self._before = b""  # the first line
        self._is_file = str(path) != STDOUT
        try:
            if self._is_file:
                make_folder(Path(path))
                if is_appending and _lacks_newline(Path(path)):
                    self._before = b"\n"
                flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0)
                flags |= os.O_APPEND if is_appending else os.O_TRUNC
                self._descriptor = os.open(path, flags, 0o666)
            elif sys.stdout is None:  # closed by who started this process
                raise SinkError(
                    "--json - goes to standard output, which is closed; expected an open one. "
                    "Name a file."
                )
            else:
                sys.stdout.flush()
                self._descriptor = os.dup(sys.stdout.fileno())
        except OSError as error:
            raise SinkError(
                f"output {self.target} cannot be opened: {one_line(error)}. Choose another place."
            ) from None
        self._is_closed = False
        is_on_disk = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._sync = DiskSync(self._descriptor, self.target) if is_on_disk else None

    def write(self, result: FrameResult) -> None:
        line = self._before + to_json_bytes(to_record(result)) + b"\n"
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            self._take_back(len(line) - len(rest))
            raise SinkError(
                f"output {self.target} cannot be written: {one_line(error)}. "
                f"The lines before frame {result.frame.index} are whole; make room and run again."
            ) from None
        self._before = b""
        if self._sync is not None:
            self._sync.note()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        try:
            os.close(self._descriptor)
        except OSError as error:
            raise SinkError(f"output {self.target} cannot be closed: {one_line(error)}") from None
        finally:
            if self._sync is not None:
                self._sync.close()

    def _take_back(self, num_bytes: int) -> None:
        if self._is_file:
            try:
                length = os.fstat(self._descriptor).st_size
                os.ftruncate(self._descriptor, length - num_bytes)
            except OSError:  # a device such as /dev/full
                return


def _lacks_newline(path: Path) -> bool:
    """Whether the last line of a file that is there is not ended."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
