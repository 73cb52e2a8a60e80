"""Look at this machine and say what keeps Kestrel from running, or from running fast, and the cure.

Each finding is ok; a note: it works, and there is something to know; a warning: slower, less exact,
or some sources and outputs lacking; or an error: something does not work. Nothing is written or
installed, and no root is needed. Libraries that may crash or hang are asked in child processes.

Examples:
  python runtime/doctor.py
      Driver, backends, OpenCV, video, cameras, processor, power, memory.
  python runtime/doctor.py --bundle runs/retinanet
      A bundle and its engines as well.
  python runtime/doctor.py --strict --json
      One object for programs, and a status that warnings raise, too.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036  # said before the rest, which it cannot read
    found = ".".join(map(str, sys.version_info[:3]))
    print(f"error: this is Python {found}; Kestrel needs 3.10 or newer.", file=sys.stderr)
    sys.exit(2)

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from runtime.contract.errors import EXIT_DONE, EXIT_VERDICT_FAIL, BundleError, run_script
from runtime.contract.manual import ScriptParser
from runtime.doctoring.examination import examine
from runtime.doctoring.findings import LEVELS, to_json, to_table, worst_level
from runtime.doctoring.machine import Machine
from runtime.doctoring.survey import Survey


def main(argv: list[str] | None = None) -> int:
    """Examine, print, and tell by the exit status."""
    parser = ScriptParser(__doc__, statuses={0: "no error was found", 1: "at least one was"})
    parser.add_argument(
        "--bundle",
        type=Path,
        action="append",
        default=[],
        dest="bundles",
        metavar="BUNDLE",
        help="a bundle's folder or .onnx file to check with its engines; may be given again",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--strict", action="store_true", help="exit status 1 for warnings, too")
    args = parser.parse_args(argv)
    for path in args.bundles:
        if not path.exists():
            raise BundleError(f"{path} does not exist; expected a bundle's folder. Check the path.")
    if isinstance(sys.stdout, io.TextIOWrapper):  # paths and names may hold any character
        sys.stdout.reconfigure(errors="backslashreplace")
    with _quiet_log():
        findings = examine(Survey(Machine(), args.bundles))
    if args.json:
        _print(json.dumps(to_json(findings), indent=2))
    else:
        _print(to_table(findings, shutil.get_terminal_size((100, 24)).columns))
    worst = "warning" if args.strict else "error"
    has_failed = LEVELS.index(worst_level(findings)) >= LEVELS.index(worst)
    return EXIT_VERDICT_FAIL if has_failed else EXIT_DONE


@contextlib.contextmanager
def _quiet_log() -> Iterator[None]:
    """Warnings are findings already."""
    log = logging.getLogger("kestrel")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _print(text: str) -> None:
    """A reader that has seen enough (`| head`) is no fault."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


if __name__ == "__main__":
    sys.exit(run_script(main))
