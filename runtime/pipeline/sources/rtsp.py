"""An RTSP camera."""

from __future__ import annotations

from runtime.pipeline.sources.live_options import url_options
from runtime.pipeline.sources.network import check_url, connect, without_password
from runtime.pipeline.sources.reconnecting import ReconnectingSource

REORDERING_US = 100_000  # of UDP: a late packet is waited for so long; FFmpeg's default is 500,000


class RtspSource(ReconnectingSource):
    """Frames of an RTSP stream, over TCP unless asked otherwise.

    What UDP loses of H.264 and H.265 FFmpeg fills in from older pictures, up to the next key frame,
    and does not say so; over TCP nothing is lost.

    Args:
        uri: what follows "rtsp://"; behind a # options (`LiveOptions`):
            "user:password@camera/live#transport=udp&stall-timeout=3".

    Raises:
        SourceError: not there, refused, no video, or a bad option.
    """

    scheme = "rtsp"

    def __init__(self, uri: str) -> None:
        url = f"{self.scheme}://{uri}"
        name = without_password(url)
        check_url(url)
        url, options = url_options(url, ("rate", "transport"), name)
        settings = {
            "rtsp_transport": options.transport,
            "allowed_media_types": "video",
            "max_delay": str(REORDERING_US),
        }
        super().__init__(
            without_password(url),
            lambda: connect(url, options, settings, may_end=False),
            options,
            advice="Check address, user and password; #wait=60 waits for it.",
            advice_when_lost="Is its server in order?",
        )


class RtspsSource(RtspSource):
    """RTSP over TLS."""

    scheme = "rtsps"
