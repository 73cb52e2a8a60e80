"""A frame's result as one JSON object: what files, web hooks and brokers are given."""

from __future__ import annotations

import json
import math
from typing import Any

from runtime.pipeline.sinks.base import FrameResult


def to_record(result: FrameResult) -> dict[str, Any]:
    """{"frame", "time_s", "source", "wall_time_s", "age_ms", and what the results' `to_json` has}.

    "frame" counts the source's frames from 0, lost ones included (of images "file" says which);
    "time_s" counts from its first frame, "wall_time_s" is the Unix time of the capture; "age_ms" is
    how old the frame was when its results were there.
    """
    frame = result.frame
    return {
        "frame": frame.index,
        "time_s": round(frame.time_s, 6),
        "source": frame.source,
        **({"file": frame.file} if frame.file else {}),
        "wall_time_s": round(frame.wall_time_s, 6),
        "age_ms": round(result.age_ms, 3),
        **result.results.to_json(),
    }


def to_json_bytes(document: Any) -> bytes:
    """Compact JSON on one line, UTF-8. NaN and infinity, which JSON has not, become null."""
    try:
        text = _dump(document)
    except ValueError:
        text = _dump(_without_nan(document))
    return text.encode()


def _dump(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))


def _without_nan(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: _without_nan(value) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [_without_nan(value) for value in document]
    if isinstance(document, float) and not math.isfinite(document):
        return None
    return document
