# ruff: noqa: N801, N802, N815, N818 (the names are those of the library that is played)
"""A TensorRT without a GPU: "engines" are NumPy functions that read and write `FakeCuda`'s memory.

It has the attributes of the real one that our code touches (`test_engines_api.py` holds our code
against the real modules), and refuses what the real one refuses: shapes outside the profile,
running before addresses or shapes are set, the default stream, a context used after its engine.
"""

from __future__ import annotations

import base64
import enum
import json
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_cuda import FakeCuda

Function = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT8 = "int8"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    BOOL = "bool"
    BF16 = "bfloat16"


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class BuilderFlag(enum.IntEnum):
    TF32 = 7
    VERSION_COMPATIBLE = 13
    EXCLUDE_LEAN_RUNTIME = 14


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        self.has_begun = True


@dataclass(frozen=True)
class FakeGraph:
    """What a "network" does.

    Attributes:
        inputs, outputs: name -> (NumPy dtype name, shape with -1 for open sides).
        function: {input: array} -> {output: array}.
        compute_ms: how long the GPU takes for it.
    """

    inputs: dict[str, tuple[str, tuple[int, ...]]]
    outputs: dict[str, tuple[str, tuple[int, ...]]]
    function: Function
    compute_ms: float = 1.0


class FakeTensorRT:
    """The module. Graphs are chosen by the start of the ONNX file's name: "model", "key" ..."""

    __version__ = "10.3.0"
    DataType = DataType
    TensorIOMode = TensorIOMode
    BuilderFlag = BuilderFlag
    NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag
    ILogger = ILogger
    ProfilingVerbosity = SimpleNamespace(DETAILED=2)
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="ampere+")
    LayerInformationFormat = SimpleNamespace(JSON="json")

    def __init__(self, cuda: FakeCuda, graphs: dict[str, FakeGraph]) -> None:
        self.cuda = cuda
        self.graphs = graphs
        self.alive: list[str] = []  # runtimes, engines and contexts that exist
        self.num_builds = 0
        self.layers: dict[str, Any] = {"Layers": []}  # what the inspector says of every engine
        self.is_capturable = True
        self.num_unloadable = 0  # engines that deserialize to None
        self.num_failing_runs = 0
        self.executed: list[tuple[int, int]] = []  # (context, stream) in the order of running

        class Builder(FakeBuilder):
            def __init__(self, logger: Any) -> None:
                super().__init__(outer, logger)

        class OnnxParser(FakeParser):
            def __init__(self, network: Any, logger: Any) -> None:
                super().__init__(outer, network)

        class Runtime(FakeRuntime):
            def __init__(self, logger: Any) -> None:
                super().__init__(outer, logger)

        outer = self
        self.Builder, self.OnnxParser, self.Runtime = Builder, OnnxParser, Runtime
        self.ICudaEngine, self.IExecutionContext = FakeEngine, FakeContext


class FakeBuilder:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        assert isinstance(logger, ILogger)
        self.trt, self.logger = trt, logger

    def create_network(self, flags: int) -> Any:
        assert flags & (1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED), "types are not strong"
        return SimpleNamespace(num_inputs=0, graph="")

    def create_builder_config(self) -> Any:
        config = SimpleNamespace(profiles=[], cleared=[], flags=[], limits={})
        config.clear_flag = config.cleared.append
        config.set_flag = config.flags.append
        config.set_memory_pool_limit = config.limits.__setitem__
        config.create_timing_cache = lambda known: SimpleNamespace(serialize=lambda: b"timings")
        config.set_timing_cache = lambda cache, ignores_mismatch: True
        config.add_optimization_profile = lambda profile: (
            config.profiles.append(profile.shapes) or len(config.profiles) - 1
        )
        return config

    def create_optimization_profile(self) -> Any:
        profile = SimpleNamespace(shapes={})

        def set_shape(name: str, low: Any, best: Any, high: Any) -> None:
            assert low == best == high, "the profile is a range"
            profile.shapes[name] = list(low)

        profile.set_shape = set_shape
        return profile

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        self.trt.num_builds += 1
        plan = {"graph": network.graph, "profiles": config.profiles, "build": self.trt.num_builds}
        return base64.b64encode(json.dumps(plan).encode())


class FakeParser:
    num_errors = 0

    def __init__(self, trt: FakeTensorRT, network: Any) -> None:
        self.trt, self.network = trt, network

    def parse_from_file(self, path: str) -> bool:
        name = path.rsplit("/", 1)[-1].split(".")[0]
        graph = self.trt.graphs[name]
        self.network.graph = name
        self.network.num_inputs = len(graph.inputs)
        tensors = [SimpleNamespace(name=n, shape=s) for n, (_, s) in graph.inputs.items()]
        self.network.get_input = tensors.__getitem__
        return True

    def get_error(self, index: int) -> Any:
        raise IndexError(index)


class FakeRuntime:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger
        self.engine_host_code_allowed = False
        trt.alive.append("runtime")

    def __del__(self) -> None:
        self.trt.alive.remove("runtime")

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        assert not self.engine_host_code_allowed
        if self.trt.num_unloadable:
            self.trt.num_unloadable -= 1
            self.logger.log(Severity.ERROR, "the engine is of another version")
            return None
        return FakeEngine(self, json.loads(base64.b64decode(plan)))


