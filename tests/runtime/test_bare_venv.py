"""The runtime in an environment that holds numpy, OpenCV and one backend, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import write_tiny_bundle

ROOT = Path(__file__).resolve().parents[2]
MAX_START_S = 1.5  # process start to first result, of the CPU time that it takes

PROBE = """
import sys, time, json
import numpy as np
import runtime
predictor = runtime.load(sys.argv[1], backend=sys.argv[2])
found = predictor(np.zeros((432, 768, 3), np.uint8))
print(json.dumps({"cpu_s": time.process_time(), "backend": predictor.backend,
                  "torch": "torch" in sys.modules, "rows": len(found)}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_runtime_runs_a_bundle_where_nothing_else_is_installed(backend: str, tmp_path: Path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = venv / "bin" / "python"
    packages = ["numpy", "opencv-python-headless", backend]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([python, "-m", "pip", "install", "-q", *constraints, *packages], check=True)
    shutil.copytree(ROOT / "runtime", tmp_path / "site" / "runtime")
    bundle = write_tiny_bundle(tmp_path / "bundle")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [python, "-c", PROBE, str(bundle), backend]
    subprocess.run(command, env=environment, check=True, capture_output=True)  # compiles bytecode
    done = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True, cwd=tmp_path
    )
    report = json.loads(done.stdout)
    assert report["backend"] == backend
    assert not report["torch"]
    assert report["cpu_s"] < MAX_START_S
