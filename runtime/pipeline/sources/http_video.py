"""Video over HTTP: the MJPEG of cameras, live streams, and files on a web server."""

from __future__ import annotations

from runtime.pipeline.sources.live_options import url_options
from runtime.pipeline.sources.network import check_url, connect, without_password
from runtime.pipeline.sources.reconnecting import ReconnectingSource

# A playlist may name other addresses: none of this machine's files is to be among them.
PROTOCOLS = "http,https,tcp,tls,crypto,httpproxy,data"


class HttpSource(ReconnectingSource):
    """Frames of whatever FFmpeg reads over HTTP.

    A stream without an end is a camera: reconnected, and its newest frame counts; so of a live
    playlist (HLS), which comes in bursts of seconds, few frames are left. A file is read to its
    end, each frame of it.

    Args:
        uri: what follows "http://"; behind a # options (`LiveOptions`):
            "camera/mjpg/video.mjpg?res=full#rate=15".

    Raises:
        SourceError: not there, refused, no video, or a bad option.
    """

    scheme = "http"

    def __init__(self, uri: str) -> None:
        url = f"{self.scheme}://{uri}"
        name = without_password(url)
        check_url(url)
        url, options = url_options(url, ("rate",), name)
        super().__init__(
            without_password(url),
            lambda: connect(url, options, {"protocol_whitelist": PROTOCOLS}, may_end=True),
            options,
            advice="Check address, user and password; #wait=60 waits for it.",
            advice_when_lost="Is its server in order?",
        )


class HttpsSource(HttpSource):
    """HTTP over TLS."""

    scheme = "https"
