"""KestrelSelect and KestrelNms as plugins of TensorRT 10.9 to 11.4, compiled ahead of time.

The nodes of `*.plugin.onnx` carry their definition as local functions. Where plugins of the same
names are registered TensorRT takes these instead, and puts our PTX into the plan: it needs
neither Python nor a library of ours to run, in trtexec either. Elsewhere the definition is built:
TensorRT 10.3 (JetPack 6) has no such plugins, TensorRT-RTX none at all.

Built and run on no TensorRT yet. Tests drive the Python part of TensorRT 11.4's plugin module, and
run the kernels with the arguments that it hands over, on the CPU.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import GenericAlias
from typing import Any, TypeVar

from runtime.contract.errors import EngineError, SessionError
from runtime.engines.build import BuildOptions
from runtime.engines.fingerprint import Device
from runtime.engines.flavour import Flavour
from runtime.engines.kernels.launching import Driver
from runtime.engines.kernels.shipped import (
    NMS,
    SELECT,
    SELECT_STRETCH,
    Kernel,
    Version,
    code_sha256,
    read_ptx,
    readable_isa,
)

log = logging.getLogger("kestrel.runtime")

T = TypeVar("T")

NAMESPACE = "kestrel"  # the nodes' domain, and their attribute `plugin_namespace`
SELECT_NODE = "KestrelSelect"
NMS_NODE = "KestrelNms"
METHODS = ("greedy", "fast")  # as kestrel_nms numbers them
ACTIVATIONS = ("none", "sigmoid")  # as kestrel_select numbers them
MOST_ROWS = 2048  # MOST of both kernels
MOST_VALUES = 2**32  # logits of an image: the kernel's flat indices end there

_AMPERE: Version = (8, 0)  # the least GPU that a hardware-compatible engine runs on


@dataclass(slots=True)
class _State:
    """Of this process: TensorRT keeps plugins in a registry of its own.

    Attributes:
        compute_capability, max_isa: of the PTX that the next build takes.
        is_registered: by `register_plugins`.
        is_refused: TensorRT failed with them; the definition is built from then on.
    """

    compute_capability: Version = (7, 5)
    max_isa: Version | None = None
    is_registered: bool = False
    is_refused: bool = False


_state = _State()


def with_plugins(
    build: Callable[[str], T],
    flavour: Flavour,
    device: Device | None,
    options: BuildOptions | None = None,
) -> T:
    """Build with our kernels where this TensorRT takes them, else with their definition.

    Args:
        build: takes the hash of the kernels' code, empty without them; gives an engine.
        flavour: of TensorRT.
        device: the GPU. options: of the build.

    Raises:
        EngineError: TensorRT refuses the graph with the definition, too.
    """
    code = register_plugins(flavour, device, options)
    try:
        return build(code)
    except EngineError as error:
        if not code:
            raise
        log.warning("%s; building without our kernels", str(error))
    _withdraw(flavour)
    return build("")


def register_plugins(
    flavour: Flavour, device: Device | None, options: BuildOptions | None = None
) -> str:
    """Register both, once a process, and choose the PTX for a GPU.

    Args:
        flavour: of TensorRT. device: the GPU.
        options: of the build: an engine for all of Ampere and newer takes Ampere's PTX.

    Returns:
        Hash of the kernels' code; empty where this TensorRT, or the GPU, has no use for them.
    """
    trt = flavour.module
    # TensorRT 10.9 brought it together with plugins that are compiled ahead of time.
    is_able = flavour.needs_gpu_to_build and hasattr(trt, "QuickPluginCreationRequest")
    if not is_able or device is None or _state.is_refused:
        return ""
    major, minor = (int(part) for part in device.compute_capability.split("."))
    is_for_many = options is not None and options.is_hardware_compatible
    _state.compute_capability = _AMPERE if is_for_many else (major, minor)
    _state.max_isa = _readable_isa()
    try:
        for kernel in (SELECT, NMS):
            read_ptx(kernel, _state.compute_capability, _state.max_isa)
        if not _state.is_registered:
            plugin = importlib.import_module(f"{trt.__name__}.plugin")
            _register_select(trt, plugin)
            _register_nms(trt, plugin)
            _state.is_registered = True
    except (ImportError, EngineError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s takes no kernels of ours (%s); their definition is built", flavour, error)
        _withdraw(flavour)
        return ""
    return code_sha256(SELECT, NMS)


def _readable_isa() -> Version | None:
    try:
        return readable_isa(Driver.load().cuda_version())
    except SessionError:  # a build can do without cuda-python; TensorRT then asks the driver itself
        return None


def _withdraw(flavour: Flavour) -> None:
    """Take both out of the registry, so that the parser finds the local functions."""
    _state.is_refused = True
    registry = flavour.module.get_plugin_registry()
    for name in (SELECT_NODE, NMS_NODE):
        creator = registry.get_creator(name, "1", NAMESPACE)
        if creator is not None:
            registry.deregister_creator(creator)


def _check_rows(node: str, count: int) -> None:
    if count > MOST_ROWS:  # the kernels' shared memory ends there
        raise ValueError(f"{node} has {count} rows; its kernel takes {MOST_ROWS} at most")


def _check_name(node: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{node} knows no {name!r}; expected one of: {', '.join(known)}")


def _check_values(anchors: int | None, classes: int | None) -> None:
    count = (anchors or 0) * (classes or 0)
    if count >= MOST_VALUES:
        raise ValueError(f"{SELECT_NODE} has {count} logits an image; its kernel counts to 2^32")


def _known(size: Any) -> int | None:
    """A size of a shape, where TensorRT knows it already."""
    return None if size.is_fake or not size.is_constant else int(size.constant_value())


def _register_select(trt: Any, plugin: Any) -> None:
    float32, int64 = trt.DataType.FLOAT, trt.DataType.INT64
    name = f"{NAMESPACE}::{SELECT_NODE}"

    def describe(logits: Any, score_threshold: Any, candidates: int, activation: str) -> Any:
        batch, anchors, classes = logits.shape_expr
        _check_rows(SELECT_NODE, candidates)
        _check_name(SELECT_NODE, activation, ACTIVATIONS)
        blocks = plugin.cdiv(anchors * classes, SELECT_STRETCH)
        shapes = {
            "scores": ((batch, candidates), float32),
            "anchors": ((batch, candidates), int64),
            "classes": ((batch, candidates), int64),
            # Read by no node: what the blocks of the kernel leave for the last of them.
            "scratch": ((batch, blocks, candidates + 1), int64),
        }
        return tuple(plugin.from_shape_expr(shape, dtype=kind) for shape, kind in shapes.values())

    def choose_types(logits: Any, score_threshold: Any, outputs: Any) -> Any:
        return [plugin.AutoTuneCombination("FP32, FP32, FP32, INT64, INT64, INT64")]

    def describe_launch(
        logits: Any,
        score_threshold: Any,
        candidates: int,
        activation: str,
        outputs: Any,
        tactic: int,
    ) -> Any:
        batch, anchors, classes = logits.shape_expr
        _check_values(_known(anchors), _known(classes))
        grid = (plugin.cdiv(anchors * classes, SELECT_STRETCH), batch)
        numbers = (anchors, classes, outputs[0].shape_expr[1], ACTIVATIONS.index(activation))
        return _launch(plugin, SELECT, grid, numbers)

    _annotate(plugin, describe, num_inputs=2, num_outputs=4)
    _annotate_rest(plugin, choose_types, describe_launch)
    plugin.register(name)(describe)
    plugin.autotune(name)(choose_types)
    plugin.aot_impl(name)(describe_launch)


def _register_nms(trt: Any, plugin: Any) -> None:
    float32, int32, int64 = trt.DataType.FLOAT, trt.DataType.INT32, trt.DataType.INT64
    name = f"{NAMESPACE}::{NMS_NODE}"

    def describe(
        boxes: Any,
        scores: Any,
        classes: Any,
        iou_threshold: Any,
        max_detections: int,
        method: str,
        per_class_limit: int,
    ) -> Any:
        batch = boxes.shape_expr[0]
        _check_name(NMS_NODE, method, METHODS)
        shapes = {
            "num_detections": ((batch,), int32),
            "det_boxes": ((batch, max_detections, 4), float32),
            "det_scores": ((batch, max_detections), float32),
            "det_classes": ((batch, max_detections), int32),
            "det_indices": ((batch, max_detections), int64),
        }
        return tuple(plugin.from_shape_expr(shape, dtype=kind) for shape, kind in shapes.values())

    def choose_types(
        boxes: Any, scores: Any, classes: Any, iou_threshold: Any, outputs: Any
    ) -> Any:
        types = "FP32, FP32, INT64, FP32, INT32, FP32, FP32, INT32, INT64"
        return [plugin.AutoTuneCombination(types)]

    def describe_launch(
        boxes: Any,
        scores: Any,
        classes: Any,
        iou_threshold: Any,
        max_detections: int,
        method: str,
        per_class_limit: int,
        outputs: Any,
        tactic: int,
    ) -> Any:
        batch, rows = scores.shape_expr
        _check_rows(NMS_NODE, _known(rows) or 0)
        numbers = (rows, outputs[1].shape_expr[1], METHODS.index(method), per_class_limit)
        return _launch(plugin, NMS, (batch, 1), numbers)

    _annotate(plugin, describe, num_inputs=4, num_outputs=5)
    _annotate_rest(plugin, choose_types, describe_launch)
    plugin.register(name)(describe)
    plugin.autotune(name)(choose_types)
    plugin.aot_impl(name)(describe_launch)


def _launch(
    plugin: Any, kernel: Kernel, grid: tuple[Any, Any], numbers: Sequence[Any]
) -> tuple[str, str, Any, Any]:
    """What TensorRT asks of an implementation: entry, PTX, launch, numbers behind the inputs."""
    ptx, target = read_ptx(kernel, _state.compute_capability, _state.max_isa)
    log.debug("%s goes into the plan as PTX for sm_%d", kernel.name, target)
    sizes = plugin.KernelLaunchParams()
    sizes.grid_x, sizes.grid_y = grid
    sizes.block_x = kernel.max_threads
    extra = plugin.SymIntExprs.from_tuple([plugin.SymInt32(number) for number in numbers])
    return kernel.name, ptx.decode("ascii"), sizes, extra


def _annotate(plugin: Any, function: Any, *, num_inputs: int, num_outputs: int) -> None:
    """Give a function the types that TensorRT reads: tensors first, then the node's attributes."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    attributes = {"candidates": int, "max_detections": int, "per_class_limit": int}
    kinds = [plugin.TensorDesc] * num_inputs
    kinds += [attributes.get(name, str) for name in names[num_inputs:]]
    result = GenericAlias(tuple, (plugin.TensorDesc,) * num_outputs)
    function.__annotations__ = {**dict(zip(names, kinds, strict=True)), "return": result}


def _annotate_rest(plugin: Any, choose_types: Any, describe_launch: Any) -> None:
    """Ours would be read: of these TensorRT takes the arguments' names for their types."""
    result = tuple[str, str, plugin.KernelLaunchParams, plugin.SymIntExprs]
    choose_types.__annotations__ = {"return": list[plugin.AutoTuneCombination]}
    describe_launch.__annotations__ = {"return": result}
