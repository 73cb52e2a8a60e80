"""OpenVINO: the fast engine on x86 and Arm CPUs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from runtime.contract.bundle import Bundle
from runtime.contract.errors import SessionError
from runtime.sessions.base import Feeds, Results
from runtime.sessions.compiled_models import CompiledModels, onnx_hashes
from runtime.sessions.cpu_flags import cpu_flags, is_bf16_fast
from runtime.sessions.feeds import FeedCheck, fed_specs, summarise
from runtime.sessions.state import Signature, check_state, refuse_state

_DEVICE = "CPU"
_INFERENCE_PRECISIONS = ("f32", "bf16", "auto")
_REQUESTS_PER_STREAM = 2  # one runs while the results of the other are read


def open_session(
    bundle: Bundle,
    precision: str,
    *,
    threads: int | None = None,
    inference_precision: str = "f32",
    cache: bool = True,
) -> OpenVinoSession:
    """Compile a bundle's graphs for the CPU.

    Args:
        bundle: what to load.
        precision: one of the manifest's; int8 takes the bundle's file for CPUs where it has one.
        threads: for one inference; None leaves it to OpenVINO.
        inference_precision: what float layers are computed in, those of an int8 file included:
            "f32"; "bf16" (refused where the CPU would emulate it); "auto" is bf16 where the CPU
            computes it in hardware (`cpu_flags.py` has the measurements), else f32. Boxes, scores
            and suppression are float32 in any case.
        cache: keep compiled models in the bundle's `engines`, and take those found there.

    Raises:
        SessionError: OpenVINO refuses the graph, or a wrong option.
        BundleError: a file is missing or damaged.
    """
    return OpenVinoSession(bundle, precision, threads, inference_precision, cache=cache)


class OpenVinoSession:
    """A bundle in OpenVINO; safe to share between threads, its streams are not.

    Each batch size is compiled on its own, static; those after the first when first fed.
    """

    backend = "openvino"

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        threads: int | None,
        inference_precision: str,
        *,
        cache: bool,
    ) -> None:
        import openvino

        self.precision = precision
        self.renews = bundle.manifest.state
        self._manifest = bundle.manifest
        self._core = openvino.Core()
        self._config = self._configure(threads, inference_precision)
        name = self._core.get_property(_DEVICE, "FULL_DEVICE_NAME").strip()
        is_bf16 = self._config["INFERENCE_PRECISION_HINT"] == "bf16"
        self.device = f"CPU ({name}{', bf16' if is_bf16 else ''})"
        self._cache = CompiledModels(bundle, self._core, _DEVICE, self._config) if cache else None
        self._lock = threading.Lock()
        self._compiled: dict[tuple[str, int], Any] = {}
        self._paths: dict[str, str] = {}
        self._hashes: dict[str, dict[str, str]] = {}
        self._checks: dict[str, FeedCheck] = {}
        gives: dict[str, dict[str, Signature]] = {}
        takes: dict[str, dict[str, Signature]] = {}
        for graph in bundle.manifest.graphs:
            is_cpu_file = bundle.has_file(graph, precision, "cpu")
            path = bundle.file(graph, precision, "cpu" if is_cpu_file else "portable")
            self._paths[graph] = str(path)
            self._hashes[graph] = onnx_hashes(path, bundle.manifest.graphs[graph].sha256)
            first = self.compiled(graph, bundle.manifest.batches[0])
            fed = fed_specs(bundle.manifest, self.name_ports(first.inputs))
            self._checks[graph] = FeedCheck(bundle.manifest, graph, fed)
            gives[graph] = self._signatures(first.outputs)
            takes[graph] = self._signatures(first.inputs)
        check_state(self.renews, gives, takes)
        self._own: OpenVinoStream | None = None

    def open_stream(self) -> OpenVinoStream:
        """Requests and state of one more camera."""
        return OpenVinoStream(self)

    def run(self, feeds: Feeds, graph: str = "model") -> Results:
        """Run on a stream of the session's own, and wait. Not from two threads at once."""
        if self._own is None:
            self._own = self.open_stream()
        return self._own.submit(feeds, graph).result()

    def close(self) -> None:
        """Free the compiled models."""
        if self._own is not None:
            self._own.close()
        self._compiled.clear()
        self._paths.clear()

    def batch_of(self, feeds: Feeds, graph: str) -> int:
        """The batch size of the feeds; SessionError where they are not the graph's."""
        if graph not in self._paths:
            have = ", ".join(self._paths) or "none: it is closed"
            raise SessionError(f"no graph {graph!r}; this session has {have}.")
        return self._checks[graph].batch_of(feeds)

    def compiled(self, graph: str, batch: int) -> Any:
        """The model compiled for one batch size; compiled here where it was not yet."""
        with self._lock:
            model = self._compiled.get((graph, batch))
            if model is None:
                model = self._compile(graph, batch)
                self._compiled[graph, batch] = model
            return model

    def name_ports(self, ports: Any) -> list[str]:
        """The contract's names of inputs or outputs; OpenVINO merges names of equal tensors."""
        specs = (*self._manifest.inputs, *self._manifest.outputs)
        known = [*(spec.name for spec in specs), *self.renews, *self.renews.values()]
        return [
            next((name for name in known if name in port.get_names()), port.get_any_name())
            for port in ports
        ]

    def _signatures(self, ports: Any) -> dict[str, Signature]:
        """Types and sides by name; the first side of a compiled model is its batch."""
        names = self.name_ports(ports)
        return {
            name: (port.get_element_type().to_dtype().name, (-1, *tuple(port.get_shape())[1:]))
            for name, port in zip(names, ports, strict=True)
        }

    def _compile(self, graph: str, batch: int) -> Any:
        """From the cache, or compiled and cached."""
        hashes = self._hashes[graph]
        found = self._cache.load(hashes, batch) if self._cache else None
        if found is not None:
            return found
        path = self._paths[graph]
        is_first = graph not in self._checks  # its hashes were checked a moment ago
        if not is_first and onnx_hashes(Path(path), {}) != hashes:
            raise SessionError(f"{path} was replaced since it was loaded. Open the bundle again.")
        compiled = self._compile_file(path, batch)
        if self._cache:
            self._cache.store(compiled, hashes, batch)
        return compiled

    def _compile_file(self, path: str, batch: int) -> Any:
        try:
            model = self._core.read_model(path)
            shapes = {}
            for each in model.inputs:
                shape = each.get_partial_shape()
                if shape.rank.get_length() and shape[0].is_dynamic:
                    shape[0] = batch
                shapes[each.get_any_name()] = shape
            model.reshape(shapes)
            return self._core.compile_model(model, _DEVICE, self._config)
        except RuntimeError as error:
            raise SessionError(
                f"OpenVINO refuses {path}: {summarise(error)} Export again, or try another backend."
            ) from None

    def _configure(self, threads: int | None, inference_precision: str) -> dict[str, Any]:
        # unpinned: threads that are bound to a core wait for it where other programs run, too
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        if threads is not None:
            if threads < 1:
                raise SessionError(f"threads is {threads}; expected 1 or more.")
            config["INFERENCE_NUM_THREADS"] = threads
        config["INFERENCE_PRECISION_HINT"] = self._choose_float(inference_precision)
        return config

    def _choose_float(self, inference_precision: str) -> str:
        """The type that float layers are computed in: "f32" or "bf16"."""
        if inference_precision not in _INFERENCE_PRECISIONS:
            raise SessionError(
                f"inference_precision is {inference_precision!r}; "
                f"expected {', '.join(_INFERENCE_PRECISIONS)}."
            )
        if inference_precision == "auto":
            return "bf16" if is_bf16_fast() else "f32"
        capabilities = self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        is_emulated = not is_bf16_fast() if cpu_flags() else "BF16" not in capabilities
        if inference_precision == "bf16" and is_emulated:
            raise SessionError(
                "this CPU has no instructions for bf16 (amx_bf16, avx512_bf16) and would emulate "
                "it, slower than float32. Use inference_precision='f32' or 'auto'."
            )
        return inference_precision


