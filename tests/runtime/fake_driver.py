# ruff: noqa: N801, N802, N818 (the names are those of the library that is played)
"""A CUDA driver without a GPU: kernels run their own source on the CPU, in `FakeCuda`'s memory.

It refuses what the real one refuses: PTX that is too new for it or for the GPU, calls in a thread
without a context, memory that is not allocated or that the GPU cannot see.
"""

from __future__ import annotations

import ctypes
import enum
import re
import threading
from typing import Any

import numpy as np
from fake_cuda import FakeCuda, Handle
from kernel_emulation import emulate

from runtime.engines.kernels.letterbox import _ROW
from runtime.engines.kernels.shipped import find_kernel, parse_isa, readable_isa

_SIZES = {"u64": 8, "u32": 4, "f32": 4, "s32": 4, "s64": 8}


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_INVALID_PTX = 218
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222
    CUDA_ERROR_NOT_FOUND = 500


OK = CUresult.CUDA_SUCCESS


def entry_parameters(ptx: str, name: str) -> list[int] | None:
    """Bytes of each parameter of an entry, as its PTX says; None where it is not in it."""
    found = re.search(rf"\.entry {name}\((.*?)\)", ptx, re.DOTALL)
    if found is None:
        return None
    sizes = []
    for line in found[1].split(","):
        array = re.search(r"\.b8 \w+\[(\d+)\]", line)
        kind = re.search(r"\.param \.(\w\d\d) ", line)
        sizes.append(int(array[1]) if array else _SIZES[kind[1]])
    return sizes


class FakeDriver:
    """Looks like the module `cuda.bindings.driver`."""

    CUresult = CUresult

    def __init__(self, cuda: FakeCuda, *, version: int = 12060) -> None:
        self.cuda = cuda
        self.version = version
        self.failures: dict[str, list[CUresult]] = {}
        self.loaded: list[str] = []  # the target line of each module
        self.launched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        self.does_nothing = False  # kernels leave memory as it is
        self._texts: dict[int, str] = {}

    def fail(self, call: str, error: CUresult) -> None:
        """Let the next `call` fail."""
        self.failures.setdefault(call, []).append(error)

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        return (self._begin("cuInit"),)

    def cuDriverGetVersion(self) -> tuple[Any, ...]:
        return OK, self.version

    def cuModuleLoadData(self, address: int) -> tuple[Any, ...]:
        if (status := self._begin("cuModuleLoadData")) != OK:
            return status, None
        self._require_context()
        ptx = ctypes.string_at(address).decode()
        target = re.search(r"^\.target sm_(\d+)", ptx, re.MULTILINE)
        major, minor = self.cuda.capability
        if parse_isa(ptx) > readable_isa((self.version // 1000, self.version % 1000 // 10)):
            return CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION, None
        if int(target[1]) > major * 10 + minor:
            return CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU, None
        module = self.cuda._make("module")
        self._texts[module.value] = ptx
        self.loaded.append(f"sm_{target[1]}")
        return OK, module

    def cuModuleGetFunction(self, module: Handle, name: bytes) -> tuple[Any, ...]:
        if (status := self._begin("cuModuleGetFunction")) != OK:
            return status, None
        if entry_parameters(self._texts[module.value], name.decode()) is None:
            return CUresult.CUDA_ERROR_NOT_FOUND, None
        return OK, (module, name.decode())

    def cuModuleUnload(self, module: Handle) -> tuple[Any, ...]:
        if (status := self._begin("cuModuleUnload")) != OK:
            return (status,)
        self._require_context()
        for handle in self.cuda.handles.values():
            if handle.kind == "stream" and handle.is_alive and handle.queue:
                self.cuda.violate("a module is unloaded while work is queued")
        return self.cuda._destroy(module, "module")

    def cuLaunchKernel(self, function: Any, *rest: Any) -> tuple[Any, ...]:
        if (status := self._begin("cuLaunchKernel")) != OK:
            return (status,)
        self._require_context()
        (module, name), grid, block = function, rest[:3], rest[3:6]
        shared_bytes, stream, addresses, extra = rest[6:]
        assert extra == 0
        if not module.is_alive:
            self.cuda.violate("a kernel of an unloaded module is launched")
        self.cuda.stream(stream)
        sizes = entry_parameters(self._texts[module.value], name)
        pointers = (ctypes.c_void_p * len(sizes)).from_address(addresses)
        # The driver copies the values at once; the caller's may be gone when the kernel runs.
        values = [
            (ctypes.c_ubyte * size).from_buffer_copy(ctypes.string_at(pointer, size))
            for size, pointer in zip(sizes, pointers, strict=True)
        ]
        self.launched.append((name, grid, block))
        if self.does_nothing:
            return (OK,)

        def work() -> None:
            self._check_memory(name, values, grid[2])
            kernel = find_kernel(name)
            emulate(kernel.source).launch_packed(
                name, grid, block, values, shared_bytes=shared_bytes
            )

        self.cuda.enqueue(stream, work)
        return (OK,)

    def cuGetErrorName(self, status: Any) -> tuple[Any, ...]:
        return OK, CUresult(status).name.encode()

    def cuGetErrorString(self, status: Any) -> tuple[Any, ...]:
        return OK, b"a fake error"

    def _begin(self, call: str) -> CUresult:
        self.cuda.calls.append(call)
        left = self.failures.get(call, [])
        return left.pop(0) if left else OK

    def _require_context(self) -> None:
        if threading.get_ident() not in self.cuda.bound_threads:
            self.cuda.violate("the driver is called in a thread without a context")

    def _check_memory(self, name: str, values: list[Any], num_rows: int) -> None:
        """What the letterbox kernel will read and write is memory that the GPU sees."""
        if name != "kestrel_letterbox":
            return
        rows = np.frombuffer(bytes(values[0]), _ROW)[:num_rows]
        source = "pinned" if self.cuda.is_integrated else "device"
        for row in rows:
            nbytes = int(row["pitch"]) * int(row["height"])
            self.cuda.region(int(row["frame"]), nbytes, source)
        (images,) = np.frombuffer(bytes(values[1]), "<u8")
        height, width = (int(np.frombuffer(bytes(each), "<i4")[0]) for each in values[2:])
        self.cuda.region(int(images), num_rows * height * width * 3, "device")
