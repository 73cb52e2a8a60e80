"""Compile our CUDA kernels to PTX for all GPUs, after a change of their sources.

Writes runtime/engines/kernels/ptx/*.ptx and kernels.json. Needs no GPU and no CUDA toolkit, but
NVRTC in two versions; where one is missing, it says how to fetch it.

Examples:
  python export/compile_kernels.py
      All sources, for all GPUs.
  python export/compile_kernels.py --check
      Writes nothing, and says whether what is shipped is of these sources.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from export.kernels.nvrtc import COMPILERS, OPTIONS, Compiler, Nvrtc, find_nvrtc
from runtime.contract.errors import (
    EXIT_DONE,
    EXIT_VERDICT_FAIL,
    KestrelError,
    run_script,
)
from runtime.contract.files import write_json, write_text
from runtime.contract.manual import ScriptParser
from runtime.engines.kernels.shipped import (
    FOLDER,
    HEADER,
    RECORD,
    hash_source,
    parse_isa,
    sources,
)

DEFAULT_COMPILERS = Path("out/compilers")


def compile_source(library: Nvrtc, source: str, target: int) -> str:
    """One of the shipped sources as PTX; KestrelError with the compiler's words."""
    text = (FOLDER / source).read_text(encoding="utf-8")
    header = (FOLDER / HEADER).read_text(encoding="utf-8")
    return library.compile(text, source, {HEADER: header}, target)


def describe(ptx: str, source: str, target: int) -> dict[str, Any]:
    """What the record says of a PTX text."""
    compiler = re.search(r"Cuda compilation tools, release [\d.]+, V([\d.]+)", ptx)
    return {
        "sha256": hashlib.sha256(ptx.encode()).hexdigest(),
        "source_sha256": hash_source(source),
        "target": target,
        "isa": ".".join(map(str, parse_isa(ptx))),
        "compiler": f"NVRTC {compiler[1] if compiler else 'unknown'}",
        "options": list(OPTIONS),
    }


def require(compiler: Compiler, found: dict[tuple[int, int], Nvrtc]) -> Nvrtc:
    """The library of a compiler; KestrelError with what to do where it is missing."""
    if compiler.version not in found:
        have = ", ".join(".".join(map(str, version)) for version in sorted(found)) or "none"
        wanted = ".".join(map(str, compiler.version))
        raise KestrelError(
            f"NVRTC {wanted} is not on this machine, which has {have}. Fetch it: "
            f"pip install --no-deps --target {DEFAULT_COMPILERS}/{wanted} {compiler.wheel}"
        )
    return found[compiler.version]


def make_all(chosen: list[str], folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Every PTX text of some sources: path -> (text, what the record says of it)."""
    found = find_nvrtc([folder])
    made: dict[str, tuple[str, dict[str, Any]]] = {}
    for compiler in COMPILERS:
        library = require(compiler, found)
        for source in chosen:
            for target in compiler.targets:
                ptx = compile_source(library, source, target)
                if parse_isa(ptx) > compiler.isa:
                    raise KestrelError(
                        f"{library.path} writes PTX {parse_isa(ptx)}; sm_{target} may have "
                        f"{compiler.isa} at most, for its driver. Use {compiler.wheel}."
                    )
                name = f"ptx/{source.removesuffix('.cu')}.sm_{target}.ptx"
                made[name] = (ptx, describe(ptx, source, target))
    return made


def write(made: dict[str, tuple[str, dict[str, Any]]]) -> None:
    """Write the texts, and the record of them beside what it has of other sources."""
    known = json.loads(RECORD.read_text(encoding="utf-8"))["ptx"] if RECORD.exists() else {}
    stems = {source.removesuffix(".cu") for source in sources()}
    kept = {name: entry for name, entry in known.items() if _stem(name) in stems}
    (FOLDER / "ptx").mkdir(exist_ok=True)
    for name, (ptx, entry) in made.items():
        write_text(FOLDER / name, ptx)
        kept[name] = entry
    write_json(RECORD, {"ptx": dict(sorted(kept.items()))})


def differing(made: dict[str, tuple[str, dict[str, Any]]]) -> list[str]:
    """The files that a new compilation would change."""
    known = json.loads(RECORD.read_text(encoding="utf-8"))["ptx"]
    return [
        name
        for name, (ptx, entry) in made.items()
        if known.get(name) != entry or (FOLDER / name).read_bytes() != ptx.encode()
    ]


def _stem(name: str) -> str:
    return Path(name).name.split(".")[0]


def main(argv: list[str] | None = None) -> int:
    parser = ScriptParser(__doc__, statuses={1: "with --check: a file would change"})
    parser.add_argument("--only", choices=sources(), help="one source; default: all")
    parser.add_argument(
        "--compilers",
        type=Path,
        default=DEFAULT_COMPILERS,
        help="folder with NVRTC's wheels, searched before this Python's packages",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a file would change"
    )
    args = parser.parse_args(argv)
    made = make_all([args.only] if args.only else list(sources()), args.compilers)
    if args.check:
        changed = differing(made)
        print("\n".join(f"differs: {name}" for name in changed) or f"{len(made)} files as recorded")
        return EXIT_VERDICT_FAIL if changed else EXIT_DONE
    write(made)
    print(f"{len(made)} PTX files in {FOLDER / 'ptx'}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_script(main))
