"""Every attribute of TensorRT and CUDA that our code touches exists in the modules installed.

The code keeps to a rule that makes this possible: a module is called `trt` or `cudart`, and a
variable that holds one of their objects has the name of OWNERS.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    [*(ROOT / "runtime/engines").glob("*.py"), *(ROOT / "runtime/sessions").glob("trt*.py")]
)
OWNERS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "runtime_config": "IRuntimeConfig",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
# What only some TensorRT has -> the name that the code asks for by hasattr before it touches it.
GUARDED = {
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": "STRONGLY_TYPED",  # always on where it is gone
    "BuilderFlag.REQUIRE_USER_ALLOCATION": "REQUIRE_USER_ALLOCATION",  # RTX
    "ComputeCapability": "ComputeCapability",  # RTX
    "ComputeCapability.__members__": "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities": "ComputeCapability",
    "IBuilderConfig.set_compute_capability": "ComputeCapability",
    "CudaGraphStrategy": "CudaGraphStrategy",  # RTX
    "CudaGraphStrategy.DISABLED": "CudaGraphStrategy",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE": "CudaGraphStrategy",
    "IRuntimeConfig.cuda_graph_strategy": "CudaGraphStrategy",
    "ICudaEngine.create_runtime_config": "create_runtime_config",  # RTX, and 11.4
    "DynamicShapesKernelSpecializationStrategy": "DynamicShapesKernelSpecializationStrategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER": "DynamicShapesKernelSpecializationStrategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": (
        "DynamicShapesKernelSpecializationStrategy"
    ),
    "IProgressMonitor": "IProgressMonitor",
}
# The lean runtime runs engines and builds none.
NOT_IN_LEAN = (
    "Builder",
    "OnnxParser",
    "INetworkDefinition",
    "IBuilderConfig",
    "IProgressMonitor",
    "NetworkDefinitionCreationFlag",
    "LayerType",
    "IMatrixMultiplyLayer",
    "MatrixOperation",
    "ElementWiseOperation",
    "ReduceOperation",
)
LEAST_TOUCHED = 45  # far fewer would mean that the walk finds nothing


def _chain(node: ast.Attribute) -> list[str] | None:
    """["trt", "BuilderFlag", "TF32"] of `trt.BuilderFlag.TF32`."""
    names: list[str] = []
    at: ast.expr = node
    while isinstance(at, ast.Attribute):
        names.append(at.attr)
        at = at.value
    return [at.id, *reversed(names)] if isinstance(at, ast.Name) else None


def _touched(module: str, files: list[Path]) -> set[str]:
    """Attribute paths below a module: of its own name, and of variables named in OWNERS."""
    found = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            chain = _chain(node)
            if chain and chain[0] == module:
                found.add(".".join(chain[1:]))
            elif chain and module == "trt" and chain[0] in OWNERS and len(chain) == 2:
                found.add(f"{OWNERS[chain[0]]}.{chain[1]}")
    return found


def _has(module: object, path: str) -> bool:
    at = module
    for name in path.split("."):
        if not hasattr(at, name):
            return False
        at = getattr(at, name)
    return True


def _required() -> set[str]:
    """What runtime/engines/flavour.py demands of a module."""
    from runtime.engines.flavour import _REQUIRED

    return {f"{owner}.{name}" for owner, names in _REQUIRED.items() for name in names}


TOUCHED = _touched("trt", FILES) | _required()


def test_the_walk_finds_what_the_code_touches():
    assert len(TOUCHED) >= LEAST_TOUCHED
    assert {"Builder.create_network", "IExecutionContext.execute_async_v3"} <= TOUCHED
    assert "BuilderFlag.TF32" in TOUCHED


def test_rtx_has_every_attribute_that_the_code_touches():
    trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    assert [path for path in sorted(TOUCHED) if not _has(trt, path)] == []


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_lean"])
def test_tensorrt_has_every_attribute_that_is_not_guarded(name):
    trt = pytest.importorskip(name, reason=f"{name} is not installed; the check needs it")
    absent = {path for path in TOUCHED if not _has(trt, path)} - set(GUARDED)
    if name == "tensorrt_lean":
        absent = {path for path in absent if not path.startswith(NOT_IN_LEAN)}
        absent -= {"MemoryPoolType.WORKSPACE", "MemoryPoolType", "ProfilingVerbosity.DETAILED"}
    assert sorted(absent) == []


def test_guarded_attributes_are_still_touched():
    assert sorted(set(GUARDED) - TOUCHED) == []


def test_the_code_asks_for_every_guarded_attribute_by_hasattr():
    asked = {
        node.args[1].value
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "hasattr"
        and isinstance(node.args[1], ast.Constant)
    }
    assert sorted(set(GUARDED.values()) - asked) == []


def test_cuda_has_every_function_that_the_code_touches():
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")
    touched = _touched("cudart", [ROOT / "runtime/sessions/buffers.py"])
    source = (ROOT / "runtime/sessions/buffers.py").read_text(encoding="utf-8")
    own = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "_cudart"
    }
    touched |= own
    assert {"cudaMalloc", "cudaGraphLaunch"} <= touched
    assert [path for path in sorted(touched) if not _has(cudart, path)] == []


def test_fakes_have_what_the_code_touches_of_them():
    """A fake that lacks a call would fail the session's tests; this says which in one line."""
    fake = importlib.import_module("fake_cuda").FakeCuda()
    touched = _touched("cudart", [ROOT / "runtime/sessions/buffers.py"])
    assert [path for path in sorted(touched) if not _has(fake, path)] == []
