"""TensorRT and TensorRT-RTX: engines from the cache, run with CUDA graphs from fixed buffers."""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np

from runtime.contract.bundle import Bundle
from runtime.contract.errors import SessionError
from runtime.contract.outputs import IMAGE
from runtime.engines.audit import Audit
from runtime.engines.build import BuildOptions
from runtime.engines.cache import EngineFile, find_or_build
from runtime.engines.check import check_engines
from runtime.engines.flavour import Flavour, load_flavour
from runtime.engines.inspector_layers import audit_engine
from runtime.engines.kernels.launching import Driver
from runtime.engines.plugins import with_plugins
from runtime.sessions.base import Feeds, RawFrames, Results
from runtime.sessions.buffers import Cuda
from runtime.sessions.frame_upload import FrameUpload, GpuLetterbox
from runtime.sessions.gpu import why_no_gpu
from runtime.sessions.state import check_state
from runtime.sessions.trt_graphs import LoadedGraph, load_graph
from runtime.sessions.trt_lanes import Lane, State, TrtTicket

log = logging.getLogger("kestrel.runtime")


def open_session(
    bundle: Bundle,
    precision: str,
    *,
    flavour: str = "tensorrt",
    cuda_graphs: bool = True,
    build: BuildOptions | None = None,
    engines_folder: Path | None = None,
    gpu_letterbox: bool = True,
) -> TrtSession:
    """Load a bundle's graphs into TensorRT; engines that are missing here are built first.

    Args:
        bundle: what to load.
        precision: one of the manifest's.
        flavour: "tensorrt" or "tensorrt_rtx".
        cuda_graphs: replay one captured CUDA graph an inference; off only for debugging.
        build: how missing engines are built; None takes the newest engine that runs here, and
            builds as TensorRT chooses where there is none.
        engines_folder: of the cache; None is the bundle's own.
        gpu_letterbox: resize and pad frames on the GPU, where the kernel loads and proves itself.

    Raises:
        NoFlavourError: that TensorRT is not installed, or unusable.
        SessionError: no GPU, no cuda-python, out of memory, or TensorRT refuses the graph.
        EngineError: an engine disagrees with PyTorch on the bundle's samples, or computes in
            another precision than was asked for.
        BundleError: a file is missing or damaged.
    """
    toolkit = load_flavour(flavour)
    reason = why_no_gpu()  # asked first: TensorRT ends the process where there is no driver
    if reason:
        raise SessionError(f"{toolkit} needs a GPU: {reason}.")
    cuda = Cuda.load()
    session = TrtSession(
        bundle,
        precision,
        toolkit,
        cuda,
        letterboxer=_open_letterboxer(cuda) if gpu_letterbox else None,
        cuda_graphs=cuda_graphs,
        build=build,
        engines_folder=engines_folder,
    )
    try:
        check_engines(session, bundle, session.engine_files)
    except BaseException:
        session.close()
        raise
    return session


def _open_letterboxer(cuda: Cuda) -> GpuLetterbox | None:
    """The letterbox kernel, or None with one line in the log where the CPU has to do it."""
    try:
        return GpuLetterbox.open(cuda, Driver.load())
    # Without OpenCV it cannot prove itself; cuda-python raises RuntimeError where the driver lacks
    # a function.
    except (SessionError, ImportError, RuntimeError) as error:
        log.warning("frames are letterboxed on the CPU: %s", error)
        return None


class TrtSession:
    """A bundle in TensorRT; safe to share between threads, its streams are not."""

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        flavour: Flavour,
        cuda: Cuda,
        *,
        cuda_graphs: bool = True,
        build: BuildOptions | None = None,
        engines_folder: Path | None = None,
        letterboxer: GpuLetterbox | None = None,
    ) -> None:
        """As `open_session`, with the libraries given.

        Args:
            letterboxer: becomes the session's own; None where frames are letterboxed before.
        """
        trt = flavour.module
        self.backend = flavour.name
        self.precision = precision
        self.toolkit = str(flavour)
        self.engine_files: dict[str, EngineFile] = {}
        self._cuda = cuda
        self._cuda_graphs = cuda_graphs
        self._lock = threading.RLock()
        self._own: TrtStream | None = None
        self._streams: list[TrtStream] = []
        self._graphs: dict[str, LoadedGraph] = {}
        self._letterboxer = letterboxer
        device = cuda.device()
        self.device = str(device)

        def find(graph: str, is_forced: bool) -> EngineFile:
            found = with_plugins(
                lambda code: find_or_build(
                    bundle,
                    graph,
                    precision,
                    flavour,
                    device=device,
                    options=build,
                    plugin_sha256=code,
                    folder=engines_folder,
                    is_forced=is_forced,
                ),
                flavour,
                device,
                build,
            )
            self.engine_files[graph] = found.without_plan()
            return found

        # Host code in engines stays refused: `engine_host_code_allowed` is False by default.
        try:
            self._runtime: Any = trt.Runtime(flavour.logger)
        except (TypeError, RuntimeError):  # pybind11: the factory gave nothing
            said = "; ".join(flavour.library_log.take()) or "no reason given"
            raise SessionError(f"{flavour} does not start: {said}. Check the driver.") from None
        try:
            for name in bundle.manifest.graphs:
                self._graphs[name] = load_graph(
                    bundle,
                    name,
                    flavour,
                    self._runtime,
                    lambda is_forced, name=name: find(name, is_forced),  # type: ignore[misc]
                )
            check_state(
                bundle.manifest.state,
                {name: graph.gives for name, graph in self._graphs.items()},
                {name: graph.takes for name, graph in self._graphs.items()},
            )
        except BaseException:
            self.close()
            raise

    def open_stream(self) -> TrtStream:
        """Buffers and state for one more camera; memory is taken at the first use of a batch."""
        with self._lock:
            if self._runtime is None:
                raise SessionError("the session is closed. Open another.")
            stream = TrtStream(
                self._cuda, self._graphs, self._lock, self._cuda_graphs, self._letterboxer
            )
            self._streams.append(stream)
            return stream

    def run(self, feeds: Feeds, graph: str = "model") -> Results:
        """Run on a stream of the session's own, and wait."""
        with self._lock:
            if self._own is None:
                self._own = self.open_stream()
            ticket = self._own.submit(feeds, graph)
        return ticket.result()

    def audit(self, graph: str = "model") -> Audit:
        """What an engine's layers compute in; types are known after a first inference."""
        with self._lock:
            loaded = self._graphs[graph]
            context = self._own.context(graph) if self._own is not None else None
            return audit_engine(loaded.engine, loaded.flavour, self.precision, context=context)

    def close(self) -> None:
        """Free everything, open streams included; twice is harmless."""
        with self._lock:
            for stream in self._streams:
                stream.close()
            self._streams.clear()
            self._own = None
            for graph in self._graphs.values():
                graph.release()  # engines go before the runtime
            self._graphs.clear()
            self._runtime = None
            if self._letterboxer is not None:
                self._letterboxer.close()


