"""CUDA's runtime behind a thin layer: checked calls, device memory, pinned host memory.

Works with cuda-python 12.6 to 13.x, whose functions return (status, value ...). The device is
number 0; CUDA_VISIBLE_DEVICES chooses another.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.contract.errors import SessionError
from runtime.cuda_modules import import_cuda
from runtime.engines.fingerprint import Device

log = logging.getLogger("kestrel.runtime")

_MODULES = ("cuda.bindings.runtime", "cuda.cudart")  # the second is cuda-python before 12.6.1


class Cuda:
    """The CUDA functions that sessions need; every status is checked.

    Streams, events and graphs are handles of the module given, memory is an integer address.
    Functions raise SessionError with CUDA's own name of the error. Those that free only log it:
    they run while something else may be failing.
    """

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart

    @classmethod
    def load(cls) -> Cuda:
        """Import cuda-python.

        Raises:
            SessionError: it is not installed, or cannot be imported.
        """
        return cls(import_cuda(_MODULES, "TensorRT sessions"))

    def device(self) -> Device:
        """Name and compute capability of the GPU; SessionError where there is none."""
        cudart = self._cudart
        if self._check("cudaGetDeviceCount", cudart.cudaGetDeviceCount()) < 1:
            raise SessionError("CUDA finds no GPU. Check nvidia-smi and CUDA_VISIBLE_DEVICES.")
        found = self._check("cudaGetDeviceProperties", cudart.cudaGetDeviceProperties(0))
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        return Device(name.strip("\0 "), f"{found.major}.{found.minor}")

    def make_current(self) -> None:
        """Make the device's context current in this thread, for calls of the driver."""
        self._check("cudaSetDevice", self._cudart.cudaSetDevice(0))

    def is_integrated(self) -> bool:
        """Whether the GPU shares its memory with the CPU, as on a Jetson."""
        cudart = self._cudart
        attribute = cudart.cudaDeviceAttr.cudaDevAttrIntegrated
        given = cudart.cudaDeviceGetAttribute(attribute, 0)
        return bool(self._check("cudaDeviceGetAttribute", given))

    def allocate_device(self, nbytes: int) -> int:
        """The address of new device memory."""
        return int(self._check("cudaMalloc", self._cudart.cudaMalloc(nbytes)))

    def free_device(self, address: int) -> None:
        self._release("cudaFree", lambda: self._cudart.cudaFree(address))

    def allocate_pinned(self, nbytes: int) -> int:
        """The address of new page-locked host memory, which copies beside the CPU need."""
        cudart = self._cudart
        given = cudart.cudaHostAlloc(nbytes, cudart.cudaHostAllocDefault)
        return int(self._check("cudaHostAlloc", given))

    def free_pinned(self, address: int) -> None:
        self._release("cudaFreeHost", lambda: self._cudart.cudaFreeHost(address))

    def copy_to_device(self, device: int, host: int, nbytes: int, stream: Any) -> None:
        """Queue a copy; the host memory must be pinned and left alone until it has run."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(device, host, nbytes, kind, stream)

    def copy_to_host(self, host: int, device: int, nbytes: int, stream: Any) -> None:
        """Queue a copy; the host memory must be pinned."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(host, device, nbytes, kind, stream)

    def copy_on_device(self, to: int, source: int, nbytes: int, stream: Any) -> None:
        """Queue a copy between two places that do not overlap."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(to, source, nbytes, kind, stream)

    def create_stream(self) -> Any:
        """A stream that does not wait for the default stream."""
        cudart = self._cudart
        given = cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking)
        return self._check("cudaStreamCreateWithFlags", given)

    def destroy_stream(self, stream: Any) -> None:
        self._release("cudaStreamDestroy", lambda: self._cudart.cudaStreamDestroy(stream))

    def wait_for_stream(self, stream: Any) -> None:
        """Block until all that is queued has run."""
        self._check("cudaStreamSynchronize", self._cudart.cudaStreamSynchronize(stream))

    def drain_stream(self, stream: Any) -> None:
        """As `wait_for_stream`, for closing: an error is logged."""
        self._release("cudaStreamSynchronize", lambda: self._cudart.cudaStreamSynchronize(stream))

    def create_event(self, *, is_timed: bool = False) -> Any:
        """An event; without timing it is of the cheap kind."""
        cudart = self._cudart
        flags = cudart.cudaEventDefault if is_timed else cudart.cudaEventDisableTiming
        return self._check("cudaEventCreateWithFlags", cudart.cudaEventCreateWithFlags(flags))

    def elapsed_ms(self, begun: Any, done: Any) -> float:
        """Milliseconds on the GPU between two timed events, both of which it has passed."""
        given = self._cudart.cudaEventElapsedTime(begun, done)
        return float(self._check("cudaEventElapsedTime", given))

    def destroy_event(self, event: Any) -> None:
        self._release("cudaEventDestroy", lambda: self._cudart.cudaEventDestroy(event))

    def record_event(self, event: Any, stream: Any) -> None:
        self._check("cudaEventRecord", self._cudart.cudaEventRecord(event, stream))

    def wait_for_event(self, event: Any) -> None:
        """Block until the work before the event's last record has run."""
        self._check("cudaEventSynchronize", self._cudart.cudaEventSynchronize(event))

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Any:
        """Record what `enqueue` queues as an executable graph, without running it.

        Thread-local mode: what other threads do meanwhile neither enters nor breaks it.

        Raises:
            SessionError: something in it cannot be captured; the stream is usable again.
        """
        cudart = self._cudart
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        begun = cudart.cudaStreamBeginCapture(stream, mode)
        self._check("cudaStreamBeginCapture", begun)
        try:
            enqueue()
        except BaseException:
            self._abandon_capture(stream)
            raise
        ended = cudart.cudaStreamEndCapture(stream)
        graph = self._check("cudaStreamEndCapture", ended)
        try:
            return self._check("cudaGraphInstantiate", cudart.cudaGraphInstantiate(graph, 0))
        finally:
            self._release("cudaGraphDestroy", lambda: cudart.cudaGraphDestroy(graph))

    def launch(self, executable: Any, stream: Any) -> None:
        """Queue a captured graph."""
        self._check("cudaGraphLaunch", self._cudart.cudaGraphLaunch(executable, stream))

    def destroy_executable(self, executable: Any) -> None:
        self._release("cudaGraphExecDestroy", lambda: self._cudart.cudaGraphExecDestroy(executable))

    def _abandon_capture(self, stream: Any) -> None:
        """End a capture that went wrong; its error is expected and cleared."""
        cudart = self._cudart
        status, *values = cudart.cudaStreamEndCapture(stream)
        if int(status) == 0 and values and int(values[0]):
            self._release("cudaGraphDestroy", lambda: cudart.cudaGraphDestroy(values[0]))
        cudart.cudaGetLastError()

    def _copy(self, to: int, source: int, nbytes: int, kind: Any, stream: Any) -> None:
        copied = self._cudart.cudaMemcpyAsync(to, source, nbytes, kind, stream)
        self._check("cudaMemcpyAsync", copied)

    def _check(self, name: str, given: tuple[Any, ...]) -> Any:
        """The value of a call that went well."""
        status, *values = given
        if int(status) != 0:
            self._cudart.cudaGetLastError()  # or the next launch reports this error again
            raise SessionError(f"CUDA: {name} failed with {self._describe(status)}")
        return values[0] if values else None

    def _release(self, name: str, call: Callable[[], tuple[Any, ...]]) -> None:
        status = call()[0]
        if int(status) != 0:
            self._cudart.cudaGetLastError()
            log.warning("CUDA: %s failed with %s", name, self._describe(status))

    def _describe(self, status: Any) -> str:
        texts = []
        for describe in (self._cudart.cudaGetErrorName, self._cudart.cudaGetErrorString):
            _, text = describe(status)
            texts.append(text.decode() if isinstance(text, bytes) else str(text))
        return f"{texts[0]} ({texts[1]}). See dmesg and nvidia-smi."


class DeviceBuffer:
    """Device memory at one address for as long as it lives."""

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        self._cuda = cuda
        self.nbytes = nbytes
        self.address = cuda.allocate_device(max(nbytes, 1))

    def close(self) -> None:
        """Free it; twice is harmless."""
        if self.address:
            self._cuda.free_device(self.address)
            self.address = 0


class PinnedBuffer:
    """Pinned host memory, seen as an array. The array must not be used after `close`."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        self._cuda = cuda
        self.nbytes = math.prod(shape) * dtype.itemsize
        self.address = cuda.allocate_pinned(max(self.nbytes, 1))
        memory = (ctypes.c_ubyte * self.nbytes).from_address(self.address)
        self.array: NDArray[np.generic] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def close(self) -> None:
        """Free it; twice is harmless."""
        if self.address:
            self._cuda.free_pinned(self.address)
            self.address = 0
            self.array = np.empty(0, self.array.dtype)
