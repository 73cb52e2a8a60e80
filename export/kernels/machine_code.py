"""nvJitLink, which holds NVIDIA's assembler: what a PTX text takes of a GPU, without one."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from runtime.contract.errors import KestrelError

_INPUT_PTX = 2  # NVJITLINK_INPUT_PTX of nvJitLink.h


@dataclass(frozen=True, slots=True)
class Usage:
    """What a kernel takes on one target, as ptxas says.

    Attributes:
        registers: of a thread. static_shared: bytes of a block.
        stack, spill_stores, spill_loads: bytes of a thread.
    """

    registers: int
    static_shared: int
    stack: int
    spill_stores: int
    spill_loads: int


def find_nvjitlink() -> Path | None:
    """The newest library in this Python's packages and in /usr/local; None where there is none."""
    paths: list[Path] = []
    for entry in sys.path:
        paths += Path(entry).glob("nvidia/*/lib/libnvJitLink.so.*")
    paths += Path("/usr/local").glob("cuda*/lib64/libnvJitLink.so.*")
    numbered = [path for path in paths if path.suffix[1:].isdigit()]
    return max(numbered, key=lambda path: int(path.suffix[1:]), default=None)


def assemble(library_path: Path, ptx: str, target: int) -> dict[str, Usage]:
    """PTX to machine code: entry's name -> what it takes.

    Args:
        library_path: of nvJitLink, 12.4 or newer.
        ptx: a whole text.
        target: compute capability x 10.

    Raises:
        KestrelError: the assembler's own words.
    """
    library = ctypes.CDLL(str(library_path))
    options = (f"-arch=sm_{target}".encode(), b"-verbose", b"-Xptxas=-v")
    handle = ctypes.c_void_p()
    values = (ctypes.c_char_p * len(options))(*options)
    status = library.nvJitLinkCreate(ctypes.byref(handle), len(options), values)
    if status != 0:
        raise KestrelError(f"{library_path.name} does not start for sm_{target} (status {status}).")
    try:
        text = ptx.encode() + b"\0"
        status = library.nvJitLinkAddData(handle, _INPUT_PTX, text, len(text), b"kernel.ptx")
        status = status or library.nvJitLinkComplete(handle)
        if status != 0:
            said = _read_log(library, handle, "Error")
            raise KestrelError(f"the PTX does not assemble for sm_{target}: {said}")
        return _parse(_read_log(library, handle, "Info"))
    finally:
        library.nvJitLinkDestroy(ctypes.byref(handle))


def _read_log(library: ctypes.CDLL, handle: ctypes.c_void_p, kind: str) -> str:
    size = ctypes.c_size_t()
    getattr(library, f"nvJitLinkGet{kind}LogSize")(handle, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value + 1)
    getattr(library, f"nvJitLinkGet{kind}Log")(handle, buffer)
    return buffer.value.decode(errors="replace")


def _parse(log: str) -> dict[str, Usage]:
    usages: dict[str, Usage] = {}
    for part in log.split("ptxas info    : Compiling entry function ")[1:]:
        name = part.split("'")[1]
        usages[name] = Usage(
            registers=_number(r"Used (\d+) registers", part),
            static_shared=_number(r"ptxas info    : Used .*?(\d+) bytes smem", part),
            stack=_number(r"(\d+) bytes stack frame", part),
            spill_stores=_number(r"(\d+) bytes spill stores", part),
            spill_loads=_number(r"(\d+) bytes spill loads", part),
        )
    if not usages:
        raise KestrelError(f"the assembler tells of no kernel; it said: {log[:400]!r}")
    return usages


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0
