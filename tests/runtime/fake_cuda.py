# ruff: noqa: N801, N802, N815, N818 (the names are those of the library that is played)
"""A CUDA runtime without a GPU, as asynchronous and as strict as a real one can be.

Nothing that is queued runs before somebody waits for it, so a buffer that is overwritten or freed
too early gives wrong results or a violation, never luck. Memory is real (ctypes), addresses are
real, and every access is checked against the live allocations. `violations` lists what a GPU
would punish with a crash, silent corruption or a leak; `FakeViolation` is raised at the place.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class FakeViolation(AssertionError):
    """The code under test did what a GPU would punish."""


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrIntegrated = 18


OK = cudaError_t.cudaSuccess


@dataclass
class Allocation:
    address: int
    nbytes: int
    kind: str  # "device" or "pinned"
    memory: Any = field(repr=False)


class Handle:
    """A stream, event or graph: an int to TensorRT, an object to CUDA."""

    _count = 1000

    def __init__(self, kind: str) -> None:
        Handle._count += 16
        self.kind = kind
        self.value = Handle._count
        self.is_alive = True
        self.queue: list[Any] = []  # streams: what has not run; graphs: what they do
        self.capture: list[Any] | None = None
        self.is_invalidated = False
        self.thread: int | None = None
        self.is_timed = False
        self.passed_at_ms: float | None = None  # events: when the GPU came by

    def __int__(self) -> int:
        return self.value


class FakeCuda:
    """Looks like the module `cuda.bindings.runtime`."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaDeviceAttr = cudaDeviceAttr
    cudaHostAllocDefault = 0
    cudaStreamNonBlocking = 1
    cudaEventDefault = 0
    cudaEventDisableTiming = 2

    def __init__(
        self, *, name: bytes = b"Fake GPU", num_devices: int = 1, is_integrated: bool = False
    ) -> None:
        self.violations: list[str] = []
        self.allocations: dict[int, Allocation] = {}
        self.handles: dict[int, Handle] = {}
        self.calls: list[str] = []
        self.failures: dict[str, list[tuple[int, cudaError_t]]] = {}
        self.device_name, self.num_devices = name, num_devices
        self.is_integrated = is_integrated
        self.capability = (8, 7)
        self.bound_threads: set[int] = set()  # in which the driver finds a context
        self.clock_ms = 0.0  # of the GPU; engines let it go on
        self._lock = threading.RLock()

    # What tests use -----------------------------------------------------------------------

    def fail(self, call: str, error: cudaError_t, *, after: int = 0) -> None:
        """Let one future `call` fail, after so many that go well."""
        self.failures.setdefault(call, []).append((after, error))

    def leaks(self) -> list[str]:
        """What is still allocated."""
        memory = [f"{a.kind} {a.nbytes} bytes" for a in self.allocations.values()]
        return memory + [handle.kind for handle in self.handles.values() if handle.is_alive]

    def violate(self, text: str) -> None:
        self.violations.append(text)
        raise FakeViolation(text)

    def region(self, address: int, nbytes: int, kind: str) -> memoryview:
        """Checked access to memory: inside one live allocation of the right kind."""
        for allocation in self.allocations.values():
            inside = allocation.address <= address < allocation.address + allocation.nbytes
            if inside:
                if allocation.kind != kind:
                    self.violate(f"{allocation.kind} memory used as {kind} memory")
                if address + nbytes > allocation.address + allocation.nbytes:
                    self.violate(f"{nbytes} bytes do not fit into {allocation}")
                start = address - allocation.address
                return memoryview(allocation.memory).cast("B")[start : start + nbytes]
        return self.violate(f"address {address:#x} is in no live {kind} allocation")

    def stream(self, value: Any) -> Handle:
        """The live stream of a handle or an integer; the default stream is a violation."""
        if int(value) in (0, 1, 2):
            self.violate("the default stream is used")
        handle = self.handles.get(int(value))
        if handle is None or not handle.is_alive or handle.kind != "stream":
            self.violate(f"stream {int(value)} does not exist (any more)")
        return handle

    def enqueue(self, stream: Any, work: Any) -> None:
        """Queue work, or record it where the stream captures."""
        handle = self.stream(stream)
        (handle.queue if handle.capture is None else handle.capture).append(work)

    def is_capturing(self, stream: Any) -> bool:
        return self.stream(stream).capture is not None

    def invalidate(self, stream: Any) -> None:
        """What queues something uncapturable does to the capture."""
        self.stream(stream).is_invalidated = True

    # Memory -------------------------------------------------------------------------------

    def cudaMalloc(self, nbytes: int) -> tuple[Any, ...]:
        return self._allocate("cudaMalloc", nbytes, "device")

    def cudaHostAlloc(self, nbytes: int, flags: int) -> tuple[Any, ...]:
        return self._allocate("cudaHostAlloc", nbytes, "pinned")

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        return self._free("cudaFree", address, "device")

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        return self._free("cudaFreeHost", address, "pinned")

    def cudaMemcpyAsync(
        self, to: int, source: int, nbytes: int, kind: cudaMemcpyKind, stream: Any
    ) -> tuple[Any, ...]:
        if (status := self._begin("cudaMemcpyAsync")) != OK:
            return (status,)
        ends = {1: ("device", "pinned"), 2: ("pinned", "device"), 3: ("device", "device")}[kind]
        self.region(to, nbytes, ends[0])
        self.region(source, nbytes, ends[1])
        if kind == 3 and abs(to - source) < nbytes:
            self.violate("a copy on the device overlaps itself")

        def work() -> None:
            self.region(to, nbytes, ends[0])[:] = self.region(source, nbytes, ends[1])

        self.enqueue(stream, work)
        return (OK,)

    # Streams and events -------------------------------------------------------------------

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        if (status := self._begin("cudaStreamCreateWithFlags")) != OK:
            return status, None
        if flags != self.cudaStreamNonBlocking:
            self.violate("a stream that waits for the default stream")
        return OK, self._make("stream")

    def cudaStreamDestroy(self, stream: Handle) -> tuple[Any, ...]:
        self._begin("cudaStreamDestroy")
        if self.stream(stream).queue:
            self.violate("a stream is destroyed with work queued")
        return self._destroy(stream, "stream")

    def cudaStreamSynchronize(self, stream: Handle) -> tuple[Any, ...]:
        if (status := self._begin("cudaStreamSynchronize")) != OK:
            return (status,)
        return self._drain(stream, None)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        if (status := self._begin("cudaEventCreateWithFlags")) != OK:
            return status, None
        event = self._make("event")
        event.is_timed = not flags & self.cudaEventDisableTiming
        return OK, event

    def cudaEventDestroy(self, event: Handle) -> tuple[Any, ...]:
        self._begin("cudaEventDestroy")
        return self._destroy(event, "event")

    def cudaEventRecord(self, event: Handle, stream: Handle) -> tuple[Any, ...]:
        if (status := self._begin("cudaEventRecord")) != OK:
            return (status,)
        event.passed_at_ms = None

        def stamp() -> None:
            event.passed_at_ms = self.clock_ms

        event.queue = [stream, stamp]
        self.enqueue(stream, stamp)
        return (OK,)

    def cudaEventElapsedTime(self, begun: Handle, done: Handle) -> tuple[Any, ...]:
        if (status := self._begin("cudaEventElapsedTime")) != OK:
            return status, None
        for event in (begun, done):
            if not (event.is_alive and event.is_timed):
                self.violate("the time of an event that keeps none")
        if begun.passed_at_ms is None or done.passed_at_ms is None:
            self.violate("the time of an event that the GPU has not passed")
        return OK, done.passed_at_ms - begun.passed_at_ms

    def cudaEventSynchronize(self, event: Handle) -> tuple[Any, ...]:
        if (status := self._begin("cudaEventSynchronize")) != OK:
            return (status,)
        if not event.is_alive:
            self.violate("a destroyed event is waited for")
        if not event.queue:
            return (OK,)  # never recorded
        stream, marker = event.queue
        return self._drain(stream, marker) if marker in stream.queue else (OK,)

    # Graphs -------------------------------------------------------------------------------

    def cudaStreamBeginCapture(self, stream: Handle, mode: Any) -> tuple[Any, ...]:
        if (status := self._begin("cudaStreamBeginCapture")) != OK:
            return (status,)
        if mode != cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
            self.violate("capture is not thread-local")
        handle = self.stream(stream)
        handle.capture, handle.is_invalidated = [], False
        handle.thread = threading.get_ident()
        return (OK,)

    def cudaStreamEndCapture(self, stream: Handle) -> tuple[Any, ...]:
        status = self._begin("cudaStreamEndCapture")
        handle = self.stream(stream)
        if handle.capture is None:
            self.violate("a capture ends that never began")
        work, handle.capture = handle.capture, None
        if status != OK or handle.is_invalidated:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, 0
        graph = self._make("graph")
        graph.queue = work
        return OK, graph

    def cudaGraphInstantiate(self, graph: Handle, flags: int) -> tuple[Any, ...]:
        if (status := self._begin("cudaGraphInstantiate")) != OK:
            return status, None
        executable = self._make("executable")
        executable.queue = list(graph.queue)
        return OK, executable

    def cudaGraphLaunch(self, executable: Handle, stream: Handle) -> tuple[Any, ...]:
        if (status := self._begin("cudaGraphLaunch")) != OK:
            return (status,)
        if not executable.is_alive:
            self.violate("a destroyed graph is launched")
        for work in executable.queue:
            self.enqueue(stream, work)
        return (OK,)

    def cudaGraphDestroy(self, graph: Handle) -> tuple[Any, ...]:
        self._begin("cudaGraphDestroy")
        return self._destroy(graph, "graph")

    def cudaGraphExecDestroy(self, executable: Handle) -> tuple[Any, ...]:
        self._begin("cudaGraphExecDestroy")
        return self._destroy(executable, "executable")

    # Device and errors --------------------------------------------------------------------

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        if (status := self._begin("cudaGetDeviceCount")) != OK:
            return status, None
        return OK, self.num_devices

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        major, minor = self.capability
        return OK, SimpleNamespace(name=self.device_name, major=major, minor=minor)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        if (status := self._begin("cudaSetDevice")) != OK:
            return (status,)
        self.bound_threads.add(threading.get_ident())
        return (OK,)

    def cudaDeviceGetAttribute(self, attribute: cudaDeviceAttr, device: int) -> tuple[Any, ...]:
        assert attribute == cudaDeviceAttr.cudaDevAttrIntegrated
        return OK, int(self.is_integrated)

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (OK,)

    def cudaGetErrorName(self, status: Any) -> tuple[Any, ...]:
        return OK, cudaError_t(status).name.encode()

    def cudaGetErrorString(self, status: Any) -> tuple[Any, ...]:
        return OK, b"a fake error"

    # Inside -------------------------------------------------------------------------------

    def _begin(self, call: str) -> cudaError_t:
        with self._lock:
            self.calls.append(call)
            left = self.failures.get(call, [])
            for index, (after, error) in enumerate(left):
                if after == 0:
                    del left[index]
                    return error
                left[index] = (after - 1, error)
        self._refuse_while_capturing(call)
        return OK

    def _refuse_while_capturing(self, call: str) -> None:
        """Thread-local mode: waiting, allocating and freeing are forbidden to this thread."""
        forbidden = ("Synchronize", "cudaMalloc", "cudaHostAlloc", "cudaFree")
        if not any(sign in call for sign in forbidden):
            return
        mine = threading.get_ident()
        for handle in self.handles.values():
            if handle.kind == "stream" and handle.capture is not None and handle.thread == mine:
                self.violate(f"{call} during a capture")

    def _allocate(self, call: str, nbytes: int, kind: str) -> tuple[Any, ...]:
        if (status := self._begin(call)) != OK:
            return status, None
        memory = (ctypes.c_ubyte * nbytes)(*([0xCD] * min(nbytes, 64)))  # not zeroed
        address = ctypes.addressof(memory)
        with self._lock:
            self.allocations[address] = Allocation(address, nbytes, kind, memory)
        return OK, address

    def _free(self, call: str, address: int, kind: str) -> tuple[Any, ...]:
        self._begin(call)
        with self._lock:
            allocation = self.allocations.pop(address, None)
        if allocation is None:
            self.violate(f"{call} of an address that is not allocated (any more)")
        if allocation.kind != kind:
            self.violate(f"{call} of {allocation.kind} memory")
        return (OK,)

    def _make(self, kind: str) -> Handle:
        handle = Handle(kind)
        with self._lock:
            self.handles[handle.value] = handle
        return handle

    def _destroy(self, handle: Handle, kind: str) -> tuple[Any, ...]:
        if not handle.is_alive or handle.kind != kind:
            self.violate(f"a {handle.kind} is destroyed twice, or as a {kind}")
        handle.is_alive = False
        return (OK,)

    def _drain(self, stream: Handle, until: Any) -> tuple[Any, ...]:
        """Run what is queued, up to a marker."""
        handle = self.stream(stream)
        with self._lock:
            while handle.queue:
                work = handle.queue.pop(0)
                if callable(work):
                    work()
                if work is until:
                    break
        return (OK,)
