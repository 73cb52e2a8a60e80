"""An RTSP server in a process of its own, that can be killed and started again."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "rtsp_server.py"
SYSTEM_PYTHON = Path("/usr/bin/python3")
PACKAGES = (
    "gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-ugly"
)
LONGEST_CHECK_S = 60.0

_CHECK = (
    "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstRtspServer', '1.0'); "
    "from gi.repository import Gst, GstRtspServer; Gst.init(None); "
    "assert all(map(Gst.ElementFactory.find, ('x264enc', 'rtph264pay', 'appsrc')))"
)


@functools.cache
def has_rtsp_server() -> bool:
    """Whether Debian's packages for it are here."""
    if not SYSTEM_PYTHON.exists():
        return False
    command = [SYSTEM_PYTHON, "-c", _CHECK]
    done = subprocess.run(command, capture_output=True, timeout=LONGEST_CHECK_S, check=False)
    return done.returncode == 0


class RtspServer:
    """Serves numbered pictures on a free port of this machine, the same after each start.

    Args:
        options: of tests/rtsp_server.py; may be changed between two starts.

    Attributes:
        url: of the stream.
    """

    def __init__(self, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.options = options
        self.url = f"rtsp://127.0.0.1:{self.port}/live"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it; it listens when this returns."""
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, SCRIPT, str(self.port), *self.options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            self.kill()
            raise OSError(f"the RTSP server did not start; it needs apt-get install {PACKAGES}")

    def kill(self) -> None:
        """SIGKILL; twice is harmless."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
