"""How far a build has come: TensorRT's nested phases as one fraction, and a bar on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO, TypeAlias

Progress: TypeAlias = Callable[[float, str], None]  # fraction 0..1, name of the phase

_BAR_CELLS = 24
_REDRAW_S = 0.1
_PHASE_CHARACTERS = 32


@dataclass(slots=True)
class _Phase:
    parent: str | None
    num_steps: int
    num_done: int = 0


class PhaseTree:
    """Turns nested phases into one fraction that never falls."""

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._fraction = 0.0

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        """A phase begins inside a step of its parent."""
        self._phases[name] = _Phase(parent, max(num_steps, 1))

    def step(self, name: str, step: int) -> None:
        """Step number `step`, counted from 0, is done."""
        phase = self._phases.get(name)
        if phase is not None:
            phase.num_done = min(step + 1, phase.num_steps)

    def finish(self, name: str) -> None:
        """A phase ends, also before its last step; the step of its parent is not counted yet."""
        phase = self._phases.pop(name, None)
        if phase is not None and phase.parent is None:
            self._fraction = 1.0

    def fraction_at(self, name: str) -> float:
        """0..1 of the whole, seen from a phase that runs now."""
        inner, at, seen = 0.0, self._phases.get(name), set()
        while at is not None and id(at) not in seen:
            seen.add(id(at))
            inner = min((at.num_done + inner) / at.num_steps, 1.0)
            at = self._phases.get(at.parent) if at.parent is not None else None
        self._fraction = max(self._fraction, inner)
        return self._fraction


class Interrupt:
    """Ctrl-C during a build: a Python error must not travel through TensorRT's C++."""

    def __init__(self) -> None:
        self.has_come = False


def make_monitor(trt: Any, progress: Progress, interrupt: Interrupt) -> Any:
    """An IProgressMonitor that calls `progress` and cancels the build after Ctrl-C."""
    tree = PhaseTree()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base exists at run time only
        def __init__(self) -> None:
            super().__init__()  # pybind11 needs it

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            try:
                tree.start(name, parent, num_steps)
            except KeyboardInterrupt:
                interrupt.has_come = True

        def step_complete(self, name: str, step: int) -> bool:
            try:
                tree.step(name, step)
                progress(tree.fraction_at(name), name)
            except KeyboardInterrupt:
                interrupt.has_come = True
            return not interrupt.has_come

        def phase_finish(self, name: str) -> None:
            try:
                tree.finish(name)
            except KeyboardInterrupt:
                interrupt.has_come = True

    return Monitor()


class BuildBar:
    """A bar on a terminal, one line anywhere else."""

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self._title = title
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._began = time.monotonic()
        self._drawn = 0.0
        self._has_drawn = False
        if not self._is_terminal:
            print(f"{title}: this can take minutes, once", file=self._stream, flush=True)

    def __call__(self, fraction: float, phase: str) -> None:
        """Draw, ten times a second at most."""
        now = time.monotonic()
        if not self._is_terminal or now - self._drawn < _REDRAW_S:
            return
        self._drawn = now
        self._has_drawn = True
        done = round(_BAR_CELLS * min(max(fraction, 0.0), 1.0))
        bar = "#" * done + "." * (_BAR_CELLS - done)
        words = phase[:_PHASE_CHARACTERS].ljust(_PHASE_CHARACTERS)
        seconds = now - self._began
        self._stream.write(f"\r{self._title} [{bar}] {fraction:4.0%} {seconds:4.0f} s  {words}")
        self._stream.flush()

    def close(self) -> None:
        """Leave the line clean."""
        if self._has_drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
