"""From an ONNX file to a serialized engine, the same way for TensorRT 10.3 to 11.4 and RTX.

Precision stands in the file: networks are strongly typed and no precision flag is touched.
Engines are plain plans; they hold no host code and are loaded without allowing any.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.contract import files
from runtime.contract.errors import EngineError, SinkError
from runtime.engines.flavour import Flavour
from runtime.engines.progress import Interrupt, Progress, make_monitor
from runtime.engines.refusals import build_refusal, parse_refusal
from runtime.engines.turing import TURING, replace_float32_products

log = logging.getLogger("kestrel.runtime")

Shape = tuple[int, ...]

_BUILDING = threading.Lock()  # one build at a time in a process: they share a logger and a GPU


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How an engine is built. All but `timing_cache` enter its fingerprint.

    Attributes:
        workspace_bytes: the most scratch memory a layer may take; None is TensorRT's choice.
        optimisation_level: 0 builds fast, 5 searches longest; None is TensorRT's choice.
        is_version_compatible: runs on later TensorRT versions too; may be slower.
        is_hardware_compatible: runs on other GPUs of Ampere and newer; may be slower.
        targets: TensorRT-RTX only: the GPUs to compile for, such as ("SM86", "SM89"), or
            ("CURRENT",). Empty compiles for all that RTX supports.
        has_layer_details: layer names, types and shapes can be read from the engine, which the
            audit of its precision needs.
        timing_cache: TensorRT only: a file of kernel timings, read before and written after.
    """

    workspace_bytes: int | None = None
    optimisation_level: int | None = None
    is_version_compatible: bool = False
    is_hardware_compatible: bool = False
    targets: tuple[str, ...] = ()
    has_layer_details: bool = True
    timing_cache: Path | None = None

    def flags(self) -> dict[str, Any]:
        """What changes the engine, as JSON takes it."""
        return {
            "workspace_bytes": self.workspace_bytes,
            "optimisation_level": self.optimisation_level,
            "is_version_compatible": self.is_version_compatible,
            "is_hardware_compatible": self.is_hardware_compatible,
            "targets": sorted(self.targets),
            "has_layer_details": self.has_layer_details,
        }