class OpenVinoStream:
    """One camera's requests and state.

    Of graphs with state one inference computes at a time: "key" and "nonkey" are compiled models
    of their own, which would run side by side on the same cores, and a frame may not start before
    the key frame that it needs. While one computes, the results of the one before are still read.
    So the state of a key frame lies in its own request's output, and may be read there until the
    next key frame but one.
    """

    def __init__(self, session: OpenVinoSession) -> None:
        self._session = session
        self._rings: dict[tuple[str, int], list[_Request]] = {}
        self._state: dict[str, Any] = {}  # input name -> the tensor that holds it
        self._last: OpenVinoTicket | None = None

    def submit(self, feeds: Feeds, graph: str = "model") -> OpenVinoTicket:
        """Start one inference; with two under way, or with state one, wait for the older."""
        batch = self._session.batch_of(feeds, graph)
        if self._session.renews and self._last is not None:
            self._last.collect()
        ring = self._rings.get((graph, batch))
        if ring is None:
            compiled = self._session.compiled(graph, batch)
            inputs = self._session.name_ports(compiled.inputs)
            outputs = self._session.name_ports(compiled.outputs)
            ring = [
                _Request(graph, batch, compiled.create_infer_request(), inputs, outputs)
                for _ in range(_REQUESTS_PER_STREAM)
            ]
            self._rings[graph, batch] = ring
        ticket = ring[0].start(feeds, self._state, self._session.renews)
        ring.append(ring.pop(0))
        self._last = ticket
        return ticket

    def close(self) -> None:
        """Wait for what runs, then free the requests."""
        for ring in self._rings.values():
            for request in ring:
                request.finish()
        self._rings.clear()
        self._state.clear()
        self._last = None


