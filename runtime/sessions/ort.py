"""ONNX Runtime: the reference on CPUs, and the fallback on NVIDIA GPUs."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np

from runtime.contract.bundle import Bundle
from runtime.contract.errors import SessionError
from runtime.sessions.base import Feeds, Results
from runtime.sessions.feeds import FeedCheck, fed_specs, summarise
from runtime.sessions.state import Signature, check_state, refuse_state

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_TYPES = {  # of tensors: ONNX Runtime's names that are not NumPy's
    "float": "float32",
    "float16": "float16",
    "double": "float64",
}
_LOG_FATAL = 4  # errors come as exceptions; the log would say them twice


def open_session(
    bundle: Bundle,
    precision: str,
    *,
    device: str = "cpu",
    threads: int | None = None,
    spin: bool = False,
) -> OrtSession:
    """Load a bundle's graphs into ONNX Runtime.

    Args:
        bundle: what to load.
        precision: one of the manifest's; int8 takes the bundle's file for CPUs where it has one.
        device: "cpu" or "cuda".
        threads: for one inference; None takes every core this process may use.
        spin: threads wait in a busy loop between layers: faster alone, slower beside others.

    Raises:
        SessionError: the provider is absent, or ONNX Runtime refuses the graph.
        BundleError: a file is missing or damaged.
    """
    return OrtSession(bundle, precision, device=device, threads=threads, spin=spin)


class OrtSession:
    """A bundle in ONNX Runtime; safe to share between threads, its streams are not."""

    backend = "onnxruntime"

    def __init__(
        self, bundle: Bundle, precision: str, *, device: str, threads: int | None, spin: bool
    ) -> None:
        self.precision = precision
        self.device = "CPU" if device == "cpu" else "NVIDIA GPU (CUDA provider)"
        self._place = device  # where state stays
        self._renews = bundle.manifest.state
        self._engines: dict[str, Any] = {}
        self._checks: dict[str, FeedCheck] = {}
        self._outputs: dict[str, list[str]] = {}
        self._state_inputs: dict[str, list[str]] = {}
        gives: dict[str, dict[str, Signature]] = {}
        takes: dict[str, dict[str, Signature]] = {}
        for graph in bundle.manifest.graphs:
            is_cpu_file = device == "cpu" and bundle.has_file(graph, precision, "cpu")
            path = bundle.file(graph, precision, "cpu" if is_cpu_file else "portable")
            engine = _load(str(path), device, threads, spin)
            names = [each.name for each in engine.get_inputs()]
            fed = fed_specs(bundle.manifest, names)
            self._engines[graph] = engine
            self._checks[graph] = FeedCheck(bundle.manifest, graph, fed)
            self._outputs[graph] = [each.name for each in engine.get_outputs()]
            fed_names = {spec.name for spec in fed}
            self._state_inputs[graph] = [name for name in names if name not in fed_names]
            gives[graph] = {each.name: _signature(each) for each in engine.get_outputs()}
            takes[graph] = {each.name: _signature(each) for each in engine.get_inputs()}
        check_state(self._renews, gives, takes)
        self._own: OrtStream | None = None

    def open_stream(self) -> OrtStream:
        """State of one more camera."""
        return OrtStream(self)

    def run(self, feeds: Feeds, graph: str = "model") -> Results:
        """Run on a stream of the session's own, and wait. Not from two threads at once."""
        if self._own is None:
            self._own = self.open_stream()
        return self._own.run(feeds, graph)

    def close(self) -> None:
        """Free the engines."""
        if self._own is not None:
            self._own.close()
        self._engines.clear()

    def check(self, feeds: Feeds, graph: str) -> int:
        """The batch size of the feeds; SessionError where they are not the graph's."""
        if graph not in self._engines:
            have = ", ".join(self._engines) or "none: it is closed"
            raise SessionError(f"no graph {graph!r}; this session has {have}.")
        return self._checks[graph].batch_of(feeds)

    def infer(
        self, feeds: Feeds, graph: str, batch: int, state: dict[str, Any]
    ) -> tuple[Results, float]:
        """Run checked feeds; `state` is read and renewed in place.

        Returns:
            The results, and the milliseconds that they took.
        """
        for name in self._state_inputs[graph]:
            found = state[name].shape()[0] if name in state else None
            if found != batch:
                raise refuse_state(graph, name, batch, found)
        engine = self._engines.get(graph)
        if engine is None:
            raise SessionError("this session was closed while a frame was under way.")
        names = self._outputs[graph]
        begun = perf_counter()
        try:
            if self._renews:
                results = self._run_bound(engine, graph, feeds, state)
            else:
                results = dict(zip(names, engine.run(names, dict(feeds)), strict=True))
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise SessionError(
                f"ONNX Runtime failed in graph {graph!r}: {summarise(error)}"
            ) from None
        return results, (perf_counter() - begun) * 1e3

    def _run_bound(self, engine: Any, graph: str, feeds: Feeds, state: dict[str, Any]) -> Results:
        """State stays in ONNX Runtime's own memory on the device, and is passed on without a copy.

        Each key frame's state is memory of its own: a frame under way keeps the one it reads.
        """
        binding = engine.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._state_inputs[graph]:
            binding.bind_ortvalue_input(name, state[name])
        names = self._outputs[graph]
        for name in names:
            binding.bind_output(name, self._place if name in self._renews else "cpu")
        engine.run_with_iobinding(binding)
        values = dict(zip(names, binding.get_outputs(), strict=True))
        state.update(
            (self._renews[name], values.pop(name)) for name in names if name in self._renews
        )
        return {name: value.numpy() for name, value in values.items()}