class TrtStream:
    """One camera's CUDA stream, buffers and state."""

    def __init__(
        self,
        cuda: Cuda,
        graphs: dict[str, LoadedGraph],
        lock: threading.RLock,
        cuda_graphs: bool,
        letterboxer: GpuLetterbox | None = None,
    ) -> None:
        self._cuda = cuda
        self._graphs = graphs
        self._lock = lock
        self._cuda_graphs = cuda_graphs
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._state = State(cuda)
        self._cleanup = contextlib.ExitStack()
        self._stream = cuda.create_stream()
        self._cleanup.callback(cuda.destroy_stream, self._stream)
        self._cleanup.callback(self._state.close)
        self._upload: FrameUpload | None = None
        if letterboxer is not None:
            self._upload = letterboxer.open_upload(self._stream)
            self._cleanup.callback(self._upload.close)
        self._is_open = True

    @property
    def takes_frames(self) -> bool:
        """Whether `submit_frames` may be used."""
        return self._upload is not None

    def submit(self, feeds: Feeds, graph: str = "model") -> TrtTicket:
        """Queue one inference; the first of a graph and batch size also sets it up."""
        return self._submit(feeds, graph, None)

    def submit_frames(self, frames: RawFrames, feeds: Feeds, graph: str = "model") -> TrtTicket:
        """As `submit`, of frames that are letterboxed on the GPU; they may be reused at once.

        Args:
            frames: in place of the image.
            feeds: the other inputs.
            graph: as of `submit`.
        """
        assert self.takes_frames
        shape = (frames.batch, *frames.letterboxes[0].network_hw, 3)
        # What the kernel will write, for the check of the feeds: one byte, seen everywhere.
        image = np.broadcast_to(np.uint8(0), shape)
        return self._submit({IMAGE.name: image, **feeds}, graph, frames)

    def _submit(self, feeds: Feeds, graph: str, frames: RawFrames | None) -> TrtTicket:
        if not self._is_open:
            raise SessionError("the stream is closed. Open another.")
        if graph not in self._graphs:
            raise SessionError(f"no graph {graph!r}; this session has {', '.join(self._graphs)}.")
        batch = self._graphs[graph].check.batch_of(feeds)
        lane = self._lanes.get((graph, batch))
        if lane is None:
            lane = self._open_lane(graph, batch)
        return lane.submit(feeds, frames)

    def uses_cuda_graph(self, graph: str = "model", batch: int = 1) -> bool:
        """Whether inferences of that kind replay a graph of ours; RTX makes its own."""
        lane = self._lanes.get((graph, batch))
        return lane is not None and lane.uses_cuda_graph

    def context(self, graph: str = "model") -> Any:
        """TensorRT's context of a graph, its shapes set; None before the first inference."""
        lanes = [lane for (name, _), lane in self._lanes.items() if name == graph]
        return lanes[0].context if lanes else None

    def close(self) -> None:
        """Free the buffers; tickets under way keep their results. Twice is harmless."""
        self._is_open = False
        with self._lock:
            self._cleanup.close()
            self._lanes.clear()

    def _open_lane(self, graph: str, batch: int) -> Lane:
        with self._lock:  # an engine makes one context at a time
            lane = Lane(
                self._cuda,
                self._stream,
                self._graphs[graph],
                batch,
                self._state,
                use_cuda_graphs=self._cuda_graphs,
                upload=self._upload,
            )
            self._cleanup.callback(lane.close)
            self._lanes[graph, batch] = lane
            return lane
