"""ONNX Runtime: the reference on CPUs, and the fallback on NVIDIA GPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from runtime.contract.bundle import Bundle
from runtime.contract.errors import SessionError
from runtime.sessions.base import Array, Feeds, Results
from runtime.sessions.feeds import FeedCheck, fed_specs, summarise

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
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
        self._manifest = bundle.manifest
        self._engines: dict[str, Any] = {}
        self._checks: dict[str, FeedCheck] = {}
        self._outputs: dict[str, list[str]] = {}
        self._state_inputs: dict[str, list[str]] = {}
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

    def check(self, feeds: Feeds, graph: str) -> None:
        """Raise SessionError where the feeds are not the graph's."""
        if graph not in self._engines:
            have = ", ".join(self._engines) or "none: it is closed"
            raise SessionError(f"no graph {graph!r}; this session has {have}.")
        self._checks[graph].batch_of(feeds)

    def infer(self, feeds: Feeds, graph: str, state: dict[str, Array]) -> Results:
        """Run checked feeds; `state` is read and written in place."""
        given: dict[str, Array] = dict(feeds)
        for name in self._state_inputs[graph]:
            if name not in state:
                raise SessionError(
                    f"graph {graph!r} needs the state {name!r}, which no frame has set yet. "
                    "Run the graph 'key' first."
                )
            given[name] = state[name]
        names = self._outputs[graph]
        engine = self._engines.get(graph)
        if engine is None:
            raise SessionError("this session was closed while a frame was under way.")
        try:
            arrays = engine.run(names, given)
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise SessionError(
                f"ONNX Runtime failed in graph {graph!r}: {summarise(error)}"
            ) from None
        results: Results = dict(zip(names, arrays, strict=True))
        _move_state(results, state, self._manifest.state)
        return results


def _move_state(results: Results, state: dict[str, Array], names: Mapping[str, str]) -> None:
    """State is the stream's, not the caller's."""
    for output, name in names.items():
        if output in results:
            state[name] = results.pop(output)


class OrtStream:
    """One camera's state; a thread of its own runs what is submitted, in order."""

    def __init__(self, session: OrtSession) -> None:
        self._session = session
        self._state: dict[str, Array] = {}
        self._worker: ThreadPoolExecutor | None = None

    def submit(self, feeds: Feeds, graph: str = "model") -> OrtTicket:
        """Start one inference beside the caller's thread."""
        self._session.check(feeds, graph)
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "kestrel-ort")
        return OrtTicket(self._worker.submit(self._session.infer, feeds, graph, self._state))

    def run(self, feeds: Feeds, graph: str = "model") -> Results:
        """Run in the caller's thread; for `Session.run`, which has nothing to overlap."""
        self._session.check(feeds, graph)
        return self._session.infer(feeds, graph, self._state)

    def close(self) -> None:
        """End the thread; what is submitted still finishes."""
        if self._worker is not None:
            self._worker.shutdown(wait=True)
            self._worker = None


class OrtTicket:
    """An inference under way."""

    def __init__(self, future: Future[Results]) -> None:
        self._future = future

    def result(self) -> Results:
        """Wait; the arrays are the caller's."""
        return self._future.result()


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
