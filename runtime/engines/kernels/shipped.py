"""The kernels that we ship, as data: how each is called, and its PTX for each kind of GPU.

The PTX is text that the driver compiles for the GPU at hand; what was made for one compute
capability runs on all later ones. `kernels.json` beside it holds the hashes.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.contract.errors import EngineError

FOLDER = Path(__file__).resolve().parent
RECORD = FOLDER / "kernels.json"
HEADER = "device.cuh"

TARGETS = (75, 80, 86, 87, 89, 90, 100, 110, 120)  # compute capabilities x 10

Version = tuple[int, int]

# CUDA's version -> the newest PTX ISA that its driver reads ("PTX ISA", release history).
_ISA_OF_CUDA: dict[Version, Version] = {
    (12, 0): (8, 0),
    (12, 1): (8, 1),
    (12, 2): (8, 2),
    (12, 3): (8, 3),
    (12, 4): (8, 4),
    (12, 5): (8, 5),
    (12, 6): (8, 5),
    (12, 7): (8, 6),
    (12, 8): (8, 7),
    (12, 9): (8, 8),
    (13, 0): (9, 0),
    (13, 1): (9, 1),
    (13, 2): (9, 2),
}

_C_TYPES: dict[str, Any] = {
    "pointer": ctypes.c_uint64,
    "i32": ctypes.c_int32,
    "u32": ctypes.c_uint32,
    "i64": ctypes.c_int64,
    "f32": ctypes.c_float,
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a kernel.

    Attributes:
        name: in the source.
        kind: "pointer", "i32", "u32", "i64", "f32", or "bytes" for a structure by value.
        nbytes: of "bytes"; of the others it follows.
    """

    name: str
    kind: str
    nbytes: int = 0

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return self.nbytes if self.kind == "bytes" else ctypes.sizeof(_C_TYPES[self.kind])

    def pack(self, value: Any) -> Any:
        """A value as the C object that a launch points to.

        Args:
            value: an address, a number, or for "bytes" exactly that many bytes.
        """
        if self.kind == "bytes":
            assert len(value) == self.nbytes, f"{self.name}: {len(value)} bytes, not {self.nbytes}"
            return (ctypes.c_ubyte * self.nbytes).from_buffer_copy(value)
        return _C_TYPES[self.kind](value)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a kernel may take of a multiprocessor, on every target; held by test.

    Attributes:
        registers: of a thread. static_shared: bytes of a block. spills: bytes of a thread.
    """

    registers: int
    static_shared: int = 0
    spills: int = 0


@dataclass(frozen=True, slots=True)
class Kernel:
    """An entry point.

    Attributes:
        name: of the entry.
        source: the .cu file, which may hold several.
        parameters: in order.
        max_threads: of a block, as in the source's __launch_bounds__.
        bounds: what it takes.
    """

    name: str
    source: str
    parameters: tuple[Parameter, ...]
    max_threads: int
    bounds: Bounds

    @property
    def stem(self) -> str:
        """Of the source and its PTX."""
        return self.source.removesuffix(".cu")


# Rows of a batch that one launch letterboxes: their description is passed by value.
LETTERBOX_ROWS = 16
LETTERBOX_ROW_BYTES = 48

LETTERBOX = Kernel(
    name="kestrel_letterbox",
    source="letterbox.cu",
    parameters=(
        Parameter("rows", "bytes", LETTERBOX_ROWS * LETTERBOX_ROW_BYTES),
        Parameter("images", "pointer"),
        Parameter("height", "i32"),
        Parameter("width", "i32"),
    ),
    max_threads=256,
    bounds=Bounds(registers=64),
)

SELECT_STRETCH = 16384  # logits of an image that one block reads

SELECT = Kernel(
    name="kestrel_select",
    source="select.cu",
    parameters=(
        Parameter("logits", "pointer"),
        Parameter("score_threshold", "pointer"),
        Parameter("num_anchors", "i32"),
        Parameter("num_classes", "i32"),
        Parameter("num_candidates", "i32"),
        Parameter("is_sigmoid", "i32"),
        Parameter("scores", "pointer"),
        Parameter("anchors", "pointer"),
        Parameter("classes", "pointer"),
        Parameter("scratch", "pointer"),
    ),
    max_threads=512,
    bounds=Bounds(registers=64, static_shared=36 * 1024),
)

NMS = Kernel(
    name="kestrel_nms",
    source="nms.cu",
    parameters=(
        Parameter("boxes", "pointer"),
        Parameter("scores", "pointer"),
        Parameter("classes", "pointer"),
        Parameter("iou_threshold", "pointer"),
        Parameter("num_rows", "i32"),
        Parameter("max_detections", "i32"),
        Parameter("method", "i32"),
        Parameter("per_class_limit", "i32"),
        Parameter("num_detections", "pointer"),
        Parameter("det_boxes", "pointer"),
        Parameter("det_scores", "pointer"),
        Parameter("det_classes", "pointer"),
        Parameter("det_indices", "pointer"),
    ),
    max_threads=512,
    bounds=Bounds(registers=64, static_shared=42 * 1024),
)

KERNELS: tuple[Kernel, ...] = (LETTERBOX, SELECT, NMS)


def find_kernel(name: str) -> Kernel:
    """A kernel by its entry's name."""
    return next(kernel for kernel in KERNELS if kernel.name == name)


