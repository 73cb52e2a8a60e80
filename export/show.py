"""Say what a bundle, an ONNX file or an engine is, and what is wrong with it; or compare two.

Examples:
  python export/show.py runs/retinanet
      A bundle: its network, precisions, proof and engines.
  python export/show.py runs/retinanet/model.fp32.onnx --layers
      One file, with what each of its layers computes in.
  python export/show.py runs/retinanet runs/mine
      What differs between two.
  python export/show.py runs/retinanet --compiled --json
      With what the CPU backends here make of it, for machines.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from runtime.contract.errors import EXIT_DONE, EXIT_VERDICT_FAIL, run_script
from runtime.contract.manual import ScriptParser


def main() -> int:
    """Show one path, or two and their differences."""
    parser = ScriptParser(__doc__, statuses={1: "problems were found"})
    parser.add_argument("path", type=Path, help="a bundle's folder, an .onnx or an .engine file")
    parser.add_argument("other", type=Path, nargs="?", help="say what differs from this one")
    parser.add_argument("--layers", action="store_true", help="list every layer's precision")
    parser.add_argument(
        "--compiled", action="store_true", help="also what the CPU backends here compute"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    from export.showing.describe import describe
    from export.showing.differences import compare
    from export.showing.text import render, render_differences

    paths = [args.path] if args.other is None else [args.path, args.other]
    documents = [describe(path, is_compiled=args.compiled) for path in paths]
    differences = compare(*documents) if len(documents) == 2 else None
    if args.json:
        whole = (
            documents[0]
            if differences is None
            else {"first": documents[0], "second": documents[1], "differences": differences}
        )
        print(json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        blocks = [render(document, with_layers=args.layers) for document in documents]
        if differences is not None:
            blocks.append(render_differences(differences))
        print("\n\n".join("\n".join(block) for block in blocks))
    has_problems = any(document["problems"] for document in documents)
    return EXIT_VERDICT_FAIL if has_problems else EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_script(main))
