"""One stream's way of running one graph at one batch size: fixed buffers, a context, CUDA graphs.

Device buffers exist once; what the CPU writes and reads is pinned and exists twice (two slots), so
the CPU prepares one inference while the GPU runs the one before. All lanes of a stream are queued
on one CUDA stream, in order, which is why the device buffers need no second copy. State needs none
either: "key" writes it where "nonkey" reads it, at an address that never changes, and does so only
when all frames that were queued before it have read the old one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from typing import Any

import numpy as np

from runtime.contract.errors import SessionError
from runtime.contract.outputs import IMAGE
from runtime.sessions.base import Feeds, RawFrames, Results
from runtime.sessions.buffers import Cuda, DeviceBuffer, PinnedBuffer
from runtime.sessions.frame_upload import FrameStage, FrameUpload
from runtime.sessions.state import refuse_state
from runtime.sessions.trt_graphs import LoadedGraph, Port, captures_itself

log = logging.getLogger("kestrel.runtime")

_NUM_SLOTS = 2


class State:
    """A stream's state: device memory that the host never sees, for every batch size its own."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._buffers: dict[tuple[str, int], DeviceBuffer] = {}
        self._batches: dict[str, int] = {}  # of the last key frame, by input name

    def buffer(self, name: str, batch: int, nbytes: int) -> DeviceBuffer:
        """The memory behind a state input; the same for every graph that takes or renews it."""
        if (name, batch) not in self._buffers:
            self._buffers[name, batch] = DeviceBuffer(self._cuda, nbytes)
        buffer = self._buffers[name, batch]
        assert buffer.nbytes == nbytes, "types and shapes were compared when the graphs were loaded"
        return buffer

    def batch_of(self, name: str) -> int | None:
        """The batch size of the state that a state input has now; None where it has none."""
        return self._batches.get(name)

    def note(self, name: str, batch: int | None) -> None:
        """A state input was renewed for one batch size; None where its memory is half written."""
        if batch is None:
            self._batches.pop(name, None)
        else:
            self._batches[name] = batch

    def close(self) -> None:
        """Free the memory."""
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers.clear()
        self._batches.clear()


class Slot:
    """Pinned buffers of one inference under way, its event, and its CUDA graph."""

    def __init__(self, cuda: Cuda, cleanup: contextlib.ExitStack, *, is_timed: bool) -> None:
        self.inputs: dict[str, PinnedBuffer] = {}
        self.outputs: dict[str, PinnedBuffer] = {}
        self.stage: FrameStage | None = None  # where raw frames can be taken
        self.executable: Any = None
        self.is_busy = False  # the GPU may still use the buffers, or nobody has read them
        self._cuda = cuda
        self._ticket: weakref.ref[TrtTicket] | None = None
        self.event = cuda.create_event(is_timed=is_timed)
        cleanup.callback(cuda.destroy_event, self.event)
        self.begun: Any = None  # an event, too
        if is_timed:
            self.begun = cuda.create_event(is_timed=True)
            cleanup.callback(cuda.destroy_event, self.begun)

    def issue(self) -> TrtTicket:
        """The ticket of what was just queued; the slot is busy until it is settled."""
        ticket = TrtTicket(self._cuda, self)
        self._ticket = weakref.ref(ticket)
        self.is_busy = True
        return ticket

    def settle(self) -> None:
        """Wait until the slot is free; who still holds its ticket keeps the results."""
        if not self.is_busy:
            return
        ticket = self._ticket() if self._ticket is not None else None
        if ticket is not None:
            ticket.settle()
        else:
            self._cuda.wait_for_event(self.event)
        self.is_busy = False


class TrtTicket:
    """An inference under way; `result` may be called from another thread than `submit`."""

    def __init__(self, cuda: Cuda, slot: Slot) -> None:
        self.compute_ms: float | None = None
        self._cuda = cuda
        self._slot: Slot | None = slot
        self._results: Results = {}
        self._error: SessionError | None = None
        self._lock = threading.Lock()

    def result(self) -> Results:
        """Wait; the arrays are the caller's."""
        self.settle()
        if self._error is not None:
            raise self._error
        return self._results

    def settle(self) -> None:
        """Wait and copy the results out of the slot, once."""
        with self._lock:
            if self._slot is None:
                return
            slot, self._slot = self._slot, None
            try:
                self._cuda.wait_for_event(slot.event)
                self._results = {name: each.array.copy() for name, each in slot.outputs.items()}
                if slot.begun is not None:
                    self.compute_ms = self._cuda.elapsed_ms(slot.begun, slot.event)
            except SessionError as error:
                self._error = error
            slot.is_busy = False


