"""What a device has: no PyTorch, no onnx, and no time to import what is not needed."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import write_tiny_bundle

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 1.5

BLOCKED = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # any import of it fails from here on
sys.path.insert(0, {root!r})
"""
RUN = """
import numpy as np, runtime
with runtime.load({path!r}, {backend!r}) as predictor:
    assert predictor.backend == {backend!r} or {backend!r} == "auto"
    frame = np.zeros((96, 128, 3), np.uint8)
    frame[20:60, 20:60, 0] = 255
    assert [each.name for each in predictor(frame)] == ["blue ball"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny"))


def run_python(code, blocked=()):
    text = BLOCKED.format(blocked=blocked, root=str(ROOT)) + code
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("backend", "other"), [("onnxruntime", "openvino"), ("openvino", "onnxruntime")]
)
@pytest.mark.parametrize("is_file", [False, True], ids=["folder", "single file"])
def test_bundle_runs_with_numpy_opencv_and_one_backend_alone(folder, backend, other, is_file):
    path = str(folder / "model.fp32.onnx" if is_file else folder)
    blocked = ("torch", "onnx", "torchvision", other, "tensorrt", "tensorrt_rtx", "av")
    run_python(RUN.format(path=path, backend=backend), blocked)


def test_import_of_the_runtime_loads_nothing_heavy():
    code = """
import runtime, runtime.predictor, runtime.tasks.detection, runtime.draw, runtime.run_images
heavy = "cv2 onnxruntime openvino tensorrt tensorrt_rtx cuda av torch onnx".split()
print([name for name in heavy if name in sys.modules])
"""
    assert run_python(code).strip() == "[]"


def test_unknown_name_of_the_runtime_is_an_attribute_error():
    import runtime

    with pytest.raises(AttributeError, match="Predicter"):
        _ = runtime.Predicter


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "auto"])
def test_first_result_comes_soon_after_the_process_starts(folder, backend):
    code = RUN.format(path=str(folder), backend=backend)
    seconds = float(run_python(code + "\nimport time; print(time.process_time())"))
    assert seconds < START_SECONDS  # of CPU time, so that a busy machine does not fail it