class _Request:
    """An infer request and the ticket whose results it holds."""

    def __init__(
        self, graph: str, batch: int, handle: Any, inputs: list[str], outputs: list[str]
    ) -> None:
        self.graph = graph
        self.batch = batch
        self.handle = handle
        self._inputs = inputs
        self._outputs = outputs
        self._owner: OpenVinoTicket | None = None

    def start(self, feeds: Feeds, state: dict[str, Any], renews: dict[str, str]) -> OpenVinoTicket:
        import openvino

        self.finish()
        tensors = []
        for index, name in enumerate(self._inputs):
            if name in feeds:
                array = np.require(feeds[name], requirements=("C", "W"))  # copies only if not
                tensor = openvino.Tensor(array, shared_memory=True)
            else:
                tensor = self._require(name, state)
            tensors.append(tensor)
            self.handle.set_input_tensor(index, tensor)
        self.handle.start_async()
        self._owner = OpenVinoTicket(self, tensors, state, renews)
        return self._owner

    def finish(self) -> None:
        """Take the results out before the buffers are used again."""
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.collect()

    def take_results(self, state: dict[str, Any], renews: dict[str, str]) -> Results:
        """Wait; results are copied, state is handed on as the tensor that it lies in."""
        self.handle.wait()
        results: Results = {}
        for index, name in enumerate(self._outputs):
            tensor = self.handle.get_output_tensor(index)
            if name in renews:
                state[renews[name]] = tensor
            else:
                results[name] = tensor.data.copy()
        return results

    def _require(self, name: str, state: dict[str, Any]) -> Any:
        """The tensor of a state input; SessionError where there is none of this batch."""
        found = tuple(state[name].shape)[0] if name in state else None
        if found != self.batch:
            raise refuse_state(self.graph, name, self.batch, found)
        return state[name]


class OpenVinoTicket:
    """An inference under way."""

    def __init__(
        self, request: _Request, inputs: list[Any], state: dict[str, Any], renews: dict[str, str]
    ) -> None:
        self.compute_ms: float | None = None
        self._request: _Request | None = request
        self._inputs = inputs  # the request reads the caller's arrays in place
        self._state = state
        self._renews = renews
        self._results: Results = {}
        self._error: SessionError | None = None

    def result(self) -> Results:
        """Wait; the arrays are copies, the caller's to keep."""
        self.collect()
        if self._error is not None:
            raise self._error
        return self._results

    def collect(self) -> None:
        """Wait and copy the results, once; an error is kept for `result`."""
        request, self._request = self._request, None
        if request is None:
            return
        try:
            self._results = request.take_results(self._state, self._renews)
            if self._renews:  # without state it may have waited behind another
                self.compute_ms = request.handle.latency
        except RuntimeError as error:
            self._error = SessionError(
                f"OpenVINO failed in graph {request.graph!r}: {summarise(error)}"
            )
        self._inputs.clear()
