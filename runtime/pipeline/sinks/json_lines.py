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

    Raises:
        SinkError: the file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.target = "standard output" if str(path) == STDOUT else str(path)
        self._length = 0  # of the whole lines, in bytes
        self._is_file = str(path) != STDOUT
        try:
            if self._is_file:
                make_folder(Path(path))
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
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
        line = to_json_bytes(to_record(result)) + b"\n"
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            self._take_back()
            raise SinkError(
                f"output {self.target} cannot be written: {one_line(error)}. "
                f"The lines before frame {result.frame.index} are whole; make room and run again."
            ) from None
        self._length += len(line)
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

    def _take_back(self) -> None:
        if self._is_file:
            try:
                os.ftruncate(self._descriptor, self._length)
            except OSError:  # a device such as /dev/full
                return
