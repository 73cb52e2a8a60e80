"""CUDA's driver behind a thin layer: a kernel's PTX into the GPU, and its launches.

The context is the one that CUDA's runtime made current in the calling thread; see
`Cuda.make_current`. Works with cuda-python 12.6 to 13.x. Not run on a GPU yet: tests drive it with
a driver that runs the kernel's source on the CPU.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from typing import Any

from runtime.contract.errors import EngineError, SessionError
from runtime.cuda_modules import import_cuda
from runtime.engines.kernels.shipped import (
    Kernel,
    Version,
    read_target,
    readable_isa,
    suitable_targets,
)

log = logging.getLogger("kestrel.runtime")

_MODULES = ("cuda.bindings.driver", "cuda.cuda")  # the second is cuda-python before 12.6.1
Sides = tuple[int, int, int]


class Driver:
    """The driver's functions that kernels need; every status is checked.

    Functions raise SessionError with CUDA's own name of the error. Those that free only log it.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    @classmethod
    def load(cls) -> Driver:
        """Import cuda-python and start the driver.

        Raises:
            SessionError: it is not installed, cannot be imported, or there is no driver.
        """
        loaded = cls(import_cuda(_MODULES, "kernels"))
        loaded.start()
        return loaded

    def start(self) -> None:
        """Initialise the driver; again is harmless."""
        try:
            self._check("cuInit", self._driver.cuInit(0))
        except (RuntimeError, OSError) as error:  # cuda-python finds no libcuda
            raise SessionError(f"the NVIDIA driver does not load: {error}") from None

    def cuda_version(self) -> Version:
        """The newest CUDA that the driver knows, such as (12, 6)."""
        number = int(self._check("cuDriverGetVersion", self._driver.cuDriverGetVersion()))
        return number // 1000, number % 1000 // 10

    def load_module(self, ptx: bytes) -> Any:
        """Compile PTX for the GPU of the current context."""
        text = ctypes.create_string_buffer(ptx)  # ends with a zero, as the driver wants it
        given = self._driver.cuModuleLoadData(ctypes.addressof(text))
        return self._check("cuModuleLoadData", given)

    def find_function(self, module: Any, name: str) -> Any:
        """An entry point of a module."""
        given = self._driver.cuModuleGetFunction(module, name.encode())
        return self._check("cuModuleGetFunction", given)

    def unload_module(self, module: Any) -> None:
        """Take it out of the GPU; no launch of it may be under way."""
        status = self._driver.cuModuleUnload(module)[0]
        if int(status) != 0:
            log.warning("CUDA: cuModuleUnload failed with %s", self._describe(status))

    def launch(
        self,
        function: Any,
        grid: Sides,
        block: Sides,
        values: Sequence[Any],
        stream: Any,
        shared_bytes: int,
    ) -> None:
        """Queue a kernel; the driver copies the values before it returns.

        Args:
            function: of `find_function`.
            grid: blocks. block: threads.
            values: C objects, one a parameter.
            stream: of CUDA's runtime.
            shared_bytes: of dynamic shared memory.
        """
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(each) for each in values))
        launched = self._driver.cuLaunchKernel(
            *(function, *grid, *block, shared_bytes, int(stream)),
            ctypes.addressof(addresses),
            0,
        )
        self._check("cuLaunchKernel", launched)

    def _check(self, name: str, given: tuple[Any, ...]) -> Any:
        status, *values = given
        if int(status) != 0:
            raise SessionError(f"CUDA: {name} failed with {self._describe(status)}")
        return values[0] if values else None

    def _describe(self, status: Any) -> str:
        texts = []
        for describe in (self._driver.cuGetErrorName, self._driver.cuGetErrorString):
            _, text = describe(status)
            texts.append(text.decode() if isinstance(text, bytes) else str(text))
        return f"{texts[0]} ({texts[1]})"


class LoadedKernel:
    """A kernel in the GPU."""

    def __init__(self, driver: Driver, kernel: Kernel, module: Any, target: int) -> None:
        self.kernel = kernel
        self.target = target
        self._driver = driver
        self._module = module
        self._function = driver.find_function(module, kernel.name)

    def launch(
        self,
        stream: Any,
        grid: Sides,
        block: Sides,
        arguments: Sequence[Any],
        *,
        shared_bytes: int = 0,
    ) -> None:
        """Queue it.

        Args:
            stream: of CUDA's runtime.
            grid: blocks. block: threads, at most the kernel's `max_threads`.
            arguments: addresses and numbers, as `Kernel.parameters` says.
            shared_bytes: of dynamic shared memory.

        Raises:
            SessionError: the driver refuses it.
        """
        assert block[0] * block[1] * block[2] <= self.kernel.max_threads
        parameters = self.kernel.parameters
        values = [each.pack(value) for each, value in zip(parameters, arguments, strict=True)]
        self._driver.launch(self._function, grid, block, values, stream, shared_bytes)

    def close(self) -> None:
        """Unload it; twice is harmless."""
        if self._module is not None:
            self._driver.unload_module(self._module)
            self._module = self._function = None


def load_kernel(driver: Driver, kernel: Kernel, compute_capability: Version) -> LoadedKernel:
    """Bring a kernel into the GPU of the current context.

    The PTX made for the nearest older compute capability is taken, among those that the driver
    reads; where it refuses one all the same, the next.

    Raises:
        SessionError: the driver refuses all; its last words.
        EngineError: there is none for this GPU, or the files are damaged.
    """
    max_isa = readable_isa(driver.cuda_version())
    refusal: SessionError | None = None
    for target in suitable_targets(kernel, compute_capability, max_isa):
        ptx = read_target(kernel, target)
        try:
            module = driver.load_module(ptx)
        except SessionError as error:
            refusal = error
            continue
        return _loaded(driver, kernel, module, target)
    if refusal is not None:
        raise refusal
    raise EngineError(
        f"kernel {kernel.name} has no PTX for compute capability "
        f"{'.'.join(map(str, compute_capability))} that this driver reads (PTX ISA up to "
        f"{'.'.join(map(str, max_isa))}). Update the driver."
    )


def _loaded(driver: Driver, kernel: Kernel, module: Any, target: int) -> LoadedKernel:
    try:
        return LoadedKernel(driver, kernel, module, target)
    except SessionError:
        driver.unload_module(module)
        raise
