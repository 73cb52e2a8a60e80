"""Another process that builds a bundle's engines with TensorRT-RTX."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHILD_TIMEOUT_S = 60

_CHILD = """
import os, sys
sys.path[:0] = [{root!r}, {here!r}]
{before}
from runtime.engines import build_all
for built in build_all({folder!r}, flavour="tensorrt_rtx"):
    print(built.is_new, built.path)
"""


def start_builder(folder: Path, before: str = "", **environment: str) -> subprocess.Popen:
    """Start it; `before` is code that runs first, `environment` is added to ours."""
    code = _CHILD.format(
        root=str(ROOT), here=str(Path(__file__).parent), folder=str(folder), before=before
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
