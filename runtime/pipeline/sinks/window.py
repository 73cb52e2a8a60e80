"""Annotated frames in a window of the desktop."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

from runtime.contract.errors import SinkError, one_line
from runtime.pipeline.sinks.base import FrameResult, Sink

LONGEST_TRY_S = 30.0  # for a window of a child process
QUIT_KEYS = frozenset({ord("q"), ord("Q"), 27})  # 27: escape


class WindowSink(Sink):
    """Shows the newest frame of each source; `q`, escape or closing the window ends the run.

    Args:
        on_quit: called once, on the sink's thread.

    Raises:
        SinkError: OpenCV or the machine has no windows.
    """

    target = "window"
    wants_picture = True
    is_waited_for = False

    def __init__(self, on_quit: Callable[[], None]) -> None:
        problem = why_no_window()
        if problem:
            raise SinkError(problem)
        self._on_quit = on_quit
        self._names: set[str] = set()
        self._has_quit = False

    def write(self, result: FrameResult) -> None:
        import cv2

        name = result.frame.source
        if self._has_quit:
            return
        try:
            if name not in self._names:
                plain = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL
                cv2.namedWindow(name, plain)
                height, width = result.frame.image_bgr.shape[:2]
                cv2.resizeWindow(name, width, height)
                self._names.add(name)
            cv2.imshow(name, result.frame.image_bgr)
        except cv2.error as error:
            raise SinkError(
                f"OpenCV cannot show a window: {one_line(error)}. Leave --window out."
            ) from None
        self.idle()

    def idle(self) -> None:
        """Let the window draw itself and hear keys."""
        import cv2

        if not self._names or self._has_quit:
            return
        is_quit = cv2.waitKey(1) & 0xFF in QUIT_KEYS
        visible = cv2.WND_PROP_VISIBLE
        if is_quit or any(cv2.getWindowProperty(name, visible) < 1 for name in self._names):
            self._has_quit = True
            self._on_quit()

    def close(self) -> None:
        import cv2

        for name in self._names:
            try:
                cv2.destroyWindow(name)
            except cv2.error:  # closed by hand
                continue
        self._names.clear()


def why_no_window() -> str:
    """What is missing for a window and what to do, in one line; empty where nothing is."""
    import cv2

    kind = re.search(r"^\s*GUI:\s*(\S+)", cv2.getBuildInformation(), re.MULTILINE)
    if kind is not None and kind[1] == "NONE":
        return (
            "--window: this OpenCV is headless and has no windows. Install opencv-python in place "
            "of opencv-python-headless, or use --mjpeg."
        )
    if sys.platform == "darwin":
        return (
            "--window: macOS has windows on a program's first thread alone, which infers here. "
            "Use --mjpeg."
        )
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    if sys.platform == "linux" and not any(os.environ.get(name) for name in screens):
        return (
            "--window: no screen (DISPLAY and WAYLAND_DISPLAY are not set). Run it in a desktop "
            "session, or use --mjpeg."
        )
    return _try_in_a_child()


def _try_in_a_child() -> str:
    """Open a window in another process: Qt ends the whole process where the screen does not answer.

    Returns:
        As of `why_no_window`.
    """
    code = "import cv2; cv2.namedWindow('Kestrel'); cv2.waitKey(1)"
    try:
        child = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, timeout=LONGEST_TRY_S, check=False
        )
    except subprocess.TimeoutExpired:
        return (
            f"--window: no window came within {LONGEST_TRY_S:g} s. Is the screen there? "
            "Or use --mjpeg."
        )
    if child.returncode == 0:
        return ""
    words = child.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
    reason = next((line for line in words if "connect" in line), words[-1])
    return f"--window: no window can be opened here ({reason.strip()}). Use --mjpeg."
