"""What every backend offers. A session runs graphs; it knows no task.

A `Session` holds the compiled graphs of one bundle on one backend. A `Stream` holds the buffers
and the state of one camera. `stream.submit(feeds)` gives a `Ticket` at once; `ticket.result()`
waits for the arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from runtime.preprocess import Frame, Letterbox

Array: TypeAlias = NDArray[np.generic]
Feeds: TypeAlias = Mapping[str, Array]
Results: TypeAlias = dict[str, Array]


@dataclass(frozen=True, slots=True)
class RawFrames:
    """Frames that a session letterboxes itself.

    Attributes:
        frames: (h, w, channels) uint8 of 1, 3 or 4 channels each; any strides.
        letterboxes: for their sizes.
        batch: rows of the engine's input; those beyond the frames are padding.
    """

    frames: Sequence[Frame]
    letterboxes: Sequence[Letterbox]
    batch: int


class Ticket(Protocol):
    """A submitted inference."""

    def result(self) -> Results:
        """Wait; give {output name: array}. The arrays are the caller's to keep."""
        ...

    @property
    def compute_ms(self) -> float | None:
        """Milliseconds that the engine took, waits for earlier inferences left out.

        None until the result is there, and where the backend does not tell; for graphs with state
        every backend does.
        """
        ...


class Stream(Protocol):
    """Buffers and state of one camera. Not to be shared between threads.

    What a graph gives as state is kept for the graphs that take it, and is no result: a frame of
    "nonkey" reads the state of the "key" that was submitted last before it, whatever is under way.
    """

    def submit(self, feeds: Feeds, graph: str = "model") -> Ticket:
        """Start one inference.

        Args:
            feeds: {input name: array} of the manifest's dtypes; leading side = batch, which must
                be one of the manifest's batches. Read until `result` returns.
            graph: "model", or "key" / "nonkey" of a temporal model.

        Raises:
            SessionError: unknown graph or input, wrong shape or type. Without state, or with that
                of another batch size, it comes here or from the ticket.
        """
        ...

    def close(self) -> None:
        """Free the buffers; twice is harmless."""
        ...


@runtime_checkable
class FrameStream(Protocol):
    """A stream that can letterbox frames itself, on the GPU."""

    @property
    def takes_frames(self) -> bool:
        """Whether it can here; where not, `submit` is fed the network's input as ever."""
        ...

    def submit_frames(self, frames: RawFrames, feeds: Feeds, graph: str = "model") -> Ticket:
        """As `Stream.submit`, with raw frames in place of the image; they may be reused at once."""
        ...


class Session(Protocol):
    """Compiled graphs of one bundle on one backend."""

    @property
    def backend(self) -> str:
        """Which of "onnxruntime", "openvino", "tensorrt" and "tensorrt_rtx" it is."""
        ...

    @property
    def device(self) -> str:
        """The device in words, such as "CPU" or "NVIDIA Orin (sm_87)"."""
        ...

    @property
    def precision(self) -> str:
        """The bundle's precision that was loaded, such as "fp32"."""
        ...

    def open_stream(self) -> Stream:
        """Buffers and state for one more camera."""
        ...

    def run(self, feeds: Feeds, graph: str = "model") -> Results:
        """Submit on a stream of the session's own, and wait."""
        ...

    def close(self) -> None:
        """Free everything; twice is harmless."""
        ...
