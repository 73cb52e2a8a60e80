r"""Export a checkpoint to a bundle and build TensorRT engines.

Engines are built by the runtime's own code, with TensorRT where it and a GPU are there, else with
TensorRT-RTX. Without either the bundle is written all the same, and the exit status is 3.

Examples:
  python export/to_trt.py --model retinanet
      The shipped detector to runs/retinanet, with engines in runs/retinanet/engines.
  python export/to_trt.py --model yolact --variant resnet50 \
      --checkpoint yolact_resnet50_54_800000.pth
      Published weights, as downloaded.
  python export/to_trt.py --model retinanet --target-device sm_86,sm_89 --out runs/desktop
      TensorRT-RTX engines for two kinds of GPUs, built without either.
  python export/to_trt.py --model retinanet --workspace-mb 1024 --optimisation-level 5 \
      --timing-cache timing.cache
      A slow build with bounded memory, that a next one repeats quickly.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from pathlib import Path

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from export.to_onnx import add_arguments, export
from runtime.contract.errors import (
    EXIT_DONE,
    EXIT_NO_ENGINE,
    EngineError,
    KestrelError,
    one_line,
    run_script,
)
from runtime.contract.manual import ScriptParser
from runtime.engines import BuildOptions, NoFlavourError, build_all, check_build


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """How TensorRT builds."""
    group = parser.add_argument_group("engines")
    group.add_argument("--workspace-mb", type=int, help="most scratch memory of a layer, MiB")
    group.add_argument(
        "--optimisation-level",
        type=int,
        choices=range(6),
        help="0 builds fast, 5 searches longest; default: TensorRT's choice",
    )
    group.add_argument(
        "--version-compatible", action="store_true", help="for later TensorRT versions, too"
    )
    group.add_argument(
        "--hardware-compatible", action="store_true", help="for other GPUs of Ampere and newer, too"
    )
    group.add_argument(
        "--target-device", help="TensorRT-RTX: sm_86,sm_89 or current; default: all it knows"
    )
    group.add_argument(
        "--timing-cache", type=Path, help="TensorRT: file of kernel timings, read and renewed"
    )


def build_options(args: argparse.Namespace) -> BuildOptions:
    """The build that the arguments ask for."""
    if args.workspace_mb is not None and args.workspace_mb < 1:
        raise KestrelError(f"--workspace-mb {args.workspace_mb} is not positive. Give MiB above 0.")
    if args.timing_cache is not None and args.timing_cache.is_dir():
        raise KestrelError(f"--timing-cache {args.timing_cache} is a folder. Give a file's name.")
    return BuildOptions(
        workspace_bytes=args.workspace_mb << 20 if args.workspace_mb is not None else None,
        optimisation_level=args.optimisation_level,
        is_version_compatible=args.version_compatible,
        is_hardware_compatible=args.hardware_compatible,
        targets=parse_targets(args.target_device or ""),
        timing_cache=args.timing_cache,
    )


def parse_targets(text: str) -> tuple[str, ...]:
    """Read "sm_86,sm_89" as ("SM86", "SM89"), TensorRT-RTX's names."""
    names = [name.strip().upper() for name in text.split(",")] if text else []
    for name in names:
        if not re.fullmatch(r"SM_?[0-9]{2,3}|CURRENT", name):
            raise KestrelError(
                f"--target-device {text!r} is no list of GPUs; expected such as sm_86,sm_89, or "
                "current."
            )
    return tuple(name.replace("_", "") for name in names)


def main() -> int:
    """Export, verify, build; exit status 1 for a failed verdict, 3 where no engine was built."""
    parser = ScriptParser(
        __doc__,
        statuses={
            1: 'the bundle is there, but its verdict is "fail"; no engine was built',
            3: "the bundle is complete, but no engine can be built here",
        },
    )
    add_arguments(parser)
    add_build_arguments(parser)
    args = parser.parse_args()
    options = build_options(args)
    flavour = "tensorrt_rtx" if options.targets else None
    with contextlib.suppress(NoFlavourError):  # told below: a bundle is of use without engines
        check_build(options, flavour=flavour)  # wrong options are told before the slow export
    out, status = export(args)
    if status != EXIT_DONE:
        return status
    try:
        engines = build_all(out, flavour=flavour, options=options)
    except EngineError as error:
        print(f"the bundle {out} is complete, but no engine: {one_line(error)}", file=sys.stderr)
        return EXIT_NO_ENGINE
    for engine in engines:
        print(f"engine {engine.path}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_script(main))
