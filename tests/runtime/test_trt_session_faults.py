"""TensorRT sessions when things go wrong: the error says what, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
from fake_bench import (
    COLOURS,
    assert_clean,
    assert_same,
    bench,
    colour_bundle,
    expected,
    random_feeds,
    with_batches,
)
from fake_cuda import FakeCuda, cudaError_t
from fake_tensorrt import FakeTensorRT

from runtime.contract.errors import EngineError, SessionError
from runtime.engines.flavour import NoFlavourError, make_flavour
from runtime.sessions.buffers import Cuda
from runtime.sessions.gpu import why_no_gpu
from runtime.sessions.trt import TrtSession, open_session

NO_MEMORY = cudaError_t.cudaErrorMemoryAllocation
BROKEN = cudaError_t.cudaErrorIllegalAddress

SETUP_CALLS = [
    *[("cudaMalloc", index) for index in range(7)],  # three inputs, four outputs
    *[("cudaHostAlloc", index) for index in range(14)],  # the same for each of two slots
    *[("cudaEventCreateWithFlags", index) for index in range(2)],
    *[("cudaMemcpyAsync", index) for index in range(7)],
    ("cudaStreamSynchronize", 0),
    ("cudaStreamSynchronize", 1),
    ("cudaEventRecord", 0),
]


@pytest.fixture
def bundle(tmp_path):
    return colour_bundle(tmp_path)


@pytest.mark.parametrize(("call", "after"), SETUP_CALLS)
def test_failing_setup_names_the_call_leaks_nothing_and_can_be_tried_again(bundle, call, after):
    feeds = random_feeds(1, 1)
    with bench(bundle) as each:
        stream = each.session.open_stream()
        each.cuda.fail(call, NO_MEMORY, after=after)
        with pytest.raises(SessionError, match=f"{call} failed with cudaErrorMemoryAllocation"):
            stream.submit(feeds)
        assert_same(stream.submit(feeds).result(), expected(feeds))


def test_failing_setup_frees_its_buffers_at_once(bundle):
    with bench(bundle) as each:
        stream = each.session.open_stream()
        each.cuda.fail("cudaHostAlloc", NO_MEMORY, after=5)
        with pytest.raises(SessionError):
            stream.submit(random_feeds(1, 1))
        assert each.cuda.allocations == {}
        gc.collect()
        assert "context" not in each.trt.alive


def test_failing_stream_creation_leaves_a_usable_session(bundle):
    with bench(bundle) as each:
        each.cuda.fail("cudaStreamCreateWithFlags", NO_MEMORY)
        with pytest.raises(SessionError, match="cudaStreamCreateWithFlags"):
            each.session.open_stream()
        each.session.run(random_feeds(1, 1))


@pytest.mark.parametrize("call", ["cudaGraphLaunch", "cudaEventRecord"])
def test_failing_submit_after_setup_can_be_tried_again(bundle, call):
    feeds = random_feeds(1, 2)
    with bench(bundle) as each:
        each.session.run(feeds)
        each.cuda.fail(call, BROKEN)
        with pytest.raises(SessionError, match=f"{call} failed with cudaErrorIllegalAddress"):
            each.session.run(feeds)
        assert not any(
            handle.queue for handle in each.cuda.handles.values() if handle.kind == "stream"
        )
        assert_same(each.session.run(feeds), expected(feeds))


def test_error_on_the_device_comes_out_of_the_ticket_every_time(bundle):
    with bench(bundle) as each:
        stream = each.session.open_stream()
        stream.submit(random_feeds(1, 1)).result()
        ticket = stream.submit(random_feeds(1, 2))
        each.cuda.fail("cudaEventSynchronize", BROKEN)
        for _ in range(2):
            with pytest.raises(SessionError, match="cudaErrorIllegalAddress"):
                ticket.result()


def test_close_frees_everything_although_the_device_is_broken(bundle, caplog):
    with bench(bundle) as each:
        stream = each.session.open_stream()
        stream.submit(random_feeds(1, 1)).result()
        ticket = stream.submit(random_feeds(1, 2))
        each.cuda.fail("cudaEventSynchronize", BROKEN)
        stream.close()
    with pytest.raises(SessionError, match="cudaErrorIllegalAddress"):
        ticket.result()


def test_engine_that_refuses_to_run_says_what_tensorrt_said(bundle):
    feeds = random_feeds(1, 2)
    with bench(bundle) as each:
        each.trt.num_failing_runs = 1
        with pytest.raises(SessionError, match="refuses to run.*does not feel like it"):
            each.session.run(feeds)
        assert_same(each.session.run(feeds), expected(feeds))


def test_shape_outside_the_profile_says_which_input(bundle):
    with bench(bundle) as each:
        graph = each.session._graphs["model"]
        graph.profiles[1], graph.profiles[4] = graph.profiles[4], graph.profiles[1]
        with pytest.raises(SessionError, match="refuses input 'image'.*outside the profile"):
            each.session.run(random_feeds(1, 2))


WRONG_FEEDS = {
    "a batch that the bundle has not": (lambda f: random_feeds(2, 0), "batch 2"),
    "a missing input": (lambda f: {"image": f["image"]}, "expected image, score_threshold"),
    "an unknown input": (lambda f: {**f, "mask": f["image"]}, "was fed"),
    "a wrong type": (lambda f: {**f, "image": f["image"].astype(np.float32)}, "float32"),
    "a wrong shape": (lambda f: {**f, "image": f["image"][:, :10]}, "10, 64"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_FEEDS.values(), ids=WRONG_FEEDS)
def test_wrong_feeds_are_refused_before_anything_is_queued(bundle, change, message):
    feeds = random_feeds(1, 0)
    with bench(bundle) as each:
        with pytest.raises(SessionError, match=message):
            each.session.run(change(feeds))
        assert each.trt.executed == []
        assert each.cuda.allocations == {}


def test_unknown_graph_is_refused_by_name(bundle):
    with bench(bundle) as each, pytest.raises(SessionError, match="no graph 'key'.*has model"):
        each.session.run(random_feeds(1, 0), "key")


def test_closing_twice_is_harmless_and_later_use_is_refused(bundle):
    with bench(bundle) as each:
        stream = each.session.open_stream()
        stream.submit(random_feeds(1, 0))
        stream.close()
        stream.close()
        with pytest.raises(SessionError, match="stream is closed"):
            stream.submit(random_feeds(1, 0))
        each.session.close()
        with pytest.raises(SessionError, match="session is closed"):
            each.session.run(random_feeds(1, 0))


def test_session_close_closes_its_open_streams(bundle):
    with bench(bundle) as each:
        streams = [each.session.open_stream() for _ in range(3)]
        for stream in streams:
            stream.submit(random_feeds(1, 0))
        each.session.close()
        with pytest.raises(SessionError, match="closed"):
            streams[0].submit(random_feeds(1, 0))


def _open(bundle, graph=COLOURS, **changes):
    cuda = FakeCuda()
    trt = FakeTensorRT(cuda, {"model": graph})
    for name, value in changes.items():
        setattr(trt, name, value)
    session = None
    try:
        session = TrtSession(bundle, "fp32", make_flavour("tensorrt", trt), Cuda(cuda))
        session.run(random_feeds(1, 0))
    finally:
        if session is not None:
            session.close()
        del session
    return trt


def test_engine_that_does_not_load_is_built_anew(bundle):
    assert _open(bundle).num_builds == 1
    assert _open(bundle, num_unloadable=1).num_builds == 1  # the first came from the cache
    assert _open(bundle).num_builds == 0


def test_new_engine_that_does_not_load_either_is_an_error(bundle):
    with pytest.raises(EngineError, match="does not load its own.*of another version"):
        _open(bundle, num_unloadable=2)


def test_failing_constructor_leaves_nothing(bundle):
    cuda = FakeCuda()
    trt = FakeTensorRT(cuda, {"model": COLOURS})
    trt.num_unloadable = 2
    with pytest.raises(EngineError):
        TrtSession(bundle, "fp32", make_flavour("tensorrt", trt), Cuda(cuda))
    gc.collect()
    assert_clean(cuda, trt)


def test_no_device_is_a_session_error(bundle):
    cuda = FakeCuda(num_devices=0)
    trt = FakeTensorRT(cuda, {"model": COLOURS})
    with pytest.raises(SessionError, match="finds no GPU"):
        TrtSession(bundle, "fp32", make_flavour("tensorrt", trt), Cuda(cuda))


def _with_output(name, dtype, shape):
    return dataclasses.replace(COLOURS, outputs={**COLOURS.outputs, name: (dtype, shape)})


def test_output_decided_by_its_data_is_refused(bundle):
    with pytest.raises(SessionError, match="'extra'.*decided by its data"):
        _open(bundle, _with_output("extra", "float32", (-1, -1)))


def test_output_type_that_numpy_lacks_is_refused(bundle):
    with pytest.raises(EngineError, match="'extra' is BF16"):
        _open(bundle, _with_output("extra", "bfloat16", (-1, 2)))


def test_input_that_the_manifest_lacks_is_refused(bundle):
    graph = dataclasses.replace(COLOURS, inputs={**COLOURS.inputs, "mask": ("uint8", (-1, 2))})
    with pytest.raises(SessionError, match="input 'mask' that the manifest lacks"):
        _open(bundle, graph)


def test_input_of_another_type_than_the_manifest_says_is_refused(bundle):
    inputs = {**COLOURS.inputs, "iou_threshold": ("float16", (-1,))}
    with pytest.raises(EngineError, match="'iou_threshold' is float16; the manifest says float32"):
        _open(bundle, dataclasses.replace(COLOURS, inputs=inputs))


def test_image_size_of_the_file_must_be_the_manifests(bundle):
    inputs = {**COLOURS.inputs, "image": ("uint8", (-1, 32, 32, 3))}
    with pytest.raises(EngineError, match="manifest wants.*48, 64"):
        _open(bundle, dataclasses.replace(COLOURS, inputs=inputs))


def test_each_batch_size_has_an_engine_of_its_own_profiles(bundle):
    assert _open(bundle).num_builds == 1
    assert _open(with_batches(bundle, (1,))).num_builds == 1
    assert _open(with_batches(bundle, (1, 4))).num_builds == 0


def test_failing_frees_are_logged_and_do_not_stop_the_others(bundle, caplog):
    cuda = FakeCuda()
    trt = FakeTensorRT(cuda, {"model": COLOURS})
    session = TrtSession(bundle, "fp32", make_flavour("tensorrt", trt), Cuda(cuda))
    session.run(random_feeds(1, 0))
    free = cuda.cudaFreeHost

    def failing(address):
        free(address)
        return (BROKEN,)

    cuda.cudaFreeHost = failing
    session.close()
    gc.collect()
    assert_clean(cuda, trt)
    assert caplog.text.count("cudaFreeHost failed with cudaErrorIllegalAddress") == 14


def test_opening_without_a_gpu_says_so(bundle):
    if not why_no_gpu():
        pytest.skip("this machine has an NVIDIA GPU")
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    with pytest.raises(SessionError, match="tensorrt_rtx .* needs a GPU"):
        open_session(bundle, "fp32", flavour="tensorrt_rtx")


def test_unknown_flavour_names_the_known_ones(bundle):
    with pytest.raises(NoFlavourError, match="'tensorflow'.*tensorrt or tensorrt_rtx"):
        open_session(bundle, "fp32", flavour="tensorflow")
