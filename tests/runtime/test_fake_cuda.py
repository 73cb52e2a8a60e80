"""The fake GPU notices what it claims to notice: on its own, and in mutants of our code."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
from fake_bench import (
    COLOURS,
    TEMPORAL,
    Code,
    assert_clean,
    assert_same,
    bench,
    colour_bundle,
    expected,
    random_feeds,
    temporal_bundle,
)
from fake_cuda import FakeCuda, FakeViolation, cudaMemcpyKind, cudaStreamCaptureMode
from fake_tensorrt import FakeTensorRT

from runtime.contract.errors import SessionError

THREAD_LOCAL = cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
UPWARD = cudaMemcpyKind.cudaMemcpyHostToDevice


def _stream(cuda):
    return cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)[1]


def _use_after_free(cuda):
    stream, address = _stream(cuda), cuda.cudaMalloc(8)[1]
    host = cuda.cudaHostAlloc(8, 0)[1]
    cuda.cudaMemcpyAsync(address, host, 8, UPWARD, stream)
    cuda.cudaFree(address)
    cuda.cudaStreamSynchronize(stream)


def _double_free(cuda):
    address = cuda.cudaMalloc(8)[1]
    cuda.cudaFree(address)
    cuda.cudaFree(address)


def _free_of_the_wrong_kind(cuda):
    cuda.cudaFree(cuda.cudaHostAlloc(8, 0)[1])


def _copy_beyond_the_end(cuda):
    stream, address = _stream(cuda), cuda.cudaMalloc(8)[1]
    cuda.cudaMemcpyAsync(address, cuda.cudaHostAlloc(16, 0)[1], 16, UPWARD, stream)


def _copy_from_device_as_host(cuda):
    stream, address = _stream(cuda), cuda.cudaMalloc(8)[1]
    cuda.cudaMemcpyAsync(address, cuda.cudaMalloc(8)[1], 8, UPWARD, stream)


def _copy_on_the_default_stream(cuda):
    cuda.cudaMemcpyAsync(cuda.cudaMalloc(8)[1], cuda.cudaHostAlloc(8, 0)[1], 8, UPWARD, 0)


def _copy_from_pageable_memory(cuda):
    stream = _stream(cuda)
    cuda.cudaMemcpyAsync(cuda.cudaMalloc(8)[1], id(cuda), 8, UPWARD, stream)


def _blocking_stream(cuda):
    cuda.cudaStreamCreateWithFlags(0)


def _stream_destroyed_with_work(cuda):
    stream = _stream(cuda)
    address, host = cuda.cudaMalloc(8)[1], cuda.cudaHostAlloc(8, 0)[1]
    cuda.cudaMemcpyAsync(address, host, 8, UPWARD, stream)
    cuda.cudaStreamDestroy(stream)


def _wait_in_a_capture(cuda):
    stream = _stream(cuda)
    cuda.cudaStreamBeginCapture(stream, THREAD_LOCAL)
    cuda.cudaStreamSynchronize(stream)


def _allocate_in_a_capture(cuda):
    cuda.cudaStreamBeginCapture(_stream(cuda), THREAD_LOCAL)
    cuda.cudaMalloc(8)


def _global_capture(cuda):
    cuda.cudaStreamBeginCapture(_stream(cuda), cudaStreamCaptureMode.cudaStreamCaptureModeGlobal)


def _event_destroyed_twice(cuda):
    event = cuda.cudaEventCreateWithFlags(2)[1]
    cuda.cudaEventDestroy(event)
    cuda.cudaEventDestroy(event)


def _launch_of_a_destroyed_graph(cuda):
    stream = _stream(cuda)
    cuda.cudaStreamBeginCapture(stream, THREAD_LOCAL)
    graph = cuda.cudaGraphInstantiate(cuda.cudaStreamEndCapture(stream)[1], 0)[1]
    cuda.cudaGraphExecDestroy(graph)
    cuda.cudaGraphLaunch(graph, stream)


MISUSES = {
    function.__name__.strip("_"): function
    for function in (
        _use_after_free,
        _double_free,
        _free_of_the_wrong_kind,
        _copy_beyond_the_end,
        _copy_from_device_as_host,
        _copy_on_the_default_stream,
        _copy_from_pageable_memory,
        _blocking_stream,
        _stream_destroyed_with_work,
        _wait_in_a_capture,
        _allocate_in_a_capture,
        _global_capture,
        _event_destroyed_twice,
        _launch_of_a_destroyed_graph,
    )
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_fake_notices_misuse(misuse):
    cuda = FakeCuda()
    with pytest.raises(FakeViolation):
        misuse(cuda)
    assert cuda.violations


def test_fake_notices_leaks():
    cuda = FakeCuda()
    cuda.cudaMalloc(8)
    _stream(cuda)
    with pytest.raises(AssertionError):
        assert_clean(cuda, FakeTensorRT(cuda, {}))


# Mutants: (module, what stands there, what the mutant has, scenario). Every one must be noticed.
MUTANTS = {
    "pinned memory is not freed": ("buffers", "self._cuda.free_pinned(self.address)", "pass"),
    "device memory is not freed": ("buffers", "self._cuda.free_device(self.address)", "pass"),
    "a buffer is freed twice": (
        "buffers",
        "            self._cuda.free_device(self.address)\n",
        "            self._cuda.free_device(self.address)\n" * 2,
    ),
    "a buffer is too small": ("buffers", "allocate_device(max(nbytes, 1))", "allocate_device(1)"),
    "the stream blocks": ("buffers", "cudart.cudaStreamNonBlocking", "0"),
    "the capture is global": ("buffers", "ModeThreadLocal", "ModeGlobal"),
    "the captured graph leaks": (
        "buffers",
        "lambda: cudart.cudaGraphDestroy(graph)",
        "lambda: (0,)",
    ),
    "the ticket does not wait": ("trt_lanes", "self._cuda.wait_for_event(slot.event)", "pass"),
    "results are views of the buffer": ("trt_lanes", "each.array.copy()", "each.array"),
    "a busy slot is overwritten": (
        "trt_lanes",
        "        slot.settle()\n        self._req",
        "        self._req",
    ),
    "a dropped ticket frees its slot": (
        "trt_lanes",
        "            self._cuda.wait_for_event(self.event)",
        "            pass",
    ),
    "one slot's graph is used for both": (
        "trt_lanes",
        "slot=slot: self._enqueue(slot)",
        "slot=slot: self._enqueue(self._slots[0])",
    ),
    "an output is not copied": ("trt_lanes", "cuda.copy_to_host(", "_skip("),
    "an input is not copied": ("trt_lanes", "cuda.copy_to_device(", "_skip("),
    "addresses are not set": ("trt_lanes", "not context.set_tensor_address(", "not _skip("),
    "shapes are not set": ("trt_lanes", "not context.set_input_shape(", "not _skip("),
    "the profile is not chosen": ("trt_lanes", "context.set_optimization_profile_async(", "_skip("),
    "the default stream runs the engine": (
        "trt_lanes",
        "execute_async_v3(int(stream))",
        "execute_async_v3(0)",
    ),
    "a wait gets into the capture": (
        "trt_lanes",
        "        for name, pinned in slot.inputs.items():\n            if self._upload",
        "        cuda.wait_for_stream(stream)\n"
        "        for name, pinned in slot.inputs.items():\n            if self._upload",
    ),
    "executables are not destroyed": (
        "trt_lanes",
        "self._cleanup.callback(self._cuda.destroy_executable, executable)",
        "pass",
    ),
    "events are not destroyed": ("trt_lanes", "cleanup.callback(cuda.destroy_event, ", "_skip("),
    "streams outlive their session": (
        "trt",
        "                stream.close()\n",
        "                pass\n",
    ),
    "the stream is not destroyed": (
        "trt",
        "self._cleanup.callback(cuda.destroy_stream, self._stream)",
        "pass",
    ),
    "state is not renewed": ("trt_lanes", "cuda.copy_on_device(", "_skip("),
    "state is written where it is read": (
        "trt_lanes",
        "any(port.name == taken for port in self._graph.state_inputs)",
        "False",
    ),
    "state of another batch is taken": ("trt_lanes", "found != self._batch", "found is None"),
    "state is shared by all batches": (
        "trt_lanes",
        "self._state.buffer(name, self._batch, ",
        "self._state.buffer(name, 1, ",
    ),
    "state is lost by the host": ("trt_lanes", "self._note_state(self._batch)", "pass"),
}
_SKIP = "\n\ndef _skip(*_): return True\n"  # a call that does nothing and says that it went well
_MODULES = ("buffers", "trt_graphs", "trt_lanes", "trt")


def _load_mutant(monkeypatch, place: str, old: str, new: str) -> Code:
    """Fresh copies of the session's modules, one of them changed."""
    loaded = {}
    for name in _MODULES:
        full = f"runtime.sessions.{name}"
        spec = importlib.util.find_spec(full)
        source = Path(spec.origin).read_text(encoding="utf-8")
        if name == place:
            assert old in source, f"the mutant's place is gone: {old!r}"
            source = source.replace(old, new) + _SKIP
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, full, module)
        exec(compile(source, spec.origin, "exec"), module.__dict__)
        loaded[name] = module
    return Code(loaded["trt"].TrtSession, loaded["buffers"].Cuda)


