"""An RTSP server whose pictures say when they were made; for the system's Python.

/usr/bin/python3 tests/rtsp_server.py PORT [--fps 25] [--size 320x240] [--codec h264]

A picture's number is the clock's time in units of a frame, modulo 2**32. So numbers go on rising
over restarts, and tell the delay. It prints "ready" when it listens, and ends with its standard
input. Needs Debian's gir1.2-gst-rtsp-server-1.0, python3-gi and GStreamer's plugins good and ugly.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import gi  # noqa: E402 - the path comes first

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - versions come first

from benchmarks.measure.numbered_pictures import draw_number  # noqa: E402

ENCODERS = {
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max={fps} ! "
    "rtph264pay pt=96 config-interval=1 name=pay0",
    "jpeg": "jpegenc ! rtpjpegpay name=pay0",
}


class Pictures:
    """Feeds the pipeline that all clients share, paced by the clock."""

    def __init__(self, media: Any, fps: int, size_wh: tuple[int, int]) -> None:
        self.fps, self.size_wh = fps, size_wh
        self.first = self.number = int(time.time() * fps)
        media.get_element().get_child_by_name("source").connect("need-data", self.push)

    def push(self, source: Any, length: int) -> None:
        """Called on the pipeline's thread whenever it can take a picture."""
        self.number = max(self.number + 1, int(time.time() * self.fps))
        time.sleep(max(self.number / self.fps - time.time(), 0.0))
        buffer = Gst.Buffer.new_wrapped(draw_number(self.number, self.size_wh))
        buffer.pts = int((self.number - self.first) * Gst.SECOND / self.fps)
        buffer.duration = int(Gst.SECOND / self.fps)
        source.emit("push-buffer", buffer)


def main() -> None:
    parser = argparse.ArgumentParser(description="RTSP server of numbered pictures.")
    parser.add_argument("port", type=int)
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--codec", choices=ENCODERS, default="h264")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    Gst.init(None)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        "( appsrc name=source is-live=true format=time max-bytes=1 caps=video/x-raw,format=GRAY8,"
        f"width={width},height={height},framerate={args.fps}/1 ! videoconvert ! "
        f"video/x-raw,format=I420 ! {ENCODERS[args.codec].format(fps=args.fps)} )"
    )
    factory.set_shared(True)
    feeds: list[Pictures] = []
    factory.connect(
        "media-configure",
        lambda _, media: feeds.append(Pictures(media, args.fps, (width, height))),
    )
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(args.port))
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        sys.exit(f"port {args.port} is taken")
    loop = GLib.MainLoop()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.quit()), daemon=True).start()
    print("ready", flush=True)
    loop.run()


if __name__ == "__main__":
    main()
