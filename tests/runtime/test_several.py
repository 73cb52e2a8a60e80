"""Several bundles on one stream."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from runtime.predictor import Timings
from runtime.several import Several


class Finder:
    """Remembers what it was asked, and finds its own name."""

    def __init__(self, name: str, engine_ms: float) -> None:
        self.name, self.engine_ms = name, engine_ms
        self.asked: list[tuple] = []

    def submit(self, frame_bgr: Any, *thresholds: Any, **about: Any) -> Any:
        self.asked.append((thresholds, about))
        found = SimpleNamespace(to_json=lambda: {"found": self.name})
        return SimpleNamespace(result=lambda: found, timings=Timings(1.0, self.engine_ms, 2.0))

    def draw(self, frame_bgr: np.ndarray, result: Any) -> np.ndarray:
        frame_bgr[0, 0] = len(result.to_json()["found"])
        frame_bgr[len(self.name), 0] = 255
        return frame_bgr


def test_all_bundles_see_each_frame_and_only_the_first_has_the_thresholds():
    people, faces = Finder("people", 5.0), Finder("face", 9.0)
    several = Several(people, {"faces": faces})
    frame = np.zeros((10, 10, 3), np.uint8)
    ticket = several.submit(frame, 0.4, 0.6, time_s=2.0, num_dropped=1)
    about = {"time_s": 2.0, "num_dropped": 1}
    assert people.asked == [((0.4, 0.6), about)]
    assert faces.asked == [((), about)]
    found = ticket.result()
    assert ticket.result() is found
    assert found.to_json() == {"found": "people", "also": {"faces": {"found": "face"}}}
    assert ticket.timings == Timings(2.0, 9.0, 4.0)
    several.draw(frame, found)
    assert frame[0, 0, 0] == 6  # the first is drawn last
    assert frame[4, 0, 0] == frame[6, 0, 0] == 255
