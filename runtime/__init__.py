"""Runs bundles on live video without PyTorch.

    import runtime
    predictor = runtime.load("runs/retinanet")
    detections = predictor(frame_bgr)

Importing this package costs no more than NumPy; engines and OpenCV come when they are needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.poses import Faces, Poses
    from runtime.predictor import Predictor, load
    from runtime.results import Detections
    from runtime.topdown import TopDown, load_topdown

_PLACES = {
    "load": "runtime.predictor",
    "Predictor": "runtime.predictor",
    "load_topdown": "runtime.topdown",
    "TopDown": "runtime.topdown",
    "Detections": "runtime.results",
    "Poses": "runtime.poses",
    "Faces": "runtime.poses",
}
__all__ = ["Detections", "Faces", "Poses", "Predictor", "TopDown", "load", "load_topdown"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
