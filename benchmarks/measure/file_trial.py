"""Reads files as the runtime does and says what came of each, in a process that may be killed.

It takes a path a line on standard input and answers each with a line of JSON: frames, skips, error,
the memory it took, and what of the code it reached (lines of our sources, messages of the
libraries), by which `benchmarks/malformed.py` chooses the next files.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

MOST_FRAMES = 2000
SPARE_BYTES = 6 << 30  # of address space over what is there at the start: protects the machine
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|[0-9a-fA-F]{6,}|\d+")
_MOST_MESSAGES = 200


def serve(decoder: str) -> None:
    """Answer until standard input ends; for a process of its own, which it changes.

    Args:
        decoder: of videos: "pyav" or "opencv".
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    messages = _collect_messages()
    _prepare(decoder)
    for line in sys.stdin:
        answers.write(json.dumps(run_trial(line.rstrip("\n"), messages)) + "\n")


def run_trial(uri: str, messages: Any = None) -> dict[str, Any]:
    """Read one source to its end.

    Returns:
        "kind": "error" (one line of ours), "frames", or "exception" (anything else) with "text";
        "num_frames", "num_corrupt"; "ms"; "grown_mib", resident memory at its peak over that
        before; "num_descriptors", more open ones than before; "reached", strings.
    """
    from runtime.contract.errors import SourceError

    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    _reset_peak()
    before_mib = _read_status("VmRSS")
    lines: set[str] = set()
    started = time.perf_counter()
    outcome: dict[str, Any] = {"kind": "frames", "text": "", "num_frames": 0, "num_corrupt": 0}
    sys.settrace(_line_collector(lines))
    try:
        outcome.update(_read_all(uri))
    except SourceError as error:
        text = str(error)
        outcome.update(kind="error" if "\n" not in text else "exception", text=text)
    except Exception:
        outcome.update(kind="exception", text=traceback.format_exc())
    finally:
        sys.settrace(None)
    gc.collect()
    outcome["ms"] = round((time.perf_counter() - started) * 1e3, 1)
    outcome["grown_mib"] = round(_read_status("VmHWM") - before_mib, 1)
    outcome["num_descriptors"] = len(os.listdir("/proc/self/fd")) - descriptors  # noqa: PTH208
    outcome["reached"] = sorted(lines | _take_messages(messages))
    return outcome


def _read_all(uri: str) -> dict[str, Any]:
    """Every frame, checked, and fitted into a network's input as the predictor does it.

    Raises:
        AssertionError: a frame that is none, or that nobody recorded.
    """
    import numpy as np

    from runtime.contract.manifest import InputGeometry
    from runtime.pipeline.sources import open_source
    from runtime.pipeline.sources.image_decoding import LARGEST_FRAME_PIXELS
    from runtime.preprocess import Letterbox

    geometry = InputGeometry(height=64, width=64)
    last_s = -1.0
    with open_source(uri) as source:
        for number, frame in enumerate(source):
            image = frame.image_bgr
            assert image.dtype == np.uint8, image.dtype
            assert image.ndim == 3, image.shape
            assert image.shape[2] == 3, image.shape
            assert 0 < image.shape[0] * image.shape[1] <= LARGEST_FRAME_PIXELS, image.shape
            assert frame.index == number == source.num_decoded - 1, (frame.index, number)
            assert frame.time_s > last_s, (frame.time_s, last_s)
            assert number < MOST_FRAMES, "frames without end"
            last_s = frame.time_s
            Letterbox.fit(image.shape[:2], geometry).apply(image)
            source.recycle(frame)
    return {"num_frames": source.num_decoded, "num_corrupt": source.num_corrupt}


def _prepare(decoder: str) -> None:
    """Load what is needed, then bound the address space."""
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "24"
    os.environ["OPENCV_LOG_LEVEL"] = "WARNING"
    import cv2

    cv2.setNumThreads(1)
    try:
        import av

        av.logging.set_level(av.logging.WARNING)
        av.logging.restore_default_callback()
    except ImportError:
        pass
    if decoder == "opencv":
        from runtime.pipeline.sources import video_decoders, video_file

        video_file.open_decoder = video_decoders.OpencvDecoder  # type: ignore[assignment]
    import runtime.pipeline.sources.images
    import runtime.pipeline.sources.video_file
    import runtime.preprocess  # noqa: F401

    limit = int(_read_status("VmSize") * 2**20) + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _collect_messages() -> Any:
    """Let standard output and error, where the libraries write, end in a file that is read."""
    file = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - as long as the process
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    return file


def _take_messages(file: Any) -> set[str]:
    """What the libraries said, without its numbers; and forget it."""
    if file is None:
        return set()
    sys.stderr.flush()
    file.seek(0)
    text = file.read(1 << 16).decode("utf-8", "replace")
    file.seek(0)
    file.truncate()
    lines = {_NUMBER.sub("#", line)[:90] for line in text.splitlines()[:_MOST_MESSAGES]}
    return {line for line in lines if line.strip()}


def _line_collector(found: set[str]) -> Callable[..., Any]:
    """A trace function that notes the lines of our sources."""

    def trace_lines(frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        found.add(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        return trace_lines

    def trace_calls(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        return trace_lines if "/pipeline/sources/" in frame.f_code.co_filename else None

    return trace_calls


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _read_status(field: str) -> float:
    """A size of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise AssertionError(field)
