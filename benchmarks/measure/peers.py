"""Ways to run the same network, each behind the same call: so many frames, how long did each take.

A peer rests between its turns: none may take the processor from the one that is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.contract.errors import KestrelError, SessionError
from runtime.predictor import Predictor, load

Frames = NDArray[np.uint8]
SERVER = Path(__file__).resolve().parents[2] / "training" / "serve_forward.py"
LONGEST_END_S = 10.0
PARTS = ("preprocess", "engine", "finish", "draw")  # of a frame, in their order


@dataclass
class Turn:
    """What a peer did in one turn.

    Attributes:
        ms: of each frame, from the picture until its detections are there, or are drawn.
        parts_ms: where it went, of each frame, by the names of `PARTS`, where a peer knows.
        num_results: detections in all of them.
    """

    ms: list[float]
    parts_ms: dict[str, list[float]] = field(default_factory=dict)
    num_results: int = 0


class Peer(Protocol):
    """One way to run the network."""

    facts: dict[str, Any]  # for the record: what it runs on, its versions

    def run(self, num_frames: int) -> Turn:
        """Run the next frames; those of the start come again after the last."""
        ...

    def close(self) -> None: ...


class RuntimePeer:
    """A bundle in one of the runtime's backends, through `runtime.Predictor`.

    Args:
        is_drawn: the results are drawn into the frame, and that is measured, too.
    """

    def __init__(
        self,
        bundle: str,
        frames: Frames,
        *,
        backend: str,
        precision: str,
        allow_unverified: bool,
        options: dict[str, Any],
        is_drawn: bool = False,
    ) -> None:
        self.predictor: Predictor = load(
            bundle, backend, precision, allow_unverified=allow_unverified, **options
        )
        found = (self.predictor.backend, self.predictor.precision)
        if found != (backend, precision):  # int8 on a CPU that would compute it wrongly
            self.predictor.close()
            raise SessionError(f"{backend} {precision} became {' '.join(found)} on this CPU.")
        self.facts = {"device": self.predictor.device, **options}
        self._frames = frames
        self._is_drawn = is_drawn
        self._place = 0

    def run(self, num_frames: int) -> Turn:
        turn = Turn([], {name: [] for name in PARTS if self._is_drawn or name != "draw"})
        for _ in range(num_frames):
            frame = self._frames[self._place].copy()  # it may be drawn on
            self._place = (self._place + 1) % len(self._frames)
            started = perf_counter()
            found = self.predictor(frame)
            answered = perf_counter()
            if self._is_drawn:
                self.predictor.draw(frame, found)
            done = perf_counter()
            times = self.predictor.timings
            assert times is not None
            turn.ms.append((done - started) * 1e3)
            parts = (times.preprocess_ms, times.engine_ms, times.finish_ms, (done - answered) * 1e3)
            for name, part in zip(PARTS, parts, strict=True):
                if name in turn.parts_ms:
                    turn.parts_ms[name].append(part)
            turn.num_results += len(found)
        return turn

    def close(self) -> None:
        self.predictor.close()


class TorchPeer:
    """A checkpoint in PyTorch: a process of its own, `training/serve_forward.py`."""

    def __init__(
        self, checkpoint: Path, frames_file: Path, *, score_threshold: float, options: list[str]
    ) -> None:
        command = [sys.executable, str(SERVER), "--checkpoint", str(checkpoint)]
        command += ["--frames", str(frames_file), "--score-threshold", str(score_threshold)]
        self._words = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill  # noqa: SIM115
        self._process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            bufsize=1,
        )
        ready = self._read_answer()
        self.facts = {"options": options, **{k: v for k, v in ready.items() if k != "ready"}}

    def run(self, num_frames: int) -> Turn:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{num_frames}\n")
        self._process.stdin.flush()
        answer = self._read_answer()
        return Turn(answer["ms"], num_results=answer["num_results"])

    def close(self) -> None:
        """End the process; twice is harmless."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(LONGEST_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._words.close()

    def _read_answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._words.seek(0)
            words = self._words.read().strip().splitlines() or ["it said nothing"]
            self.close()
            raise KestrelError(f"{SERVER.name} ended: {words[-1].removeprefix('error: ')}")
        answer: dict[str, Any] = json.loads(line)
        return answer