def sources() -> tuple[str, ...]:
    """The .cu files, each once."""
    return tuple(dict.fromkeys(kernel.source for kernel in KERNELS))


def ptx_name(kernel: Kernel, target: int) -> str:
    """Path of its PTX, from this folder."""
    return f"ptx/{kernel.stem}.sm_{target}.ptx"


@functools.cache
def read_record() -> dict[str, Any]:
    """What `export/compile_kernels.py` wrote: hashes, compilers and ISA of all files.

    Raises:
        EngineError: it is missing or damaged.
    """
    try:
        record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{RECORD} cannot be read ({error}). Install Kestrel again.") from None
    return record


def readable_isa(cuda_version: Version) -> Version:
    """The newest PTX ISA that a driver reads; of one that is newer than our table, its last."""
    known = [isa for version, isa in _ISA_OF_CUDA.items() if version <= cuda_version]
    return max(known, default=(7, 8))


def suitable_targets(
    kernel: Kernel, compute_capability: Version, max_isa: Version | None = None
) -> list[int]:
    """The targets whose PTX runs on a GPU, the nearest first.

    Args:
        kernel: of KERNELS.
        compute_capability: such as (8, 7).
        max_isa: that the driver reads; None for any.
    """
    level = compute_capability[0] * 10 + compute_capability[1]
    files = read_record()["ptx"]
    fitting = [
        target
        for target in TARGETS
        if target <= level
        and (max_isa is None or _isa_of(files[ptx_name(kernel, target)]) <= max_isa)
    ]
    return fitting[::-1]


def read_ptx(
    kernel: Kernel, compute_capability: Version, max_isa: Version | None = None
) -> tuple[bytes, int]:
    """The PTX for a GPU, and the target that it was made for; checked against its hash.

    Raises:
        EngineError: none fits, or the file is missing or not the one that was recorded.
    """
    targets = suitable_targets(kernel, compute_capability, max_isa)
    if not targets:
        limit = "" if max_isa is None else f" and a driver that reads PTX {_dotted(max_isa)}"
        raise EngineError(
            f"kernel {kernel.name} has no PTX for sm_{compute_capability[0]}"
            f"{compute_capability[1]}{limit}; it has sm_{', sm_'.join(map(str, TARGETS))}. "
            "Update the driver, or use a GPU of compute capability 7.5 or newer."
        )
    return read_target(kernel, targets[0]), targets[0]


def read_target(kernel: Kernel, target: int) -> bytes:
    """The PTX of one target; EngineError where it is missing or not the one recorded."""
    name = ptx_name(kernel, target)
    try:
        text = (FOLDER / name).read_bytes()
    except OSError as error:
        raise EngineError(
            f"{FOLDER / name} cannot be read ({error}). Install Kestrel again."
        ) from None
    found = hashlib.sha256(text).hexdigest()
    wanted = read_record()["ptx"][name]["sha256"]
    if found != wanted:
        raise EngineError(
            f"{FOLDER / name} has sha256 {found[:12]}...; the record says {wanted[:12]}.... "
            "Install Kestrel again, or run export/compile_kernels.py after a change."
        )
    return text


def hash_source(source: str) -> str:
    """Hash of a .cu file together with the header that it includes."""
    text = b"\0".join((FOLDER / name).read_bytes() for name in (HEADER, source))
    return hashlib.sha256(text).hexdigest()


def code_sha256(*kernels: Kernel) -> str:
    """One hash over all PTX of some kernels: what an engine that holds them depends on."""
    files = read_record()["ptx"]
    names = sorted(ptx_name(kernel, target) for kernel in kernels for target in TARGETS)
    text = "".join(f"{name} {files[name]['sha256']}\n" for name in dict.fromkeys(names))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def parse_isa(ptx: str) -> Version:
    """The ISA that a PTX text says it is written in."""
    found = re.search(r"^\.version (\d+)\.(\d+)$", ptx, re.MULTILINE)
    assert found is not None, "PTX without .version"
    return int(found[1]), int(found[2])


def _isa_of(entry: dict[str, Any]) -> Version:
    major, minor = entry["isa"].split(".")
    return int(major), int(minor)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