class Lane:
    """Runs one graph at one batch size on one CUDA stream."""

    def __init__(
        self,
        cuda: Cuda,
        stream: Any,
        graph: LoadedGraph,
        batch: int,
        state: State,
        *,
        use_cuda_graphs: bool,
        upload: FrameUpload | None = None,
    ) -> None:
        """Allocate everything and fix every address.

        Args:
            cuda: the checked CUDA calls.
            stream: a CUDA stream that is not the default one.
            graph: the loaded engine.
            batch: one of its batch sizes.
            state: of the stream.
            use_cuda_graphs: capture copies and engine as one CUDA graph.
            upload: of the stream, where it takes raw frames. The image then stays out of the CUDA
                graph, since frames change their size.

        Raises:
            SessionError: out of memory, or TensorRT refuses a shape; nothing stays allocated.
        """
        self._cuda = cuda
        self._stream = stream
        self._graph = graph
        self._batch = batch
        self._state = state
        self._upload = upload
        self._captures = use_cuda_graphs and not captures_itself(graph.flavour)
        self._is_warm = False
        self._next = 0
        self._device: dict[str, DeviceBuffer] = {}
        self._cleanup = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            stack.callback(self._drop_context)
            self._context = graph.make_context(use_cuda_graphs=use_cuda_graphs)
            self._prepare_context()
            is_timed = bool(graph.renews)  # for the choice between "key" and "nonkey"
            self._slots = [Slot(cuda, stack, is_timed=is_timed) for _ in range(_NUM_SLOTS)]
            self._allocate(stack)
            self._cleanup = stack.pop_all()

    @property
    def context(self) -> Any:
        """TensorRT's, its profile and shapes set."""
        return self._context

    @property
    def uses_cuda_graph(self) -> bool:
        """Whether the next inference replays a captured graph."""
        return self._slots[self._next].executable is not None

    def submit(self, feeds: Feeds, frames: RawFrames | None = None) -> TrtTicket:
        """Queue one inference of checked feeds; `frames` take the place of the image."""
        slot = self._slots[self._next]
        slot.settle()
        self._require_state()
        for name, buffer in slot.inputs.items():
            if frames is None or name != IMAGE.name:
                np.copyto(buffer.array, feeds[name])
        try:
            if slot.begun is not None:
                self._cuda.record_event(slot.begun, self._stream)
            if self._upload is not None:
                self._bring_image(slot, self._upload, frames)
            if slot.executable is not None:
                self._cuda.launch(slot.executable, self._stream)
            else:
                self._enqueue(slot)
            self._cuda.record_event(slot.event, self._stream)
        except BaseException:
            self._note_state(None)
            self._cuda.drain_stream(self._stream)  # half of it may still use the slot
            raise
        ticket = slot.issue()
        self._next = (self._next + 1) % _NUM_SLOTS
        self._note_state(self._batch)
        if not self._is_warm:
            self._capture_all()
            self._is_warm = True
        return ticket

    def close(self) -> None:
        """Free everything; tickets under way keep their results. Twice is harmless."""
        self._cuda.drain_stream(self._stream)
        for slot in self._slots:
            with contextlib.suppress(SessionError):  # a dead device; the ticket keeps the error
                slot.settle()
        self._cleanup.close()

    def _drop_context(self) -> None:
        self._context = None

    def _prepare_context(self) -> None:
        """Choose the profile and fix the shapes, once."""
        context, graph, batch = self._context, self._graph, self._batch
        profile = graph.profiles[batch]
        if not context.set_optimization_profile_async(profile, int(self._stream)):
            raise self._refused(f"profile {profile}")
        for port in (*graph.inputs, *graph.state_inputs):
            shape = tuple(batch if side == -1 else side for side in port.shape)
            if not context.set_input_shape(port.name, shape):
                raise self._refused(f"input {port.name!r} of shape {shape}")
        self._cuda.wait_for_stream(self._stream)

    def _allocate(self, stack: contextlib.ExitStack) -> None:
        graph = self._graph
        for port in graph.state_inputs:
            self._bind(port, self._state_buffer(port.name, port))
        for port in graph.state_outputs:
            if not self._reads_what_it_renews(port):
                self._bind(port, self._state_buffer(graph.renews[port.name], port))
        apart = [port for port in graph.state_outputs if self._reads_what_it_renews(port)]
        for port in (*graph.inputs, *graph.outputs, *apart):
            buffer = DeviceBuffer(self._cuda, _nbytes(self._shape(port), port.dtype))
            stack.callback(buffer.close)
            self._device[port.name] = buffer
            self._bind(port, buffer)
        for slot in self._slots:
            for ports, pinned in ((graph.inputs, slot.inputs), (graph.outputs, slot.outputs)):
                for port in ports:
                    pinned[port.name] = PinnedBuffer(self._cuda, self._shape(port), port.dtype)
                    stack.callback(pinned[port.name].close)
            if self._upload is not None:
                slot.stage = self._upload.open_stage()
                stack.callback(slot.stage.close)

    def _shape(self, port: Port) -> tuple[int, ...]:
        context = self._context
        shape = tuple(context.get_tensor_shape(port.name))
        if any(side < 0 for side in shape):
            raise SessionError(
                f"graph {self._graph.name!r}: {port.name!r} has shape {shape}, decided by its data "
                "(-1); expected fixed sizes. Export with padded outputs."
            )
        return shape

    def _bind(self, port: Port, buffer: DeviceBuffer) -> None:
        context = self._context
        if not context.set_tensor_address(port.name, buffer.address):
            raise self._refused(f"the address of {port.name!r}")

    def _bring_image(self, slot: Slot, upload: FrameUpload, frames: RawFrames | None) -> None:
        """Queue what fills the engine's image: a copy, or the letterboxing of raw frames."""
        images = self._device[IMAGE.name].address
        if frames is not None:
            assert slot.stage is not None
            upload.enqueue(slot.stage, frames, images)
            return
        pinned = slot.inputs[IMAGE.name]
        self._cuda.copy_to_device(images, pinned.address, pinned.nbytes, self._stream)

    def _enqueue(self, slot: Slot) -> None:
        """Queue copies in, the engine, copies out. This is what a CUDA graph captures."""
        cuda, stream, context = self._cuda, self._stream, self._context
        for name, pinned in slot.inputs.items():
            if self._upload is None or name != IMAGE.name:
                to = self._device[name].address
                cuda.copy_to_device(to, pinned.address, pinned.nbytes, stream)
        if not context.execute_async_v3(int(stream)):
            raise self._refused("to run")
        for name, pinned in slot.outputs.items():
            cuda.copy_to_host(pinned.address, self._device[name].address, pinned.nbytes, stream)
        for port in self._graph.state_outputs:
            if self._reads_what_it_renews(port):
                source = self._device[port.name]
                kept = self._state_buffer(self._graph.renews[port.name], port)
                cuda.copy_on_device(kept.address, source.address, source.nbytes, stream)

    def _capture_all(self) -> None:
        """Capture a CUDA graph for each slot, after the first run; plain queueing if refused."""
        if not self._captures:
            return
        self._cuda.wait_for_stream(self._stream)
        for slot in self._slots:
            try:
                executable = self._cuda.capture(self._stream, lambda slot=slot: self._enqueue(slot))  # type: ignore[misc]
            except SessionError as error:
                log.warning(
                    "graph %r runs without a CUDA graph, which costs some latency: %s",
                    self._graph.name,
                    str(error),  # not the error: its traceback would keep the engine alive
                )
                return
            self._cleanup.callback(self._cuda.destroy_executable, executable)
            slot.executable = executable

    def _require_state(self) -> None:
        for port in self._graph.state_inputs:
            found = self._state.batch_of(port.name)
            if found != self._batch:
                raise refuse_state(self._graph.name, port.name, self._batch, found)

    def _note_state(self, batch: int | None) -> None:
        for port in self._graph.state_outputs:
            self._state.note(self._graph.renews[port.name], batch)

    def _reads_what_it_renews(self, output: Port) -> bool:
        """Such a graph must not write where it reads: it has a buffer of its own, copied after."""
        taken = self._graph.renews[output.name]
        return any(port.name == taken for port in self._graph.state_inputs)

    def _state_buffer(self, name: str, port: Port) -> DeviceBuffer:
        return self._state.buffer(name, self._batch, _nbytes(self._shape(port), port.dtype))

    def _refused(self, what: str) -> SessionError:
        said = "; ".join(self._graph.flavour.library_log.take()) or "no reason given"
        return SessionError(
            f"{self._graph.flavour} refuses {what} in graph {self._graph.name!r}: {said}. "
            "Delete the folder of engines to build anew; if that does not help, export again."
        )


def _nbytes(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
