"""What comes into a session, held against the manifest once a call."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from runtime.contract.errors import SessionError
from runtime.contract.manifest import Manifest
from runtime.contract.outputs import TensorSpec
from runtime.sessions.base import Feeds

_Expected = tuple[tuple[str, "np.dtype[np.generic]", tuple[int, ...]], ...]


class FeedCheck:
    """Checks names, types and shapes of one graph's feeds."""

    def __init__(self, manifest: Manifest, graph: str, specs: Iterable[TensorSpec]) -> None:
        """Prepare the checks.

        Args:
            manifest: gives the sizes and the batches.
            graph: for messages.
            specs: of the inputs that the caller feeds; state is not among them.
        """
        self._graph = graph
        self._specs = tuple(specs)
        self._expected: dict[int, _Expected] = {}
        for batch in manifest.batches:
            sizes = manifest.sizes(batch)
            self._expected[batch] = tuple(
                (spec.name, spec.numpy_dtype, spec.resolved(sizes)) for spec in self._specs
            )

    def batch_of(self, feeds: Feeds) -> int:
        """The batch size of feeds that are right.

        Raises:
            SessionError: a missing or unknown name, a wrong type, shape or batch size.
        """
        first = feeds.get(self._specs[0].name) if self._specs else None
        batch: int = first.shape[0] if isinstance(first, np.ndarray) and first.ndim else 0
        expected = self._expected.get(batch)
        if expected is None or len(feeds) != len(expected):
            raise self._explain(feeds)
        for name, dtype, shape in expected:
            array = feeds.get(name)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
                raise self._explain(feeds)
        return batch

    def _explain(self, feeds: Feeds) -> SessionError:
        """The error for feeds that are wrong somewhere."""
        names = [spec.name for spec in self._specs]
        if set(feeds) != set(names):
            return SessionError(
                f"graph {self._graph!r} was fed {', '.join(sorted(feeds)) or 'nothing'}; "
                f"expected {', '.join(names)}."
            )
        batches = ", ".join(map(str, self._expected))
        first = feeds[names[0]]
        if not isinstance(first, np.ndarray) or first.ndim < 1:
            return SessionError(f"input {names[0]!r} is {type(first).__name__}; expected an array.")
        if first.shape[0] not in self._expected:
            return SessionError(
                f"input {names[0]!r} has batch {first.shape[0]}; this bundle takes {batches}. "
                "Pad the batch, or export with --batches."
            )
        for name, dtype, shape in self._expected[first.shape[0]]:
            array = feeds[name]
            got = (
                f"{array.dtype} {array.shape}"
                if isinstance(array, np.ndarray)
                else type(array).__name__
            )
            if got != f"{dtype} {shape}":
                return SessionError(f"input {name!r} is {got}; expected {dtype} {shape}.")
        raise AssertionError("explained feeds that are right")


def fed_specs(manifest: Manifest, input_names: Iterable[str]) -> tuple[TensorSpec, ...]:
    """The specs of the inputs that a caller feeds: those of the graph that are not state."""
    known = {spec.name: spec for spec in manifest.inputs}
    state = set(manifest.state.values())
    specs = []
    for name in input_names:
        if name in state:
            continue
        if name not in known:
            raise SessionError(
                f"the graph takes an input {name!r} that the manifest lacks. Export again."
            )
        specs.append(known[name])
    return tuple(specs)


def summarise(error: BaseException) -> str:
    """A backend's error on one line, its length bounded."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
