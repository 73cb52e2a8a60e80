"""Asking a library something in a child process: it may crash, hang, or write to standard output.

The child gets the machine's Python path, runs one function of `runtime/doctoring/probes.py`, and
writes its answer as one marked line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.doctoring.machine import Machine, Ran, run_limited

MARK = "@kestrel-doctor@"
_ROOT = str(Path(__file__).resolve().parents[2])
_GRACE_S = 5
_NO_FOLDER = str(Path(os.devnull) / "none")  # one that nobody can make
_QUIET = {  # nothing is written, and no core is taken from what runs beside
    "HOME": _NO_FOLDER,  # ONNX Runtime 1.31 keeps a device's id and a database there when imported
    "XDG_CACHE_HOME": _NO_FOLDER,
    "PYTHONDONTWRITEBYTECODE": "1",
    "CUDA_CACHE_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# The path is replaced whole: what the child's own start put there is not the machine's.
# The alarm ends a child whose parent was killed meanwhile.
_CHILD = """
import json, signal, sys
if hasattr(signal, "alarm"):
    signal.alarm(int(sys.argv[4]))
sys.path[:] = json.loads(sys.argv[1])
from runtime.doctoring.probes import answer
answer(sys.argv[2], json.loads(sys.argv[3]))
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe found.

    Attributes:
        data: as the probe gave it; empty where it failed.
        fault: empty, or why there is no answer: an exception's text, a crash, no answer in time.
        kind: the exception's type, "crash" or "silence"; empty where there is an answer.
    """

    data: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    kind: str = ""


def ask(machine: Machine, probe: str, *arguments: Any) -> Answer:
    """Run a probe on this machine.

    Args:
        machine: its Python path, environment variables and limit are used.
        probe: a function of `runtime.doctoring.probes`.
        *arguments: of the function, as JSON takes them.
    """
    path = [each for each in machine.python_path if each != _ROOT]
    command = [sys.executable, "-c", _CHILD, json.dumps([*path, _ROOT]), probe]
    command += [json.dumps(arguments), str(int(machine.limit_s) + _GRACE_S)]
    try:
        ran = run_limited(command, {**machine.environ, **_QUIET}, machine.limit_s)
    except OSError as error:
        return Answer(fault=f"no child process can be started ({error.strerror})", kind="crash")
    return _read(ran, machine.limit_s)


def _read(ran: Ran, limit_s: float) -> Answer:
    marked = [line for line in ran.stdout.splitlines() if line.startswith(MARK)]
    if ran.status is None and not marked:
        return Answer(fault=f"no answer within {limit_s:g} s", kind="silence")
    if not marked:
        return Answer(fault=_describe_end(ran), kind="crash")
    document = json.loads(marked[-1].removeprefix(MARK))
    return Answer(document["data"], document["fault"], document["kind"])


def _describe_end(ran: Ran) -> str:
    status = ran.status or 0
    if status < 0:
        try:
            how = f"ended by {signal.Signals(-status).name}"
        except ValueError:
            how = f"ended by signal {-status}"
    else:
        how = f"ended with status {status}"
    return f"{how} ({ran.last_words})" if ran.last_words else how
