"""Sources of frames: a source is one file in this folder and one line in `SOURCES`.

`open_source` chooses by the URI: a number or /dev/video0 is a camera, a folder, a pattern or an
image file is images, anything else without a scheme is a video file; `scheme:rest` asks for one.
"""

from __future__ import annotations

import difflib
import importlib
import re
from pathlib import Path

from runtime.contract.errors import SourceError
from runtime.pipeline.sources.base import Frame, Image, Source
from runtime.pipeline.sources.network import as_shown

__all__ = ["Frame", "Image", "Source", "open_source", "scheme_of"]

# scheme -> module:class, imported when first asked for. The class takes what follows the scheme.
SOURCES = {
    "camera": "runtime.pipeline.sources.camera:CameraSource",
    "csi": "runtime.pipeline.sources.gstreamer:CsiSource",
    "gst": "runtime.pipeline.sources.gstreamer:GStreamerSource",
    "rtsp": "runtime.pipeline.sources.rtsp:RtspSource",
    "rtsps": "runtime.pipeline.sources.rtsp:RtspsSource",
    "http": "runtime.pipeline.sources.http_video:HttpSource",
    "https": "runtime.pipeline.sources.http_video:HttpsSource",
    "video": "runtime.pipeline.sources.video_file:VideoFileSource",
    "images": "runtime.pipeline.sources.images:ImageSource",
    "raw": "runtime.pipeline.sources.raw_frames:RawFrameSource",
    "stdin": "runtime.pipeline.sources.raw_frames:StdinSource",
}

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))
_CAMERA = re.compile(r"(\d+|/dev/(video|v4l/).*)(\?.*)?", re.DOTALL)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?!\\)(?://)?(.*)", re.DOTALL)


def scheme_of(uri: str) -> tuple[str, str]:
    """Split a URI into its scheme and what follows; guess the scheme where there is none.

    Raises:
        SourceError: an unknown scheme.
    """
    if _CAMERA.fullmatch(uri):
        return "camera", uri
    match = _SCHEME.fullmatch(uri)
    if match is not None and not _exists(uri):
        scheme, rest = match[1].lower(), match[2]
        if scheme not in SOURCES:
            near = difflib.get_close_matches(scheme, list(SOURCES), n=1)
            hint = f" Did you mean {near[0]}:?" if near else ""
            known = ", ".join(f"{name}:" for name in SOURCES)
            raise SourceError(
                f"source {as_shown(uri)} has the unknown scheme {scheme!r}; expected a file, a "
                f"folder, a camera's number, or one of {known}.{hint}"
            )
        return scheme, rest
    path = Path(uri)
    is_pattern = any(letter in uri for letter in "*?[") and not path.exists()
    if is_pattern or path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return "images", uri
    return "video", uri


def _exists(uri: str) -> bool:
    try:
        return Path(uri).exists()
    except OSError:  # longer than a name may be, such as a pipeline
        return False


def open_source(uri: str) -> Source:
    """Open a source; its first frame has been read when this returns.

    Args:
        uri: a camera's number ("0"), a video file, a folder, pattern or file of images, or
            "scheme:rest" with a scheme of `SOURCES`.

    Raises:
        SourceError: missing, not readable, without a single picture, or of an unknown scheme.
    """
    scheme, rest = scheme_of(str(uri))
    module_name, class_name = SOURCES[scheme].split(":")
    source = getattr(importlib.import_module(module_name), class_name)(rest)
    assert isinstance(source, Source)
    return source