def check_options(flavour: Flavour, options: BuildOptions) -> None:
    """Raise EngineError where a flavour cannot build with these options."""
    trt, targets = flavour.module, options.targets
    if options.workspace_bytes is not None and options.workspace_bytes < 1:
        raise EngineError(f"a workspace of {options.workspace_bytes} bytes; expected more than 0.")
    if options.optimisation_level is not None and not 0 <= options.optimisation_level <= 5:
        raise EngineError(f"optimisation level {options.optimisation_level}; expected 0 to 5.")
    if targets and not hasattr(trt, "ComputeCapability"):
        raise EngineError(
            f"{flavour} builds for the GPU it runs on; target devices {', '.join(targets)} "
            "are for tensorrt_rtx only. Leave them out."
        )
    known = list(trt.ComputeCapability.__members__) if targets else []
    unknown = [target for target in targets if target not in known or target == "NONE"]
    if unknown:
        have = ", ".join(name for name in known if name != "NONE")
        raise EngineError(f"{flavour} knows no target {unknown[0]!r}; choose of {have}.")
    if len(set(targets)) < len(targets) or ("CURRENT" in targets and len(targets) > 1):
        raise EngineError(
            f"targets {', '.join(targets)}; expected each once, and CURRENT alone. Leave some out."
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A serialized engine: its bytes, and how long it took."""

    data: bytes
    seconds: float


def build_plan(
    onnx_path: Path,
    *,
    flavour: Flavour,
    precision: str,
    shapes: Mapping[int, Mapping[str, Shape]],
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Build one engine with one optimisation profile for each batch size.

    Args:
        onnx_path: read by TensorRT itself, so external data beside it is found.
        flavour: which TensorRT. "tensorrt" needs a GPU here, see `needs_gpu_to_build`.
        precision: of the file; fp32 switches TF32 off.
        shapes: batch size -> {input name: shape}; profile number = place in this mapping.
            An input that is not named takes its shape from the graph, its first side the batch.
        options: see BuildOptions.
        progress: called with (fraction 0..1, phase), from any thread.

    Raises:
        EngineError: TensorRT refuses the graph or an option; the message names node and cure.
    """
    options = options or BuildOptions()
    with _BUILDING:
        return _build(onnx_path, flavour, precision, shapes, options, progress)


def _build(
    onnx_path: Path,
    flavour: Flavour,
    precision: str,
    shapes: Mapping[int, Mapping[str, Shape]],
    options: BuildOptions,
    progress: Progress | None,
) -> Plan:
    check_options(flavour, options)
    trt = flavour.module
    began = time.monotonic()
    what = onnx_path.name
    flavour.library_log.take()
    try:
        builder = trt.Builder(flavour.logger)
    except (TypeError, RuntimeError):  # pybind11: the factory gave nothing
        raise build_refusal(what, str(flavour), flavour.library_log.take()) from None
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, flavour.logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise parse_refusal(what, str(flavour), parser, flavour.library_log.take())
    if hasattr(trt, "ComputeCapability") and TURING in options.targets:
        replace_float32_products(trt, network)
    config = builder.create_builder_config()
    _configure(trt, config, flavour, precision, options)
    _add_profiles(builder, network, config, shapes, what)
    timing_cache = _load_timing_cache(config, flavour, options)
    interrupt = Interrupt()
    if progress is not None and hasattr(trt, "IProgressMonitor"):
        monitor = make_monitor(trt, progress, interrupt)  # kept alive until the build is over
        config.progress_monitor = monitor
    memory = builder.build_serialized_network(network, config)
    if interrupt.has_come:
        raise KeyboardInterrupt
    if memory is None:
        raise build_refusal(what, str(flavour), flavour.library_log.take())
    _save_timing_cache(timing_cache, options)
    return Plan(bytes(memory), time.monotonic() - began)


def _network_flags(trt: Any) -> int:
    """STRONGLY_TYPED where the enum has it: required in 10.x, harmless in 11.x."""
    flags = getattr(trt, "NetworkDefinitionCreationFlag", None)
    return (
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        if hasattr(flags, "STRONGLY_TYPED")
        else 0
    )


def _configure(
    trt: Any, config: Any, flavour: Flavour, precision: str, options: BuildOptions
) -> None:
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # RTX: no allocation in a CUDA graph
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if options.has_layer_details:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimisation_level is not None:
        config.builder_optimization_level = options.optimisation_level
    if options.is_version_compatible:
        # The lean runtime is left out: it would be host code, which we never let an engine run.
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if options.is_hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.targets:
        _set_targets(trt, config, flavour, options.targets)


def _set_targets(trt: Any, config: Any, flavour: Flavour, targets: tuple[str, ...]) -> None:
    known = trt.ComputeCapability.__members__
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(known[target], index):
            said = "; ".join(flavour.library_log.take()) or "no reason given"
            raise EngineError(
                f"{flavour} refuses the targets {', '.join(targets)}: {said}. Leave some out."
            )


def _add_profiles(
    builder: Any,
    network: Any,
    config: Any,
    shapes: Mapping[int, Mapping[str, Shape]],
    what: str,
) -> None:
    inputs = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        inputs[tensor.name] = tuple(tensor.shape)
    if not any(-1 in shape for shape in inputs.values()):
        _check_fixed(inputs, shapes, what)
        return
    for batch, wanted in shapes.items():
        profile = builder.create_optimization_profile()
        for name, declared in inputs.items():
            shape = _resolve(name, declared, batch, wanted, what)
            profile.set_shape(name, shape, shape, shape)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(
                f"{what}: TensorRT refuses input shapes of batch {batch}. Export the bundle again."
            )


def _resolve(
    name: str, declared: Shape, batch: int, wanted: Mapping[str, Shape], what: str
) -> Shape:
    """The shape of one input in one profile; -1 is a side that the file leaves open."""
    shape = wanted.get(name, (batch, *declared[1:]) if declared else ())
    fits = len(shape) == len(declared) and all(
        side in (-1, given) for side, given in zip(declared, shape, strict=True)
    )
    if not fits or -1 in shape:
        raise EngineError(
            f"{what}: input {name!r} has shape {declared} (-1 is open); the manifest wants "
            f"{shape} for batch {batch}. Export the bundle again."
        )
    return shape


def _check_fixed(
    inputs: Mapping[str, Shape], shapes: Mapping[int, Mapping[str, Shape]], what: str
) -> None:
    """A file without open sides serves one batch size and needs no profile."""
    for batch, wanted in shapes.items():
        for name, declared in inputs.items():
            _resolve(name, declared, batch, wanted, what)


def _load_timing_cache(config: Any, flavour: Flavour, options: BuildOptions) -> Any:
    path = options.timing_cache
    if path is None or not flavour.needs_gpu_to_build:  # it has no effect in RTX, and asks a GPU
        return None
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if not config.set_timing_cache(cache, False):
        log.info("%s is of another device or version and is made anew", path)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _save_timing_cache(timing_cache: Any, options: BuildOptions) -> None:
    if timing_cache is None or options.timing_cache is None:
        return
    try:
        files.write_bytes(options.timing_cache, bytes(timing_cache.serialize()))
    except SinkError as error:  # the engine is built all the same
        log.warning("the timing cache is lost: %s", str(error))
