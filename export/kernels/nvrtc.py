"""NVRTC, NVIDIA's compiler as a library: CUDA C++ to PTX, on any machine.

The PTX must be readable by the oldest driver that is to run it, and a compiler writes its own ISA,
so each target has a compiler of its own time: NVRTC 12.6 writes ISA 8.5, the newest that JetPack 6
reads; 13.0 is the first that knows sm_110 and writes 9.0, which JetPack 7.1 reads.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.contract.errors import KestrelError

OPTIONS = ("--std=c++17", "--fmad=false")  # a fused multiply-add rounds otherwise than the CPU
_LOG_BYTES = 4000


@dataclass(frozen=True, slots=True)
class Compiler:
    """What compiles some targets.

    Attributes:
        version: of NVRTC. wheel: that has it. isa: of the PTX that it writes.
        targets: compute capabilities x 10.
    """

    version: tuple[int, int]
    wheel: str
    isa: tuple[int, int]
    targets: tuple[int, ...]


COMPILERS = (
    Compiler((12, 6), "nvidia-cuda-nvrtc-cu12==12.6.85", (8, 5), (75, 80, 86, 87, 89, 90)),
    Compiler((13, 0), "nvidia-cuda-nvrtc==13.0.88", (9, 0), (100, 110, 120)),
)


class Nvrtc:
    """One version of the library, loaded."""

    def __init__(self, path: Path) -> None:
        """Load it by its path.

        Raises:
            OSError: it cannot be loaded.
        """
        for builtins in sorted(path.parent.glob("libnvrtc-builtins.so*")):
            # The library looks for it by name, and a wheel's folder is on no search path.
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(path))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.path = path
        self.version = (major.value, minor.value)

    def compile(
        self, text: str, name: str, headers: Mapping[str, str], target: int, *options: str
    ) -> str:
        """CUDA C++ to PTX.

        Args:
            text: the source. name: its file's, for messages.
            headers: name in an #include -> text.
            target: compute capability x 10.
            *options: beside OPTIONS.

        Raises:
            KestrelError: the compiler's own words.
        """
        texts = _c_strings(headers.values())
        program = ctypes.c_void_p()
        self._check(
            self._library.nvrtcCreateProgram(
                ctypes.byref(program),
                text.encode(),
                name.encode(),
                len(headers),
                texts,
                _c_strings(headers),
            )
        )
        try:
            every = (f"--gpu-architecture=compute_{target}", *OPTIONS, *options)
            status = self._library.nvrtcCompileProgram(program, len(every), _c_strings(every))
            if status != 0:
                log = self._read(program, "ProgramLog")[:_LOG_BYTES]
                raise KestrelError(f"{name} does not compile for sm_{target}: {log}")
            return _count_calls_anew(self._read(program, "PTX"))
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> str:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, buffer))
        return buffer.value.decode()

    def _check(self, status: int) -> None:
        if status != 0:
            said = self._library.nvrtcGetErrorString(status).decode()
            raise KestrelError(f"NVRTC fails with {said}. Install its wheel again.")


def find_nvrtc(folders: Sequence[Path] = ()) -> dict[tuple[int, int], Nvrtc]:
    """All versions on this machine: (12, 6) -> library.

    Args:
        folders: searched first, with all below them; then this Python's packages and the CUDA
            toolkits in /usr/local.
    """
    found: dict[tuple[int, int], Nvrtc] = {}
    for path in _candidates(folders):
        try:
            library = Nvrtc(path)
        except (OSError, KestrelError):
            continue
        found.setdefault(library.version, library)
    return found


def _candidates(folders: Sequence[Path]) -> list[Path]:
    paths: list[Path] = []
    for folder in folders:
        paths += sorted(folder.rglob("libnvrtc.so.*"))
    for entry in sys.path:
        paths += sorted(Path(entry).glob("nvidia/*/lib/libnvrtc.so.*"))
    paths += sorted(Path("/usr/local").glob("cuda*/lib64/libnvrtc.so.*"))
    return list(dict.fromkeys(path.resolve() for path in paths))


def _count_calls_anew(ptx: str) -> str:
    """The same text, the calls in its comments counted from 0.

    The library counts them through its life, so its text depends on what it compiled before.
    """
    numbers: dict[str, int] = {}

    def renumber(found: re.Match[str]) -> str:
        return f"// callseq {numbers.setdefault(found[1], len(numbers))}"

    return re.sub(r"// callseq (\d+)", renumber, ptx)


def _c_strings(texts: Iterable[str]) -> ctypes.Array[ctypes.c_char_p]:
    values = [text.encode() for text in texts]
    return (ctypes.c_char_p * len(values))(*values)
