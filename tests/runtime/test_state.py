"""State of temporal models in every session: whose it is, how long it lasts, what is refused."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_state import (
    BACKENDS,
    frame,
    other_nonkey,
    session_on,
    whose,
    write_tiny_state_bundle,
)

from runtime.contract.errors import SessionError
from runtime.contract.outputs import KEY, NONKEY
from runtime.sessions.ort import OrtSession

NUM_STREAMS = 3
NUM_SCHEDULES = 200
CHANGE_ERROR = 1e-3  # of a mean of 108 numbers up to 255 in float32


@pytest.fixture
def bundle(tmp_path):
    return write_tiny_state_bundle(tmp_path)


@pytest.fixture(params=BACKENDS)
def session(request, bundle):
    with session_on(request.param, bundle) as opened:
        yield opened


def run(stream, value, graph):
    return stream.submit(frame(value), graph).result()


def test_nonkey_frames_read_their_last_key_frame(session):
    stream = session.open_stream()
    assert whose(run(stream, 10, KEY)["answer"]) == [10]
    for value in (11, 12, 13):
        assert whose(run(stream, value, NONKEY)["answer"]) == [10]
    run(stream, 40, KEY)
    assert whose(run(stream, 41, NONKEY)["answer"]) == [40]


def test_change_is_an_ordinary_output_and_state_is_none(session):
    stream = session.open_stream()
    assert set(run(stream, 10, KEY)) == {"answer"}
    results = run(stream, 17, NONKEY)
    assert set(results) == {"answer", "change"}
    np.testing.assert_allclose(results["change"], [7.0], atol=CHANGE_ERROR)


def test_random_schedules_of_interleaved_streams_agree_with_a_simulation(session):
    """Three cameras, frames under way in each, results read late and in any order."""
    streams = [session.open_stream() for _ in range(NUM_STREAMS)]
    for seed in range(NUM_SCHEDULES):
        random = np.random.default_rng(seed)
        num_pending = int(random.integers(1, 4))
        keys: dict[int, int] = {}  # the simulation: what each stream remembers
        pending: deque[tuple[object, int, int]] = deque()
        for _ in range(14):
            place, value = int(random.integers(NUM_STREAMS)), int(random.integers(200))
            is_key = place not in keys or random.random() < 0.4
            if is_key:
                keys[place] = value
            ticket = streams[place].submit(frame(value), KEY if is_key else NONKEY)
            pending.append((ticket, keys[place], value))
            if len(pending) > num_pending:
                pending.rotate(int(random.integers(len(pending))))
                check(*pending.popleft())
        while pending:
            check(*pending.pop())


def check(ticket, key, value):
    results = ticket.result()
    assert whose(results["answer"]) == [key]
    if "change" in results:
        np.testing.assert_allclose(results["change"], [abs(value - key)], atol=CHANGE_ERROR)


def test_new_key_frame_leaves_alone_what_a_frame_under_way_reads(session):
    stream = session.open_stream()
    tickets = [
        (stream.submit(frame(value), graph), key)
        for key in (10, 50, 90, 130)
        for graph, value in ((KEY, key), (NONKEY, key + 1), (NONKEY, key + 2))
    ]
    for ticket, key in reversed(tickets):
        assert whose(ticket.result()["answer"]) == [key]


def test_streams_in_threads_keep_their_own_state(session):
    wrong: list[object] = []

    def watch(stream, first):
        for key in range(first, first + 40, 4):
            tickets = [stream.submit(frame(key), KEY)]
            tickets += [stream.submit(frame(0), NONKEY) for _ in range(3)]
            wrong.extend(t for t in tickets if whose(t.result()["answer"]) != [key])

    threads = [
        threading.Thread(target=watch, args=(session.open_stream(), 50 * number))
        for number in range(NUM_STREAMS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_state_has_a_row_for_every_frame_of_a_batch(session):
    stream = session.open_stream()
    stream.submit(frame(10, batch=3), KEY).result()
    results = stream.submit(frame(20, batch=3), NONKEY).result()
    assert whose(results["answer"]) == [10, 11, 12]
    np.testing.assert_allclose(results["change"], [10.0] * 3, atol=CHANGE_ERROR)


def test_frame_without_state_is_refused_and_the_stream_goes_on(session):
    stream = session.open_stream()
    with pytest.raises(SessionError, match=r"^graph 'nonkey' needs .*\. Run the graph 'key' first"):
        run(stream, 10, NONKEY)
    run(stream, 10, KEY)
    assert whose(run(stream, 11, NONKEY)["answer"]) == [10]


def test_state_of_another_batch_is_refused_and_the_stream_goes_on(session):
    stream = session.open_stream()
    stream.submit(frame(10, batch=3), KEY).result()
    with pytest.raises(SessionError, match="fed a batch of 1, and the last .* a batch of 3") as got:
        run(stream, 10, NONKEY)
    assert "\n" not in str(got.value)
    run(stream, 30, KEY)
    assert whose(run(stream, 11, NONKEY)["answer"]) == [30]


def test_ticket_tells_the_time_of_its_graph(session):
    stream = session.open_stream()
    tickets = [stream.submit(frame(10), KEY), stream.submit(frame(10), NONKEY)]
    assert tickets[0].compute_ms is None or tickets[1].compute_ms is None
    for ticket in tickets:
        ticket.result()
        assert 0 < ticket.compute_ms < 1e4


def test_session_runs_both_graphs_on_a_stream_of_its_own(session):
    session.run(frame(10), KEY)
    other = session.open_stream()
    run(other, 90, KEY)
    assert whose(session.run(frame(11), NONKEY)["answer"]) == [10]


DISAGREEING = {
    "shape": (
        {"nonkey": other_nonkey("float16[B,3,1,1]", "float16[B,1,3,1]")},
        r"'first' leaves graph 'key' as float16 \(B, 3, 1, 1\) and enters graph 'nonkey' as "
        r"float16 \(B, 1, 3, 1\)",
    ),
    "type": (
        {"nonkey": other_nonkey("float16[B,3,1,1]", "float[B,3,1,1]")},
        r"as float16 \(B, 3, 1, 1\) and enters graph 'nonkey' as float32 \(B, 3, 1, 1\)",
    ),
    "given by none": (
        {"state": {"means": "means_key", "first": "first_key", "last": "last_key"}},
        "'last' on as 'last_key', and no graph gives 'last'; there are key, nonkey",
    ),
    "taken by none": (
        {"state": {"means": "means_key", "first": "first_key", "answer": "answer_key"}},
        "'answer' on as 'answer_key', and no graph takes 'answer_key'",
    ),
    "not in the manifest": ({"state": {"means": "means_key"}}, "input 'first_key' that the mani"),
}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("changes", "message"), DISAGREEING.values(), ids=DISAGREEING)
def test_graphs_whose_state_does_not_fit_are_refused_when_loaded(
    tmp_path, backend, changes, message
):
    wrong = write_tiny_state_bundle(tmp_path, **changes)
    with pytest.raises(SessionError, match=message), session_on(backend, wrong):
        pass


def test_engines_whose_state_does_not_fit_are_refused_when_loaded(tmp_path):
    state = {"means": "means_key", "first": "first_key", "answer": "answer_key"}
    wrong = write_tiny_state_bundle(tmp_path, state=state)
    message = "no graph takes 'answer_key'"
    with pytest.raises(SessionError, match=message), session_on("tensorrt", wrong):
        pass


class RecordingEngine:
    """An ONNX Runtime engine that notes where its binding puts things."""

    def __init__(self, real, places):
        self.real = real
        self.places = places

    def io_binding(self):
        binding, places = self.real.io_binding(), self.places

        def bind_output(name, device):
            places[name] = device
            binding.bind_output(name, "cpu")  # the only device of this machine

        return SimpleNamespace(
            bind_cpu_input=binding.bind_cpu_input,
            bind_ortvalue_input=binding.bind_ortvalue_input,
            bind_output=bind_output,
            get_outputs=binding.get_outputs,
            real=binding,
        )

    def run_with_iobinding(self, binding):
        self.real.run_with_iobinding(binding.real)


def test_state_of_onnx_runtime_stays_on_its_device_and_is_passed_on_uncopied(bundle):
    session = OrtSession(bundle, "fp32", device="cpu", threads=1, spin=False)
    places: dict[str, str] = {}
    session._place = "cuda"
    for graph, engine in list(session._engines.items()):
        session._engines[graph] = RecordingEngine(engine, places)
    stream = session.open_stream()
    run(stream, 10, KEY)
    before = {name: value.data_ptr() for name, value in stream._state.items()}
    assert whose(run(stream, 11, NONKEY)["answer"]) == [10]
    assert places == {"answer": "cpu", "means": "cuda", "first": "cuda", "change": "cpu"}
    assert {name: value.data_ptr() for name, value in stream._state.items()} == before
    session.close()
