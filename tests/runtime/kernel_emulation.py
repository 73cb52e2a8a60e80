"""Runs the shipped .cu files on the CPU: the very text, compiled as C++ (`kernel_emulation.h`).

Not a second implementation: what is shown here holds for the source that becomes PTX, as far as
the C++ of g++ and of NVRTC mean the same (no fused multiply-add in either, IEEE float32).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.engines.kernels.shipped import FOLDER, HEADER, KERNELS, Kernel

_HERE = Path(__file__).resolve().parent
_COMPILER = os.environ.get("CXX", "g++")
_FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"),
    # As on the GPU: no fused multiply-add, wrapping integers, no types hidden from each other.
    *("-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-attributes", "-Wno-unused"),
)
_GUARD_BYTES = 256
_GUARD = 0xC3


class KernelFault(AssertionError):  # noqa: N818 (it is the kernel's, as a hardware fault is)
    """The kernel did what CUDA does not define, or would hang."""


class Program:
    """A compiled source; not for several threads at once."""

    def __init__(self, library: ctypes.CDLL, kernels: Sequence[Kernel]) -> None:
        self._library = library
        self._kernels = {kernel.name: kernel for kernel in kernels}

    def sizes_of_parameters(self, name: str) -> list[int]:
        """Bytes of each parameter, as the C++ compiler sees them."""
        count = getattr(self._library, f"parameters_of_{name}")
        sizes = (ctypes.c_size_t * count(None))()
        count(sizes)
        return list(sizes)

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any],
        *,
        shared_bytes: int = 0,
        order: int = 0,
        guarded: bool = False,
    ) -> None:
        """Run a kernel to its end.

        Args:
            name: of the entry.
            grid, block: up to three sides.
            arguments: a C-contiguous array for a pointer (an int is an address), else a number,
                or bytes.
            shared_bytes: of dynamic shared memory.
            order: in which threads run: 0 rising, 1 falling (blocks, too), from 2 on a shuffle
                with that seed, another after each barrier.
            guarded: put arrays between bytes that are looked at afterwards.

        Raises:
            KernelFault: a fault of the kernel, in words.
        """
        kernel = self._kernels[name]
        num_threads = int(np.prod(block))
        assert 1 <= num_threads <= kernel.max_threads, f"{num_threads} threads"
        assert len(arguments) == len(kernel.parameters), "the number of arguments"
        held = [_Held(value, guarded) for value in arguments]
        packed = [p.pack(each.value) for p, each in zip(kernel.parameters, held, strict=True)]
        self.launch_packed(name, grid, block, packed, shared_bytes=shared_bytes, order=order)
        for parameter, each in zip(kernel.parameters, held, strict=True):
            if not each.give_back():
                raise KernelFault(f"{name} writes outside of {parameter.name}")

    def launch_packed(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        packed: Sequence[Any],
        *,
        shared_bytes: int = 0,
        order: int = 0,
    ) -> None:
        """As `launch`, with a C object for each parameter."""
        values = (ctypes.c_void_p * len(packed))(*(ctypes.addressof(each) for each in packed))
        message = ctypes.create_string_buffer(512)
        failed = getattr(self._library, f"emulate_{name}")(
            _three(grid),
            _three(block),
            ctypes.c_size_t(shared_bytes),
            values,
            ctypes.c_uint(order),
            message,
            ctypes.c_size_t(len(message)),
        )
        if failed:
            raise KernelFault(f"{name}: {message.value.decode()}")


class _Held:
    """An argument while a kernel runs; arrays may lie between guard bytes meanwhile."""

    def __init__(self, value: Any, guarded: bool) -> None:
        self.array = value if isinstance(value, np.ndarray) else None
        self.value = value
        self.copy: Any = None
        if self.array is None:
            return
        assert self.array.flags.c_contiguous, "an argument is not C-contiguous"
        self.value = self.array.ctypes.data
        if guarded:
            nbytes = self.array.nbytes
            self.copy = np.full(nbytes + 2 * _GUARD_BYTES, _GUARD, np.uint8)
            self.inside = self.copy[_GUARD_BYTES : _GUARD_BYTES + nbytes]
            self.inside[:] = self.array.reshape(-1).view(np.uint8)
            self.value = self.inside.ctypes.data

    def give_back(self) -> bool:
        """Copy what was written out of the guards; whether they are whole."""
        if self.copy is None:
            return True
        assert self.array is not None
        if self.array.flags.writeable:
            self.array.reshape(-1).view(np.uint8)[:] = self.inside
        ends = (self.copy[:_GUARD_BYTES], self.copy[_GUARD_BYTES + len(self.inside) :])
        return all(bool((end == _GUARD).all()) for end in ends)


@functools.cache
def emulate(source: str) -> Program:
    """A shipped file, such as "letterbox.cu"; the test is skipped where there is no compiler."""
    kernels = [kernel for kernel in KERNELS if kernel.source == source]
    return compile_program((FOLDER / source).read_text(encoding="utf-8"), kernels)


def compile_program(text: str, kernels: Sequence[Kernel]) -> Program:
    """CUDA C++ and the entry points in it as a program for the CPU."""
    if shutil.which(_COMPILER) is None:
        pytest.skip(f"no C++ compiler ({_COMPILER}) to run CUDA sources on the CPU")
    entries = "".join(f"KESTREL_ENTRY({kernel.name})\n" for kernel in kernels)
    whole = f'#include "kernel_emulation.h"\n#line 1 "kernel.cu"\n{text}\n{entries}'
    headers = [(_HERE / "kernel_emulation.h").read_bytes(), (FOLDER / HEADER).read_bytes()]
    key = hashlib.sha256(b"\0".join([whole.encode(), *headers, *map(str.encode, _FLAGS)]))
    folder = Path(tempfile.gettempdir()) / f"kestrel-emulation-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.getuid(), f"{folder} belongs to somebody else"
    library = folder / f"{key.hexdigest()[:24]}.so"
    if not library.exists():
        _compile(whole, library)
    return Program(ctypes.CDLL(str(library)), kernels)


def _compile(text: str, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        source, built = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        source.write_text(text, encoding="utf-8")
        command = [_COMPILER, *_FLAGS, f"-I{_HERE}", f"-I{FOLDER}", str(source), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{_COMPILER}: {done.stderr[:4000]}"
        built.replace(library)  # at once: another test process may be building the same


def _three(sides: Sequence[int]) -> Any:
    return (ctypes.c_uint * 3)(*sides, *([1] * (3 - len(sides))))
