"""Frames letterboxed by the kernel on a fake GPU: results, copies, lifetimes, faults."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_bench import COLOURS, HEIGHT, WIDTH, assert_clean, colour_bundle
from fake_cuda import FakeCuda, cudaError_t
from fake_driver import CUresult, FakeDriver
from fake_tensorrt import FakeGraph, FakeTensorRT
from tiny_bundle import find_colours, paint

from runtime.contract.errors import SessionError
from runtime.engines.flavour import make_flavour
from runtime.engines.kernels.launching import Driver
from runtime.engines.kernels.shipped import LETTERBOX_ROWS
from runtime.predictor import Predictor
from runtime.preprocess import Letterbox
from runtime.sessions import trt as trt_session
from runtime.sessions.base import RawFrames
from runtime.sessions.buffers import Cuda
from runtime.sessions.frame_upload import GpuLetterbox
from runtime.sessions.trt import TrtSession

LEVELS = 1  # the kernel and OpenCV round their weights differently


@dataclasses.dataclass
class Bench:
    """A session that letterboxes, on fakes, and what its engine saw."""

    session: TrtSession
    cuda: FakeCuda
    driver: FakeDriver
    bundle: Any
    seen: list[np.ndarray]

    def predictor(self) -> Predictor:
        return Predictor(self.session, self.bundle.manifest, owns_session=False)


@pytest.fixture
def bundle(tmp_path):
    return colour_bundle(tmp_path)


@contextlib.contextmanager
def bench(bundle: Any, *, is_integrated: bool = False) -> Iterator[Bench]:
    """Closed when the block ends; then nothing may be left or have gone wrong."""
    cuda = FakeCuda(is_integrated=is_integrated)
    seen: list[np.ndarray] = []

    def look(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(feeds["image"].copy())
        return find_colours(feeds["image"], feeds["score_threshold"])

    trt = FakeTensorRT(cuda, {"model": FakeGraph(COLOURS.inputs, COLOURS.outputs, look)})
    driver = FakeDriver(cuda)
    checked = Cuda(cuda)
    session = TrtSession(
        bundle,
        "fp32",
        make_flavour("tensorrt", trt),
        checked,
        letterboxer=GpuLetterbox.open(checked, Driver(driver)),
    )
    cuda.calls.clear()
    driver.launched.clear()
    yield Bench(session, cuda, driver, bundle, seen)
    session.close()
    gc.collect()
    assert_clean(cuda, trt)


def frame_with(box: tuple[int, int, int, int], scale: int = 2, colour: int = 0) -> np.ndarray:
    """A frame of `scale` times the input's size with one object in it."""
    small = paint(HEIGHT, WIDTH, {colour: box})
    return np.repeat(np.repeat(small, scale, axis=0), scale, axis=1)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(height * width)
    return random.integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("is_integrated", [False, True], ids=["discrete", "shared memory"])
def test_predictor_finds_what_it_finds_with_the_cpus_letterbox(bundle, is_integrated):
    boxes = [(4, 8, 20, 24), (30, 10, 44, 22), (8, 30, 24, 40)]
    with bench(bundle, is_integrated=is_integrated) as each, each.predictor() as predictor:
        for box in boxes:
            found = predictor(frame_with(box))
            np.testing.assert_allclose(found.boxes_xyxy, 2 * np.array([box], np.float32))
        assert len(each.driver.launched) == len(boxes)
        found = predictor.batch([frame_with(box) for box in boxes])
        assert [len(one.boxes_xyxy) for one in found] == [1, 1, 1]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_engine_sees_the_cpus_letterbox_of_frames_of_any_size(bundle, channels):
    sizes = [(40, 90), (200, 60), (7, 5), (96, 128), (333, 201)]
    with bench(bundle) as each, each.predictor() as predictor:
        for size in sizes:
            frame = noise(*size, channels)
            predictor(frame)
            wanted = Letterbox.fit(size, bundle.manifest.geometry).apply(frame)
            difference = np.abs(each.seen[-1][0].astype(np.int16) - wanted)
            assert difference.max() <= LEVELS


def test_grey_frames_without_a_channel_axis_and_views_are_taken(bundle):
    with bench(bundle) as each, each.predictor() as predictor:
        whole = noise(150, 200)
        predictor(whole[10:100, 20:150])
        predictor(np.ascontiguousarray(whole[10:100, 20:150]))
        np.testing.assert_array_equal(each.seen[0], each.seen[1])
        predictor(whole[..., 0])
        predictor(np.repeat(whole[..., :1], 3, axis=2))
        np.testing.assert_array_equal(each.seen[2], each.seen[3])


def test_shared_memory_needs_no_copy_of_the_frame(bundle):
    copies = {}
    for is_integrated in (False, True):
        with bench(bundle, is_integrated=is_integrated) as each, each.predictor() as predictor:
            predictor(noise(60, 80))
            each.cuda.calls.clear()
            each.driver.launched.clear()
            predictor(noise(60, 80))  # now the rest is a CUDA graph
            copies[is_integrated] = each.cuda.calls.count("cudaMemcpyAsync")
            assert len(each.driver.launched) == 1
    assert copies == {False: 1, True: 0}


