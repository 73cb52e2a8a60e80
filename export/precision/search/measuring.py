"""The measurements that a search asks for, each made once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from export.precision.int8.for_cpu import to_cpu
from export.precision.int8.observing import cut
from export.precision.int8.placement import find_last_products
from export.precision.mixed import Assignment
from export.precision.search.grouping import Group
from export.precision.search.progress import Progress, SearchState
from export.precision.search.scoring import AsWritten, LabelledFrames, Runs, opened
from runtime.contract.manifest import Manifest
from runtime.tasks import load_task

PROXY_FRAMES = 8
LATENCY_RUNS = 20
IMAGE = "image"

Assign = Callable[[Iterable[str]], Assignment]  # groups in float -> the assignment


class Measuring:
    """Sensitivities of groups and scores of choices.

    A choice is named by the groups that are float in it.

    Args:
        base: the float32 graph.
        manifest: of its bundle.
        groups: of the products that may be int8.
        assign: gives the assignment of a choice.
        frames: to search on; the first PROXY_FRAMES of them for sensitivities.
        state: where measurements are kept.
        progress: told of each frame.
    """

    def __init__(
        self,
        base: onnx.ModelProto,
        manifest: Manifest,
        groups: Sequence[Group],
        assign: Assign,
        frames: LabelledFrames,
        state: SearchState,
        progress: Progress,
    ) -> None:
        self._base = base
        self._manifest = manifest
        self._names = [group.name for group in groups]
        self._assign = assign
        self._frames = frames
        self._state = state
        self._progress = progress
        self._ends = sorted(find_last_products(base))
        self._float_outputs: list[list[NDArray[np.float32]]] = []

    def score(
        self, floats: Iterable[str], frames: LabelledFrames | None = None
    ) -> dict[str, float]:
        """Scores (0..1) with some groups in float.

        Args:
            floats: names of groups.
            frames: other ones than those of the search.

        Raises:
            TimeUp: before it was done.
        """
        frames = frames or self._frames
        floats = sorted(floats)
        digest = hashlib.sha256("\n".join(floats).encode()).hexdigest()
        name = f"scores {frames.split} {frames.sha256[:16]} {digest[:16]}"
        if name in self._state:
            self._progress.skip(len(frames))
            return dict(self._state[name])
        self._progress.check()
        with opened(self._assign(floats).to_int8(self._base), self._manifest) as session:
            scores = frames.score(session, self._manifest, self._progress.advance)
        self._state.put(name, scores)
        return scores

    def error(self, group: str) -> float:
        """How far the heads' outputs are off with this group alone in int8.

        Returns:
            Power of the error over the variance of the float32 output; the mean over all numbers
            that the heads' last products give, so that each anchor counts alike.

        Raises:
            TimeUp: before it was done.
        """
        name = f"error {group}"
        frames = self._frames.frames[:PROXY_FRAMES]
        if name in self._state:
            self._progress.skip(len(frames))
            return float(self._state[name])
        self._progress.check()
        if not self._float_outputs:
            session = AsWritten(cut(self._base, self._ends))
            self._float_outputs = [self._run(session, frame) for frame in frames]
        others = [each for each in self._names if each != group]
        typed = self._assign(others).to_int8(self._base)
        session = AsWritten(to_cpu(cut(typed, self._ends)))
        powers = np.zeros(len(self._ends))
        for frame, exact in zip(frames, self._float_outputs, strict=True):
            for place, (found, true) in enumerate(
                zip(self._run(session, frame), exact, strict=True)
            ):
                powers[place] += float(np.square(found - true, dtype=np.float64).sum())
            self._progress.advance()
        value = float((powers / self._variances()).sum() / sum(self._sizes()))
        self._state.put(name, value)
        return value

    def latencies_ms(self, choices: Mapping[str, Iterable[str]]) -> dict[str, float]:
        """Median time of an inference of each choice, in turns; not kept.

        Args:
            choices: name -> groups in float.
        """
        limits = load_task(self._manifest.task).thresholds(self._manifest, 1)
        feeds = {IMAGE: self._frames.frames[0][None], **limits}
        times: dict[str, list[float]] = {name: [] for name in choices}
        with contextlib.ExitStack() as stack:
            opened_ones: dict[frozenset[str], Runs] = {}  # equal choices are timed on one session
            for floats in {frozenset(each) for each in choices.values()}:
                typed = self._assign(floats).to_int8(self._base)
                opened_ones[floats] = stack.enter_context(opened(typed, self._manifest))
            sessions = {name: opened_ones[frozenset(each)] for name, each in choices.items()}
            for turn in range(LATENCY_RUNS + 2):
                for name, session in sessions.items():
                    start = time.perf_counter()
                    session.run(feeds)
                    if turn >= 2:  # the first ones allocate
                        times[name].append(1e3 * (time.perf_counter() - start))
        return {name: statistics.median(each) for name, each in times.items()}

    def _run(self, session: AsWritten, frame: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        rows = session.run({IMAGE: frame[None]})
        return [rows[name] for name in self._ends]

    def _variances(self) -> NDArray[np.float64]:
        """Of each end over all frames, about its mean."""
        found = []
        for values in zip(*self._float_outputs, strict=True):
            numbers = np.concatenate([each.reshape(-1) for each in values]).astype(np.float64)
            found.append(max(float(numbers.var()), np.finfo(np.float32).tiny))
        return np.array(found)

    def _sizes(self) -> list[int]:
        """Numbers of each end over all frames."""
        return [
            sum(each.size for each in values) for values in zip(*self._float_outputs, strict=True)
        ]
