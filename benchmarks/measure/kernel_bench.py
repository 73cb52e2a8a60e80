"""KestrelSelect and KestrelNms on a GPU: their results, whether they repeat, how long they take.

Each input set has its own buffers; a CUDA graph runs all sets in turn, which is more memory than
the GPU's caches hold, and its replays are timed by events.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure.selection import Arrays, Gpu, Head, keep
from runtime.engines.kernels.launching import Driver, LoadedKernel, load_kernel
from runtime.engines.kernels.letterbox import PlacedFrame
from runtime.engines.kernels.shipped import NMS, SELECT, SELECT_STRETCH, Kernel, Version
from runtime.preprocess import Letterbox
from runtime.sessions.buffers import Cuda
from runtime.sessions.frame_upload import GpuLetterbox

COPIED_NBYTES = 256 << 20  # to measure the memory's bandwidth with
NUM_COPIES = 16
EMPTY_LAUNCHES = 64
GREEDY = 0
SCORE_TOLERANCE = 2e-6  # of a sigmoid in float32
WORK = ("select", "nms", "both")


@dataclass
class InputSet:
    """One input on the GPU, and room for what comes of it.

    Attributes:
        feeds: on the host. cleanup: frees the rest.
        addresses: of all that lies on the GPU, by name.
        shapes: of what comes back, with its type.
    """

    feeds: Arrays
    cleanup: contextlib.ExitStack
    addresses: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[tuple[int, ...], type]] = field(default_factory=dict)


class KernelBench:
    """Both kernels in one GPU, with a stream of their own."""

    def __init__(self, cuda: Cuda, driver: Driver) -> None:
        """SessionError or EngineError where the GPU or its driver takes no kernel of ours."""
        self._cuda, self._driver = cuda, driver
        self._cleanup = contextlib.ExitStack()
        cuda.make_current()
        self.device = cuda.device()
        major, minor = (int(part) for part in self.device.compute_capability.split("."))
        capability: Version = (major, minor)
        try:
            self._stream = cuda.create_stream()
            self._cleanup.callback(cuda.destroy_stream, self._stream)
            self._select = self._load(driver, SELECT, capability)
            self._nms = self._load(driver, NMS, capability)
        except BaseException:
            self._cleanup.close()
            raise

    def __enter__(self) -> KernelBench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cuda.drain_stream(self._stream)
        self._cleanup.close()

    @contextlib.contextmanager
    def place(self, head: Head, feeds: Arrays) -> Iterator[InputSet]:
        """An input on the GPU meanwhile; the boxes of its candidates are the reference's."""
        with contextlib.ExitStack() as stack:
            placed = InputSet(feeds, stack)
            self._fill(head, placed)
            yield placed
            self._cuda.wait_for_stream(self._stream)

    def _fill(self, head: Head, placed: InputSet) -> None:
        batch, rows, most = head.batch, head.candidates, head.kept
        feeds, blocks = placed.feeds, self._blocks(head)
        for name in ("logits", "score_threshold", "iou_threshold"):
            self._upload(placed, name, feeds[name])
        chosen = np.zeros((batch, rows, 4), np.float32)
        for image in range(batch):
            flat = keep(head, feeds, image).flat
            chosen[image, : len(flat)] = feeds["boxes"][image][flat // head.classes]
        self._upload(placed, "boxes", chosen)
        placed.shapes = {
            "scores": ((batch, rows), np.float32),
            "anchors": ((batch, rows), np.int64),
            "classes": ((batch, rows), np.int64),
            "scratch": ((batch, blocks, rows + 1), np.int64),
            "num_detections": ((batch,), np.int32),
            "det_boxes": ((batch, most, 4), np.float32),
            "det_scores": ((batch, most), np.float32),
            "det_classes": ((batch, most), np.int32),
            "det_indices": ((batch, most), np.int64),
        }
        for name, (shape, kind) in placed.shapes.items():
            self._allocate(placed, name, int(np.prod(shape)) * np.dtype(kind).itemsize)

    def run(self, head: Head, placed: InputSet) -> Arrays:
        """Both kernels once, one after the other; their outputs but for the scratch."""
        self._enqueue("both", head, placed)
        names = [name for name in placed.shapes if name != "scratch"]
        return {name: self._download(placed, name) for name in names}

    def time_us(self, work: str, head: Head, sets: Sequence[InputSet], num_replays: int) -> float:
        """Microseconds of one input, the mean over all sets and replays.

        Args:
            work: one of WORK. For "nms" run the sets before.
            head: of all sets.
            sets: to go through in turn.
            num_replays: of the graph with all of them, after one that is not timed.
        """

        def enqueue() -> None:
            for placed in sets:
                self._enqueue(work, head, placed)

        return self._time_graph_us(enqueue, num_replays) / len(sets)

    def time_letterbox_us(self, letterbox: Letterbox, num_frames: int, num_replays: int) -> float:
        """Microseconds for one BGR frame that lies on the GPU; so many frames in turn."""
        height, width = letterbox.source_hw
        rows, columns = letterbox.network_hw
        with contextlib.ExitStack() as stack:
            kernel = GpuLetterbox.open(self._cuda, self._driver)
            stack.callback(kernel.close)
            sizes = [rows * columns * 3] + [height * width * 3] * num_frames
            addresses = [self._cuda.allocate_device(nbytes) for nbytes in sizes]
            for address in addresses:
                stack.callback(self._cuda.free_device, address)
            images, *frames = addresses

            def enqueue() -> None:
                for frame in frames:
                    placed = PlacedFrame(frame, width * 3, 3, letterbox)
                    kernel.launch([placed], images, self._stream)

            return self._time_graph_us(enqueue, num_replays) / num_frames

    def measure_gpu(self, clock_hz: float) -> Gpu:
        """Bandwidth by copies on the device, a launch by suppressing nothing.

        Args:
            clock_hz: of a multiprocessor.
        """
        with contextlib.ExitStack() as stack:
            to, source = (self._cuda.allocate_device(COPIED_NBYTES) for _ in range(2))
            for address in (to, source):
                stack.callback(self._cuda.free_device, address)

            def copy() -> None:
                for _ in range(NUM_COPIES):
                    self._cuda.copy_on_device(to, source, COPIED_NBYTES, self._stream)

            copied_us = self._time_graph_us(copy, 3)
        nothing = Head(32, 1, 32, kept=1)
        feeds: Arrays = {
            "logits": np.zeros((1, 32, 1), np.float32),
            "boxes": np.zeros((1, 32, 4), np.float32),
            "score_threshold": np.ones((1, 1), np.float32),
            "iou_threshold": np.ones(1, np.float32),
        }
        with self.place(nothing, feeds) as placed:
            self.run(nothing, placed)
            launch_us = self.time_us("nms", nothing, [placed] * EMPTY_LAUNCHES, 3)
        moved = 2 * COPIED_NBYTES * NUM_COPIES  # read and written
        return Gpu(moved / copied_us * 1e6, clock_hz, launch_us)

    def _time_graph_us(self, enqueue: Callable[[], None], num_replays: int) -> float:
        cuda, stream = self._cuda, self._stream
        with contextlib.ExitStack() as stack:
            graph = cuda.capture(stream, enqueue)
            stack.callback(cuda.destroy_executable, graph)
            events = [cuda.create_event(is_timed=True) for _ in range(2)]
            for event in events:
                stack.callback(cuda.destroy_event, event)
            cuda.launch(graph, stream)
            cuda.record_event(events[0], stream)
            for _ in range(num_replays):
                cuda.launch(graph, stream)
            cuda.record_event(events[1], stream)
            cuda.wait_for_event(events[1])
            return cuda.elapsed_ms(*events) * 1e3 / num_replays

    def _enqueue(self, work: str, head: Head, placed: InputSet) -> None:
        at = placed.addresses
        if work in ("select", "both"):
            numbers = (head.anchors, head.classes, head.candidates, 1)
            names = ("scores", "anchors", "classes", "scratch")
            self._select.launch(
                self._stream,
                (self._blocks(head), head.batch, 1),
                (SELECT.max_threads, 1, 1),
                [at["logits"], at["score_threshold"], *numbers, *(at[name] for name in names)],
            )
        if work in ("nms", "both"):
            inputs = ("boxes", "scores", "classes", "iou_threshold")
            outputs = ("num_detections", "det_boxes", "det_scores", "det_classes", "det_indices")
            numbers = (head.candidates, head.kept, GREEDY, 0)
            self._nms.launch(
                self._stream,
                (head.batch, 1, 1),
                (NMS.max_threads, 1, 1),
                [*(at[name] for name in inputs), *numbers, *(at[name] for name in outputs)],
            )

    def _load(self, driver: Driver, kernel: Kernel, capability: Version) -> LoadedKernel:
        loaded = load_kernel(driver, kernel, capability)
        self._cleanup.callback(loaded.close)
        return loaded

    def _blocks(self, head: Head) -> int:
        return -(-head.anchors * head.classes // SELECT_STRETCH)

    def _allocate(self, placed: InputSet, name: str, nbytes: int) -> None:
        placed.addresses[name] = self._cuda.allocate_device(nbytes)
        placed.cleanup.callback(self._cuda.free_device, placed.addresses[name])

    def _upload(self, placed: InputSet, name: str, array: NDArray[Any]) -> None:
        self._allocate(placed, name, array.nbytes)
        with self._pinned(array.nbytes) as (address, memory):
            memory[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self._cuda.copy_to_device(placed.addresses[name], address, array.nbytes, self._stream)
            self._cuda.wait_for_stream(self._stream)

    def _download(self, placed: InputSet, name: str) -> NDArray[Any]:
        shape, kind = placed.shapes[name]
        nbytes = int(np.prod(shape)) * np.dtype(kind).itemsize
        with self._pinned(nbytes) as (address, memory):
            self._cuda.copy_to_host(address, placed.addresses[name], nbytes, self._stream)
            self._cuda.wait_for_stream(self._stream)
            copied: NDArray[Any] = memory.copy().view(kind).reshape(shape)
        return copied

    @contextlib.contextmanager
    def _pinned(self, nbytes: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        address = self._cuda.allocate_pinned(nbytes)
        try:
            raw = (ctypes.c_ubyte * nbytes).from_address(address)
            yield address, np.ctypeslib.as_array(raw)
        finally:
            self._cuda.free_pinned(address)


def find_fault(head: Head, feeds: Arrays, got: Arrays) -> str:
    """How results differ from the reference, in words; empty where they do not."""
    for image in range(head.batch):
        expected = keep(head, feeds, image)
        count, kept = len(expected.flat), len(expected.rows)
        flat = got["anchors"][image] * head.classes + got["classes"][image]
        if not np.array_equal(flat[:count], expected.flat) or flat[count:].any():
            return f"image {image}: other candidates are selected"
        logits = feeds["logits"][image].astype(np.float64).reshape(-1)[expected.flat]
        scores = 1 / (1 + np.exp(-logits))
        if not np.allclose(got["scores"][image, :count], scores, rtol=0, atol=SCORE_TOLERANCE):
            return f"image {image}: scores differ by more than {SCORE_TOLERANCE}"
        if got["num_detections"][image] != kept:
            return f"image {image}: {got['num_detections'][image]} rows are kept, not {kept}"
        if not np.array_equal(got["det_indices"][image, :kept], expected.rows):
            return f"image {image}: other rows are kept"
        boxes = feeds["boxes"][image][expected.flat // head.classes]
        gathered = {
            "det_boxes": (boxes[expected.rows], 0),
            "det_scores": (got["scores"][image][expected.rows], 0),
            "det_classes": (got["classes"][image][expected.rows], -1),
            "det_indices": (expected.rows, 0),
        }
        for name, (wanted, padding) in gathered.items():
            rows = got[name][image]
            if not np.array_equal(rows[:kept], wanted) or (rows[kept:] != padding).any():
                return f"image {image}: {name} is not what was kept, then {padding}"
        if got["scores"][image, count:].any():
            return f"image {image}: scores of rows that nothing was selected for are not 0"
    return ""