def test_rest_of_the_inference_is_replayed_as_a_cuda_graph(bundle):
    with bench(bundle) as each:
        stream = each.session.open_stream()
        predictor = each.predictor()
        for size in ((30, 40), (80, 60), (30, 40)):
            predictor(noise(*size))
        assert each.cuda.calls.count("cudaGraphLaunch") == 2
        predictor.close()
        stream.close()


def test_plain_feeds_still_work_where_frames_are_taken(bundle):
    with bench(bundle) as each:
        image = paint(HEIGHT, WIDTH, {0: (4, 8, 20, 24)})[None]
        feeds = {
            "image": image,
            "score_threshold": np.full((1, 3), 0.3, np.float32),
            "iou_threshold": np.full(1, 0.5, np.float32),
        }
        for _ in range(3):
            assert each.session.run(feeds)["num_detections"].tolist() == [1]
            np.testing.assert_array_equal(each.seen[-1], image)


def test_frame_may_be_reused_at_once_while_others_are_under_way(bundle):
    with bench(bundle) as each, each.predictor() as predictor:
        frame = frame_with((4, 8, 20, 24))
        tickets = []
        for x in range(5):
            frame[:] = frame_with((4 + 8 * x, 8, 20 + 8 * x, 24))
            tickets.append(predictor.submit(frame))
            frame[:] = 0
        for x, ticket in enumerate(tickets):
            wanted = np.array([[8 + 16 * x, 16, 40 + 16 * x, 48]], np.float32)
            np.testing.assert_allclose(ticket.result().boxes_xyxy, wanted)


def test_memory_grows_with_the_frames_and_then_stays(bundle):
    with bench(bundle) as each, each.predictor() as predictor:
        tickets = [predictor.submit(noise(10 * i, 12 * i)) for i in range(1, 12)]
        for ticket in tickets:
            ticket.result()
        predictor(noise(110, 132))  # the other of two buffers had a smaller one last
        each.cuda.calls.clear()
        for _ in range(4):
            predictor(noise(110, 132))
        assert not {"cudaMalloc", "cudaHostAlloc", "cudaFree"} & set(each.cuda.calls)


def test_batch_of_more_rows_than_a_launch_takes_goes_in_several(tmp_path):
    count = LETTERBOX_ROWS + 2
    bundle = colour_bundle(tmp_path, batches=(1, count))
    with bench(bundle) as each, each.predictor() as predictor:
        frames = [noise(20 + 3 * i, 50 - i) for i in range(count)]
        predictor.batch(frames)
        assert [grid[2] for _, grid, _ in each.driver.launched] == [LETTERBOX_ROWS, 2]
        batch = each.seen[-1]
        for row, frame in zip(batch, frames, strict=True):
            predictor(frame)
            np.testing.assert_array_equal(each.seen[-1][0], row)


def test_streams_in_threads_of_their_own_have_a_context(bundle):
    found: list[int] = []
    with bench(bundle) as each:

        def run() -> None:
            with each.predictor() as predictor:
                found.append(len(predictor(frame_with((4, 8, 20, 24))).boxes_xyxy))

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [1, 1, 1]


def test_session_may_be_closed_by_another_thread(bundle):
    with bench(bundle) as each:
        each.session.run(
            {
                "image": np.zeros((1, HEIGHT, WIDTH, 3), np.uint8),
                "score_threshold": np.full((1, 3), 0.3, np.float32),
                "iou_threshold": np.full(1, 0.5, np.float32),
            }
        )
        thread = threading.Thread(target=each.session.close)
        thread.start()
        thread.join()
    assert "cuModuleUnload" in each.cuda.calls


def test_wrong_frames_are_refused_in_words(bundle):
    with bench(bundle) as each, each.predictor() as predictor:
        for wrong in (noise(20, 20).astype(np.float32), noise(20, 20, 5), None):
            with pytest.raises(ValueError, match="frame"):
                predictor(wrong)
        assert len(predictor(frame_with((4, 8, 20, 24))).boxes_xyxy) == 1


def test_stream_goes_on_after_a_launch_that_failed(bundle):
    with bench(bundle) as each, each.predictor() as predictor:
        frame = frame_with((4, 8, 20, 24))
        predictor(frame)
        each.driver.fail("cuLaunchKernel", CUresult.CUDA_ERROR_OUT_OF_MEMORY)
        with pytest.raises(SessionError, match="cuLaunchKernel failed with CUDA_ERROR_OUT_OF"):
            predictor(frame)
        assert len(predictor(frame).boxes_xyxy) == 1


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc", "cudaMemcpyAsync"])
def test_stream_goes_on_after_a_larger_frame_found_no_room(bundle, call):
    with bench(bundle) as each, each.predictor() as predictor:
        predictor(noise(40, 40))
        each.cuda.fail(call, cudaError_t.cudaErrorMemoryAllocation)
        with pytest.raises(SessionError, match=call):
            predictor(noise(80, 80))
        frame = noise(80, 80)
        predictor(frame)
        wanted = Letterbox.fit((80, 80), bundle.manifest.geometry).apply(frame)
        assert np.abs(each.seen[-1][0].astype(np.int16) - wanted).max() <= LEVELS


