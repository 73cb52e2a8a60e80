"""Calling a script's main in this process, as `run_script` would from the shell."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from dataclasses import dataclass
from unittest import mock


@dataclass(frozen=True)
class Done:
    """What came of a call; the names are those of subprocess.CompletedProcess."""

    returncode: int
    stdout: str
    stderr: str


def call(script: str, *arguments: object) -> Done:
    """Run `script` ("training.train") with arguments; a traceback is the caller's error."""
    module = importlib.import_module(script)
    forget_process_state()
    argv = [script.replace(".", "/") + ".py", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            status = module.run_script(module.main)
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
    return Done(status, out.getvalue(), err.getvalue())


def forget_process_state() -> None:
    """What accelerate keeps for a process's lifetime (device, precision): a script starts anew."""
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)
