"""A graph of a bundle as a loaded engine: its ports, its profiles, and contexts for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.contract.bundle import Bundle
from runtime.contract.errors import EngineError, SessionError
from runtime.contract.manifest import Manifest
from runtime.engines.cache import EngineFile
from runtime.engines.flavour import Flavour
from runtime.sessions.feeds import FeedCheck, fed_specs
from runtime.sessions.state import Signature

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of an engine.

    Attributes:
        name: in the graph. dtype: NumPy's.
        shape: -1 for a side that the batch decides.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def signature(self) -> Signature:
        return str(self.dtype), self.shape


@dataclass(slots=True)
class LoadedGraph:
    """An engine in memory, and who feeds and reads what.

    Attributes:
        name: "model", "key" or "nonkey".
        engine: TensorRT's.
        flavour: that made it.
        inputs: fed by the caller. state_inputs: read from the stream's own memory.
        outputs: read by the caller. state_outputs: kept on the device, never read.
        renews: state output -> the state input that it renews.
        profiles: batch size -> number of its optimisation profile.
        check: of the caller's feeds.
    """

    name: str
    engine: Any
    flavour: Flavour
    inputs: tuple[Port, ...]
    state_inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    state_outputs: tuple[Port, ...]
    renews: dict[str, str]
    profiles: dict[int, int]
    check: FeedCheck

    @property
    def takes(self) -> dict[str, Signature]:
        """Types and sides of all inputs, state included."""
        return {port.name: port.signature for port in (*self.inputs, *self.state_inputs)}

    @property
    def gives(self) -> dict[str, Signature]:
        """Types and sides of all outputs, state included."""
        return {port.name: port.signature for port in (*self.outputs, *self.state_outputs)}

    def release(self) -> None:
        """Let go of the engine, whoever still holds this object."""
        self.engine = None

    def make_context(self, *, use_cuda_graphs: bool) -> Any:
        """A context for one stream and batch; TensorRT-RTX is told to use CUDA graphs itself.

        Raises:
            SessionError: TensorRT gives none, for lack of memory as a rule.
        """
        engine = self.engine
        trt = self.flavour.module
        if not captures_itself(self.flavour):
            context = engine.create_execution_context()
        else:
            runtime_config = engine.create_runtime_config()
            strategy = trt.CudaGraphStrategy.DISABLED
            if use_cuda_graphs:
                strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            runtime_config.cuda_graph_strategy = strategy
            if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
                # Shapes never change, so compile for them now, not behind a slow first minute.
                eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
                runtime_config.dynamic_shapes_kernel_specialization_strategy = eager
            context = engine.create_execution_context(runtime_config)
        if context is None:
            said = "; ".join(self.flavour.library_log.take()) or "no reason given"
            raise SessionError(
                f"{self.flavour} makes no context for graph {self.name!r}: {said}. "
                "Free GPU memory, or open fewer streams."
            )
        return context


def captures_itself(flavour: Flavour) -> bool:
    """Whether this TensorRT makes CUDA graphs on its own (RTX does)."""
    return hasattr(flavour.module, "CudaGraphStrategy") and hasattr(
        flavour.module.ICudaEngine, "create_runtime_config"
    )


def load_graph(
    bundle: Bundle,
    name: str,
    flavour: Flavour,
    runtime: Any,
    find: Callable[[bool], EngineFile],
) -> LoadedGraph:
    """Deserialize an engine and hold it against the manifest.

    Args:
        bundle: whose manifest it must fit.
        name: of the graph.
        flavour: of TensorRT.
        runtime: TensorRT's.
        find: gives the engine; called with True to build it anew when it does not load.

    Raises:
        EngineError: a new engine does not load either, or does not fit the manifest.
    """
    flavour.library_log.take()
    engine = runtime.deserialize_cuda_engine(find(False).plan())
    if engine is None:
        engine = runtime.deserialize_cuda_engine(find(True).plan())
    if engine is None:
        said = "; ".join(flavour.library_log.take()) or "no reason given"
        raise EngineError(
            f"{flavour} does not load its own new engine of graph {name!r}: {said}. "
            "Check that the driver and TensorRT fit each other."
        )
    trt = flavour.module
    ports: dict[bool, list[Port]] = {True: [], False: []}
    for index in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT
        ports[is_input].append(_read_port(engine, tensor))
    return _assign_ports(bundle.manifest, name, flavour, engine, ports[True], ports[False])


def _read_port(engine: Any, tensor: str) -> Port:
    kind = engine.get_tensor_dtype(tensor).name
    if kind not in _DTYPES:
        raise EngineError(
            f"tensor {tensor!r} is {kind}, which NumPy has not; expected one of "
            f"{', '.join(_DTYPES)}. Export again."
        )
    return Port(tensor, np.dtype(_DTYPES[kind]), tuple(engine.get_tensor_shape(tensor)))


def _assign_ports(
    manifest: Manifest,
    name: str,
    flavour: Flavour,
    engine: Any,
    inputs: list[Port],
    outputs: list[Port],
) -> LoadedGraph:
    specs = fed_specs(manifest, [port.name for port in inputs])
    fed = {spec.name for spec in specs}
    dtypes = {port.name: port.dtype for port in inputs}
    for spec in specs:
        if dtypes[spec.name] != spec.numpy_dtype:
            raise EngineError(
                f"graph {name!r}: input {spec.name!r} is {dtypes[spec.name]}; the manifest says "
                f"{spec.dtype}. Export the bundle again."
            )
    profiles = {batch: index for index, batch in enumerate(manifest.batches)}
    if engine.num_optimization_profiles != len(profiles):
        raise EngineError(
            f"graph {name!r} has {engine.num_optimization_profiles} optimisation profiles; "
            f"the manifest has {len(profiles)} batch sizes. Delete the folder of engines."
        )
    return LoadedGraph(
        name=name,
        engine=engine,
        flavour=flavour,
        inputs=tuple(port for port in inputs if port.name in fed),
        state_inputs=tuple(port for port in inputs if port.name not in fed),
        outputs=tuple(port for port in outputs if port.name not in manifest.state),
        state_outputs=tuple(port for port in outputs if port.name in manifest.state),
        renews=dict(manifest.state),
        profiles=profiles,
        check=FeedCheck(manifest, name, specs),
    )