@pytest.mark.parametrize("after", range(6))
def test_nothing_stays_allocated_when_the_kernel_cannot_prove_itself(after):
    for call in ("cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaMemcpyAsync"):
        cuda = FakeCuda()
        cuda.fail(call, cudaError_t.cudaErrorMemoryAllocation, after=after)
        with contextlib.suppress(SessionError):
            GpuLetterbox.open(Cuda(cuda), Driver(FakeDriver(cuda))).close()
        assert cuda.violations == []
        assert cuda.leaks() == []


def test_kernel_that_gives_other_pixels_is_not_used():
    cuda = FakeCuda()
    driver = FakeDriver(cuda)
    driver.does_nothing = True
    with pytest.raises(SessionError, match=r"agrees with the CPU in \d+.\d% of the values"):
        GpuLetterbox.open(Cuda(cuda), Driver(driver))
    assert cuda.leaks() == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (CUresult.CUDA_ERROR_INVALID_PTX, "cuModuleLoadData failed with CUDA_ERROR_INVALID_PTX"),
        ("old", "no PTX for compute capability 7.0"),
        ("cv2", "cv2"),
    ],
    ids=["driver refuses", "old GPU", "no OpenCV"],
)
def test_session_falls_back_to_the_cpu_with_one_line(monkeypatch, caplog, fault, words):
    cuda = FakeCuda()
    driver = FakeDriver(cuda)
    if fault == "old":
        cuda.capability = (7, 0)
    elif fault == "cv2":
        monkeypatch.setitem(sys.modules, "cv2", None)
    else:
        for _ in range(20):
            driver.fail("cuModuleLoadData", fault)
    monkeypatch.setattr(trt_session.Driver, "load", classmethod(lambda cls: cls(driver)))
    with caplog.at_level(logging.INFO, "kestrel.runtime"):
        assert trt_session._open_letterboxer(Cuda(cuda)) is None
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("frames are letterboxed on the CPU: ")
    assert words in caplog.messages[0]
    assert cuda.leaks() == []


@pytest.mark.parametrize(
    ("capability", "version", "target"),
    [
        ((7, 5), 12060, "sm_75"),
        ((8, 7), 12060, "sm_87"),
        ((8, 8), 13000, "sm_87"),
        ((9, 0), 12060, "sm_90"),
        ((11, 0), 13000, "sm_110"),
        ((12, 1), 13020, "sm_120"),
        ((12, 0), 12080, "sm_90"),  # its driver does not read what is made for it
    ],
)
def test_nearest_ptx_that_the_driver_reads_is_loaded(capability, version, target):
    cuda = FakeCuda()
    cuda.capability = capability
    driver = FakeDriver(cuda, version=version)
    GpuLetterbox.open(Cuda(cuda), Driver(driver)).close()
    assert driver.loaded == [target]


def test_next_ptx_is_tried_when_the_driver_refuses_one():
    cuda = FakeCuda()
    driver = FakeDriver(cuda)
    driver.fail("cuModuleLoadData", CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION)
    GpuLetterbox.open(Cuda(cuda), Driver(driver)).close()
    assert driver.loaded == ["sm_86"]


def test_module_without_the_entry_is_unloaded_again():
    cuda = FakeCuda()
    driver = FakeDriver(cuda)
    driver.fail("cuModuleGetFunction", CUresult.CUDA_ERROR_NOT_FOUND)
    with pytest.raises(SessionError, match="cuModuleGetFunction"):
        GpuLetterbox.open(Cuda(cuda), Driver(driver))
    assert cuda.leaks() == []


def test_session_closes_twice_and_frames_need_an_open_one(bundle):
    with bench(bundle) as each:
        stream = each.session.open_stream()
        frame = noise(20, 30)
        letterbox = Letterbox.fit((20, 30), bundle.manifest.geometry)
        each.session.close()
        with pytest.raises(SessionError, match="closed"):
            stream.submit_frames(RawFrames([frame], [letterbox], 1), {})
        each.session.close()


def test_every_name_of_the_driver_that_is_called_exists():
    driver = pytest.importorskip("cuda.bindings.driver")
    runtime = pytest.importorskip("cuda.bindings.runtime")
    played = [name for name in dir(FakeDriver) if name.startswith("cu")]
    assert len(played) >= 7
    for name in played:
        assert hasattr(driver, name), name
    for name in ("cudaSetDevice", "cudaDeviceGetAttribute"):
        assert hasattr(runtime, name), name
    assert hasattr(runtime.cudaDeviceAttr, "cudaDevAttrIntegrated")
    for error in CUresult:
        assert getattr(driver.CUresult, error.name) == error