class OrtStream:
    """One camera's state; a thread of its own runs what is submitted, in order."""

    def __init__(self, session: OrtSession) -> None:
        self._session = session
        self._state: dict[str, Any] = {}  # input name -> ONNX Runtime's value
        self._worker: ThreadPoolExecutor | None = None

    def submit(self, feeds: Feeds, graph: str = "model") -> OrtTicket:
        """Start one inference beside the caller's thread."""
        batch = self._session.check(feeds, graph)
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "kestrel-ort")
        infer = self._session.infer
        return OrtTicket(self._worker.submit(infer, feeds, graph, batch, self._state))

    def run(self, feeds: Feeds, graph: str = "model") -> Results:
        """Run in the caller's thread; for `Session.run`, which has nothing to overlap."""
        batch = self._session.check(feeds, graph)
        return self._session.infer(feeds, graph, batch, self._state)[0]

    def close(self) -> None:
        """End the thread; what is submitted still finishes."""
        if self._worker is not None:
            self._worker.shutdown(wait=True)
            self._worker = None
        self._state.clear()


class OrtTicket:
    """An inference under way."""

    def __init__(self, future: Future[tuple[Results, float]]) -> None:
        self.compute_ms: float | None = None
        self._future = future

    def result(self) -> Results:
        """Wait; the arrays are the caller's."""
        results, self.compute_ms = self._future.result()
        return results


def _signature(port: Any) -> Signature:
    """Type and sides of an input or output; a side with a name is the batch."""
    kind = port.type.removeprefix("tensor(").removesuffix(")")
    sides = tuple(side if isinstance(side, int) else -1 for side in port.shape)
    return _TYPES.get(kind, kind), sides


def _load(path: str, device: str, threads: int | None, spin: bool) -> Any:
    import onnxruntime

    provider = _PROVIDERS.get(device)
    if provider is None:
        raise SessionError(f"unknown device {device!r}; expected {' or '.join(_PROVIDERS)}.")
    if provider not in onnxruntime.get_available_providers():
        raise SessionError(
            f"this ONNX Runtime has no {provider}. Install onnxruntime-gpu, or use the CPU."
        )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = _num_threads(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    providers = list(dict.fromkeys((provider, _PROVIDERS["cpu"])))
    try:
        engine = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise SessionError(
            f"ONNX Runtime refuses {path}: {summarise(error)} Export again, or try another backend."
        ) from None
    if engine.get_providers()[0] != provider:
        raise SessionError(
            f"ONNX Runtime fell back to {engine.get_providers()[0]}; expected {provider}. "
            "Check that its CUDA and cuDNN libraries are installed."
        )
    return engine


def _num_threads(threads: int | None) -> int:
    """ONNX Runtime's own choice (0) unless this process is bound to fewer cores than there are."""
    if threads is not None:
        if threads < 1:
            raise SessionError(f"threads is {threads}; expected 1 or more.")
        return threads
    if not hasattr(os, "sched_getaffinity"):
        return 0
    allowed = len(os.sched_getaffinity(0))
    return 0 if allowed == os.cpu_count() else allowed
