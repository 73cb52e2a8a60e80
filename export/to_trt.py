"""Export a checkpoint to a bundle and build TensorRT engines: `export/to_trt.py --model retinanet`.

Engines are built by the runtime's own code, for every TensorRT flavour that is installed. Without
one the bundle is written all the same, and the exit status is 3.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from export.to_onnx import add_arguments, export
from runtime.contract.errors import EXIT_DONE, EXIT_NO_ENGINE, EngineError, one_line, run_script


def main() -> int:
    """Export, verify, build; exit status 1 for a failed verdict, 3 where no engine was built."""
    parser = argparse.ArgumentParser(description="Export a checkpoint and build its engines.")
    add_arguments(parser)
    args = parser.parse_args()
    out, status = export(args)
    if status != EXIT_DONE:
        return status
    from runtime.engines import build_all

    try:
        engines = build_all(out)
    except EngineError as error:
        print(f"the bundle {out} is complete, but no engine: {one_line(error)}", file=sys.stderr)
        return EXIT_NO_ENGINE
    for engine in engines:
        print(f"engine {engine.path}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_script(main))
