# ruff: noqa: N801, N802 (the names are those of the library that is played)
"""The Python part of TensorRT 11.4's plugin module, on stand-ins for its C++ classes.

`tensorrt-lean` ships that part as source: what checks our functions, and calls them as a build
does, is NVIDIA's code. Underneath, expressions of sizes are numbers, and the registry a dictionary.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

ENUMS = (
    "DataType",
    "DimensionOperation",
    "PluginArgDataType",
    "PluginArgType",
    "PluginFieldType",
    "QuickPluginCreationRequest",
    "TensorRTPhase",
)
PLAIN_CLASSES = (
    "DynamicPluginTensorDesc",
    "IPluginCreatorV3Quick",
    "IPluginV3",
    "IPluginV3QuickAOTBuild",
    "IPluginV3QuickBuild",
    "IPluginV3QuickCore",
    "IPluginV3QuickRuntime",
    "ISymExpr",
    "IExprBuilder",
    "ITensor",
    "PluginTensorDesc",
)


class IDimensionExpr:
    """A size that is known, as in a profile of one shape."""

    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value


class ExprBuilder:
    """Computes what TensorRT would note down."""

    def __init__(self, trt: Any) -> None:
        operation = trt.DimensionOperation
        self._functions = {
            operation.SUM: lambda a, b: a + b,
            operation.SUB: lambda a, b: a - b,
            operation.PROD: lambda a, b: a * b,
            operation.FLOOR_DIV: lambda a, b: a // b,
            operation.CEIL_DIV: lambda a, b: -(-a // b),
            operation.MAX: max,
            operation.MIN: min,
        }

    def constant(self, value: int) -> IDimensionExpr:
        return IDimensionExpr(value)

    def operation(self, kind: Any, first: Any, second: Any) -> IDimensionExpr:
        return IDimensionExpr(self._functions[kind](first.value, second.value))


class Registry:
    """Creators by name and namespace; the parser looks here before it takes a local function."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        self.creators[creator.name, namespace] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        assert version == "1"
        return self.creators.get((name, namespace))

    def deregister_creator(self, creator: Any) -> bool:
        return self.creators.pop((creator.name, creator.plugin_namespace), None) is not None


class PluginField:
    def __init__(self, name: str, data: Any, kind: Any) -> None:
        self.name, self.type = name, kind
        self.data = np.frombuffer(data, np.int8) if isinstance(data, bytes) else data


@dataclass
class Launch:
    """What a build notes down of a plugin: its kernel, and how it is launched."""

    entry: str
    ptx: bytes
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    numbers: list[int]
    output_shapes: list[tuple[int, ...]]
    output_types: list[Any]


def install(monkeypatch: pytest.MonkeyPatch, version: str = "11.4.0") -> Any:
    """Put the module in the place of `tensorrt` for one test, and give it."""
    lean = pytest.importorskip("tensorrt_lean", reason="tensorrt-lean has TensorRT's plugin module")
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = version
    trt.__spec__ = ModuleSpec("tensorrt", None)
    for name in ENUMS:
        setattr(trt, name, getattr(lean, name))
    for name in PLAIN_CLASSES:
        setattr(trt, name, type(name, (), {}))
    trt.Logger = type("Logger", (), {"WARNING": 2, "log": lambda self, *said: None})
    trt.IDimensionExpr, trt.PluginField = IDimensionExpr, PluginField
    trt.PluginFieldCollection = list
    trt.DimsExprs = lambda length: [None] * length
    trt.Dims = type("Dims", (tuple,), {"MAX_DIMS": 8})
    trt.TensorFormat = SimpleNamespace(LINEAR="linear")
    for name, short in (("float32", "FLOAT"), ("int32", "INT32"), ("int64", "INT64")):
        setattr(trt, name, getattr(lean.DataType, short))
    registry = Registry()
    trt.get_plugin_registry = lambda: registry
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    for name in [name for name in sys.modules if name.startswith("tensorrt_lean_bindings.plugin")]:
        monkeypatch.delitem(sys.modules, name)
    trt.plugin = importlib.import_module("tensorrt_lean_bindings.plugin")
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", trt.plugin)
    return trt


def build(trt: Any, node: str, attributes: dict[str, Any], inputs: dict[str, Any]) -> Launch:
    """Create a node's plugin and ask it all that a build asks, in a build's order.

    Args:
        trt: of `install`.
        node: the operator's name; its namespace is "kestrel".
        attributes: of the node, int and str, in any order.
        inputs: name -> (DataType, shape), in order.
    """
    creator = trt.get_plugin_registry().get_creator(node, "1", "kestrel")
    fields = []
    for field in creator.field_names:  # the parser goes by the creator's names
        value = attributes[field.name]
        data = value.encode() if isinstance(value, str) else np.array([value], np.int64)
        fields.append(trt.PluginField(field.name, data, field.type))
    request = trt.QuickPluginCreationRequest.UNKNOWN
    phase = trt.TensorRTPhase.BUILD
    plugin = creator.create_plugin(node, "kestrel", fields, phase, request)

    types = plugin.get_output_data_types(
        [kind for kind, _ in inputs.values()], [len(shape) for _, shape in inputs.values()]
    )
    assert len(types) == plugin.get_num_outputs()
    builder = ExprBuilder(trt)
    sizes = [[IDimensionExpr(side) for side in shape] for _, shape in inputs.values()]
    shapes = [
        tuple(side.value for side in shape)
        for shape in plugin.get_output_shapes(sizes, [], builder)
    ]
    kinds = [kind for kind, _ in inputs.values()] + list(types)
    sides = [shape for _, shape in inputs.values()] + shapes
    tensors = [_describe(trt, kind, shape) for kind, shape in zip(kinds, sides, strict=True)]
    supported = plugin.get_supported_format_combinations(tensors, len(inputs))
    assert [each.type for each in supported] == kinds, "the node's own types are not taken"
    plugin.configure_plugin(tensors[: len(inputs)], tensors[len(inputs) :])
    assert plugin.get_valid_tactics() in ([], [0])
    plugin.set_tactic(0)
    launch, numbers = SimpleNamespace(), _Numbers()
    plugin.get_launch_params(sizes, tensors, len(inputs), launch, numbers, builder)
    descriptions = [tensor.desc for tensor in tensors]
    entry, ptx = plugin.get_kernel(descriptions[: len(inputs)], descriptions[len(inputs) :])
    assert all(each.dtype == trt.PluginArgDataType.INT32 for each in numbers)
    return Launch(
        entry=entry,
        ptx=ptx,
        grid=tuple(getattr(launch, f"grid_{side}").expr.value for side in "xyz"),
        block=tuple(getattr(launch, f"block_{side}").expr.value for side in "xyz"),
        shared_bytes=launch.shared_mem.expr.value,
        numbers=[each.expr.value for each in numbers],
        output_shapes=shapes,
        output_types=list(types),
    )


class _Numbers(list):  # type: ignore[type-arg]
    """What extra arguments are put into, by number once their count is set."""

    @property
    def nbSymExprs(self) -> int:
        return len(self)

    @nbSymExprs.setter
    def nbSymExprs(self, count: int) -> None:
        self[:] = [None] * count


def _describe(trt: Any, kind: Any, shape: tuple[int, ...]) -> Any:
    dynamic = trt.DynamicPluginTensorDesc()
    plain = trt.PluginTensorDesc()
    plain.type, plain.dims, plain.format, plain.scale = kind, shape, trt.TensorFormat.LINEAR, 1.0
    dynamic.desc = plain
    return dynamic