class FakeEngine:
    num_io_tensors = 0
    num_optimization_profiles = 0

    def __init__(self, runtime: FakeRuntime, plan: dict[str, Any]) -> None:
        self.trt, self.logger = runtime.trt, runtime.logger
        self.plan = plan
        self.graph = self.trt.graphs[plan["graph"]]
        self.num_optimization_profiles = len(plan["profiles"])
        self.ports = {**self.graph.inputs, **self.graph.outputs}
        self.num_io_tensors = len(self.ports)
        self.trt.alive.append("engine")

    def __del__(self) -> None:
        if "context" in self.trt.alive:  # in C++ the context would now point nowhere
            self.trt.cuda.violations.append("an engine dies before its contexts")
        self.trt.alive.remove("engine")

    def get_tensor_name(self, index: int) -> str:
        return list(self.ports)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.graph.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.ports[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.ports[name][1]

    def create_execution_context(self, config: Any = None) -> FakeContext:
        return FakeContext(self, config)

    def create_engine_inspector(self) -> FakeInspector:
        return FakeInspector(self.trt)


class FakeInspector:
    """Tells types only once it was given a context whose shapes are set, as TensorRT does."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.execution_context: Any = None

    def get_engine_information(self, kind: str) -> str:
        assert kind == "json"
        context = self.execution_context
        is_told = context is not None and set(context.shapes) == set(context.graph.inputs)
        names = {"Layers": [each["Name"] for each in self.trt.layers["Layers"]]}
        return json.dumps(self.trt.layers if is_told else names)


class FakeContext:
    """Holds no Python reference to its engine, as a raw pointer would not."""

    _count = 0

    def __init__(self, engine: FakeEngine, config: Any) -> None:
        FakeContext._count += 1
        self.number = FakeContext._count
        self.trt, self.logger, self.config = engine.trt, engine.logger, config
        self.graph, self.profiles = engine.graph, engine.plan["profiles"]
        self.profile: dict[str, list[int]] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.is_running = False
        self.trt.alive.append("context")

    def __del__(self) -> None:
        self.trt.alive.remove("context")

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.trt.cuda.stream(stream)
        if not 0 <= index < len(self.profiles):
            return False
        self.profile = self.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.profile is None:
            self.trt.cuda.violate("a shape is set before the profile")
        if list(shape) != self.profile[name]:
            self.logger.log(Severity.ERROR, f"{name}: {shape} is outside the profile")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        if set(self.shapes) != set(self.graph.inputs):
            self.trt.cuda.violate(f"the shape of {name} is asked before all inputs have theirs")
        batch = next(iter(self.shapes.values()))[0]
        shape = self.graph.outputs[name][1]
        return tuple(batch if at == 0 and side == -1 else side for at, side in enumerate(shape))

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self.is_running:
            self.trt.cuda.violate("an address is set after the first run; it was to be fixed")
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.trt.cuda
        for name in (*self.graph.inputs, *self.graph.outputs):
            if name not in self.addresses:
                cuda.violate(f"it runs before the address of {name} is set")
        if set(self.shapes) != set(self.graph.inputs):
            cuda.violate("it runs before all input shapes are set")
        if {self.addresses[n] for n in self.graph.inputs} & {
            self.addresses[n] for n in self.graph.outputs
        }:
            cuda.violate("an output is written where an input is read")
        cuda.stream(stream)
        if self.trt.num_failing_runs:
            self.trt.num_failing_runs -= 1
            self.logger.log(Severity.ERROR, "the engine does not feel like it")
            return False
        if cuda.is_capturing(stream) and not self.trt.is_capturable:
            cuda.invalidate(stream)
            self.logger.log(Severity.ERROR, "operation not permitted when stream is capturing")
            return False
        self.is_running = True
        cuda.enqueue(stream, self._work(int(stream)))
        return True

    def _work(self, stream: int) -> Callable[[], None]:
        """What the GPU does later, at the addresses of now."""
        cuda, graph, number, trt = self.trt.cuda, self.graph, self.number, self.trt
        addresses = dict(self.addresses)
        shapes = {n: self.get_tensor_shape(n) for n in (*graph.inputs, *graph.outputs)}

        def view(name: str, dtype: str) -> np.ndarray:
            kind = np.dtype(dtype)
            nbytes = int(np.prod(shapes[name])) * kind.itemsize
            region = cuda.region(addresses[name], nbytes, "device")
            return np.frombuffer(region, kind).reshape(shapes[name])

        def work() -> None:
            trt.executed.append((number, stream))
            cuda.clock_ms += graph.compute_ms
            feeds = {name: view(name, dtype).copy() for name, (dtype, _) in graph.inputs.items()}
            results = graph.function(feeds)
            for name, (dtype, _) in graph.outputs.items():
                target = view(name, dtype)
                assert results[name].shape == target.shape, (name, results[name].shape)
                target[...] = results[name]

        return work


class FakeRtx(FakeTensorRT):
    """TensorRT-RTX: makes CUDA graphs on its own, through a runtime configuration."""

    __version__ = "1.7.0"
    CudaGraphStrategy = SimpleNamespace(DISABLED="disabled", WHOLE_GRAPH_CAPTURE="whole")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def __init__(self, cuda: FakeCuda, graphs: dict[str, FakeGraph]) -> None:
        super().__init__(cuda, graphs)
        self.configs: list[Any] = []

        class Engine(FakeEngine):
            def create_runtime_config(self) -> Any:
                config = SimpleNamespace(cuda_graph_strategy=None)
                outer.configs.append(config)
                return config

        class Runtime(FakeRuntime):
            def __init__(self, logger: Any) -> None:
                super().__init__(outer, logger)

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                return Engine(self, json.loads(base64.b64decode(plan)))

        outer = self
        self.ICudaEngine, self.Runtime = Engine, Runtime