def _exercise(folder, code: Code) -> None:
    """What the tests of the session do, in short."""
    (folder / "colours").mkdir()
    with bench(colour_bundle(folder / "colours"), code=code) as each:
        stream = each.session.open_stream()
        feeds = [random_feeds(1, seed) for seed in range(6)]
        tickets = [stream.submit(one) for one in feeds]
        for ticket, one in zip(tickets, feeds, strict=True):
            assert_same(ticket.result(), expected(one))
        kept = [stream.submit(one).result() for one in feeds]
        for results, one in zip(kept, feeds, strict=True):
            assert_same(results, expected(one))
        del tickets, ticket
        feeds = random_feeds(4, 1)
        assert_same(stream.submit(feeds).result(), expected(feeds))
        for seed in range(4):
            feeds = random_feeds(1, seed)
            held = stream.submit(feeds)
            stream.submit(random_feeds(1, seed + 20))  # dropped
            assert_same(held.result(), expected(feeds))
    _check_dropped(folder / "colours", code)
    (folder / "temporal").mkdir()
    with bench(temporal_bundle(folder / "temporal"), TEMPORAL, code=code) as each:
        stream = each.session.open_stream()
        answers = []
        for batch in (1, 2):
            image = random_feeds(batch, 1)["image"][:, :4, :4].copy()
            stream.submit({"image": image * 0 + 9}, "key").result()
            with pytest.raises(SessionError, match=f"batch of {3 - batch}, and the last"):
                stream.submit({"image": image[:1].repeat(3 - batch, axis=0)}, "nonkey")
            for _ in range(2):
                answers.append(stream.submit({"image": image}, "nonkey").result()["answer"][0, 0])
        assert answers == [10, 11, 10, 11]


def _check_dropped(folder, code: Code) -> None:
    """Every image that was submitted is the one that ran, also when nobody asks for results."""
    seen = []

    def look(feeds):
        seen.append(int(feeds["image"][0, 0, 0, 0]))
        return COLOURS.function(feeds)

    graphs = {"model": dataclasses.replace(COLOURS, function=look)}
    with bench(colour_bundle(folder), graphs, code=code) as each:
        stream = each.session.open_stream()
        for value in range(8):
            feeds = random_feeds(1, 0)
            feeds["image"][0, 0, 0] = value
            stream.submit(feeds)
    assert seen == list(range(8))


def test_unchanged_code_passes_what_the_mutants_fail(tmp_path, monkeypatch):
    _exercise(tmp_path, _load_mutant(monkeypatch, "", "", ""))


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_mutant_is_noticed(tmp_path, monkeypatch, mutant):
    code = _load_mutant(monkeypatch, *mutant)
    with pytest.raises((AssertionError, SessionError, pytest.fail.Exception)):
        _exercise(tmp_path, code)
