"""The process that talks to an RTSP server; see `rtsp_push`."""

from __future__ import annotations

import sys
from typing import IO, Any

EXIT_FAILED = 1


def publish(packets: IO[bytes]) -> None:
    """Pass on what comes until it ends; what goes wrong is said in one line on standard error.

    Args:
        packets: first a line with seconds and the server's address, then an MPEG transport stream.
    """
    import av

    words = packets.readline().decode().split(maxsplit=1)
    timeout_s, url = float(words[0]), words[1].strip()
    try:
        _pass_on(av, packets, url, timeout_s)
    except (OSError, av.error.FFmpegError, ValueError) as error:
        text = " ".join(str(error).replace(url, "the server").split())
        print(text, file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None


def _pass_on(av: Any, packets: IO[bytes], url: str, timeout_s: float) -> None:
    # A transport stream says little at its start: without a bound FFmpeg would wait for 5 s of it.
    hasty = {"analyzeduration": "200000", "probesize": "200000"}
    options = {"rtsp_transport": "tcp", "timeout": str(round(timeout_s * 1e6))}
    with (
        av.open(packets, "r", format="mpegts", options=hasty) as incoming,
        av.open(url, "w", format="rtsp", options=options, timeout=timeout_s) as outgoing,
    ):
        video = incoming.streams.video[0]
        stream = outgoing.add_stream_from_template(video)
        for packet in incoming.demux(video):
            if packet.dts is not None:  # the last one is empty
                packet.stream = stream
                outgoing.mux(packet)
