"""TensorRT sessions on a fake GPU: results, buffers, streams, CUDA graphs, state."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
from fake_bench import (
    TEMPORAL,
    assert_same,
    bench,
    colour_bundle,
    expected,
    feeds_of,
    random_feeds,
    temporal_bundle,
)
from fake_cuda import cudaError_t
from fake_tensorrt import FakeRtx

from runtime.contract.errors import SessionError


@pytest.fixture
def bundle(tmp_path):
    return colour_bundle(tmp_path)


@pytest.mark.parametrize("batch", [1, 4])
def test_session_answers_what_the_graph_computes(bundle, batch):
    feeds = random_feeds(batch, seed=3)
    with bench(bundle) as each:
        assert_same(each.session.run(feeds), expected(feeds))


def test_session_says_backend_device_and_precision(bundle):
    with bench(bundle) as each:
        session = each.session
        said = (session.backend, session.device, session.precision)
    assert said == ("tensorrt", "Fake GPU (sm_87)", "fp32")


def test_empty_image_gives_no_detections(bundle):
    with bench(bundle) as each:
        results = each.session.run(feeds_of({}))
    assert results["num_detections"].tolist() == [0]


def test_replay_gives_fresh_results_for_fresh_feeds(bundle):
    with bench(bundle) as each:
        for seed in range(7):
            feeds = random_feeds(1, seed)
            assert_same(each.session.run(feeds), expected(feeds))


def test_thresholds_are_read_anew_at_every_replay(bundle):
    box = {0: (4, 4, 20, 20)}
    with bench(bundle) as each:
        counts = [
            int(each.session.run(feeds_of(box, threshold=value))["num_detections"][0])
            for value in (0.3, 0.95, 0.3, 0.95)
        ]
    assert counts == [1, 0, 1, 0]


def test_batches_may_alternate_on_one_stream(bundle):
    with bench(bundle) as each:
        stream = each.session.open_stream()
        for seed, batch in enumerate((1, 4, 1, 4, 4, 1)):
            feeds = random_feeds(batch, seed)
            assert_same(stream.submit(feeds).result(), expected(feeds))


def test_results_are_the_callers_to_keep(bundle):
    with bench(bundle) as each:
        kept = [(random_feeds(1, seed), each.session.run(random_feeds(1, seed))) for seed in (1, 2)]
        for seed in range(3, 6):
            each.session.run(random_feeds(1, seed))
    for feeds, results in kept:
        assert_same(results, expected(feeds))


def test_feeds_may_be_changed_once_submitted(bundle):
    # Stronger than the contract, which lets a session read feeds until result().
    with bench(bundle) as each:
        stream = each.session.open_stream()
        feeds = random_feeds(1, seed=1)
        wanted = expected(feeds)
        ticket = stream.submit(feeds)
        feeds["image"][:] = 0
        assert_same(ticket.result(), wanted)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
def test_tickets_may_be_collected_late_and_in_any_order(bundle, order):
    with bench(bundle) as each:
        stream = each.session.open_stream()
        feeds = [random_feeds(1, seed) for seed in range(5)]
        tickets = [stream.submit(each_feeds) for each_feeds in feeds]
        for index in order:
            assert_same(tickets[index].result(), expected(feeds[index]))


def test_ticket_gives_the_same_results_twice(bundle):
    with bench(bundle) as each:
        ticket = each.session.open_stream().submit(random_feeds(1, 1))
        assert ticket.result() is ticket.result()


def test_dropped_tickets_do_not_disturb_later_inferences(bundle):
    with bench(bundle) as each:
        stream = each.session.open_stream()
        for seed in range(6):
            stream.submit(random_feeds(1, seed))  # nobody keeps the ticket
        feeds = random_feeds(1, 9)
        assert_same(stream.submit(feeds).result(), expected(feeds))
        assert len(each.trt.executed) == 7


def test_the_next_submit_does_not_wait_for_the_inference_before(bundle):
    with bench(bundle) as each:
        stream = each.session.open_stream()
        stream.submit(random_feeds(1, 0)).result()
        stream.submit(random_feeds(1, 1))
        ran = len(each.trt.executed)
        stream.submit(random_feeds(1, 2))
        assert len(each.trt.executed) == ran  # the fake GPU runs only when somebody waits


def test_ticket_outlives_its_stream(bundle):
    feeds = random_feeds(1, 5)
    with bench(bundle) as each:
        stream = each.session.open_stream()
        stream.submit(random_feeds(1, 4))
        ticket = stream.submit(feeds)
        stream.close()
    assert_same(ticket.result(), expected(feeds))


def test_two_streams_in_two_threads_keep_their_own_buffers(bundle):
    wrong: list[str] = []

    def work(session, first_seed):
        stream = session.open_stream()
        for seed in range(first_seed, first_seed + 12):
            feeds = random_feeds(1 if seed % 3 else 4, seed)
            ticket = stream.submit(feeds)
            try:
                assert_same(ticket.result(), expected(feeds))
            except AssertionError as error:
                wrong.append(str(error))

    with bench(bundle) as each:
        threads = [
            threading.Thread(target=work, args=(each.session, seed)) for seed in (0, 100, 200)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len({stream for _, stream in each.trt.executed}) == len(threads)


def test_one_session_may_run_from_two_threads(bundle):
    wrong: list[str] = []

    def work(session, first_seed):
        for seed in range(first_seed, first_seed + 10):
            feeds = random_feeds(1, seed)
            try:
                assert_same(session.run(feeds), expected(feeds))
            except AssertionError as error:
                wrong.append(str(error))

    with bench(bundle) as each:
        threads = [threading.Thread(target=work, args=(each.session, seed)) for seed in (0, 50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_copies_and_engine_replay_as_one_graph_after_the_first_run(bundle):
    with bench(bundle) as each:
        stream = each.session.open_stream()
        stream.submit(random_feeds(1, 0)).result()
        assert stream.uses_cuda_graph()
        each.cuda.calls.clear()
        for seed in range(3):
            stream.submit(random_feeds(1, seed)).result()
        one = ["cudaGraphLaunch", "cudaEventRecord", "cudaEventSynchronize"]
        assert each.cuda.calls == one * 3


def test_nothing_is_allocated_once_a_batch_has_run(bundle):
    with bench(bundle) as each:
        each.session.run(random_feeds(1, 0))
        before = dict(each.cuda.allocations)
        for seed in range(4):
            each.session.run(random_feeds(1, seed))
        assert each.cuda.allocations == before


def test_cuda_graphs_can_be_switched_off(bundle):
    feeds = random_feeds(1, 3)
    with bench(bundle, cuda_graphs=False) as each:
        for _ in range(3):
            assert_same(each.session.run(feeds), expected(feeds))
        assert "cudaStreamBeginCapture" not in each.cuda.calls


def test_an_engine_that_cannot_be_captured_runs_without_a_graph_and_says_so(bundle, caplog):
    with bench(bundle) as each:
        each.trt.is_capturable = False
        stream = each.session.open_stream()
        for seed in range(4):
            feeds = random_feeds(1, seed)
            assert_same(stream.submit(feeds).result(), expected(feeds))
        assert not stream.uses_cuda_graph()
    assert "runs without a CUDA graph" in caplog.text


@pytest.mark.parametrize(
    "call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"]
)
def test_a_capture_that_cuda_refuses_falls_back(bundle, call):
    with bench(bundle) as each:
        each.cuda.fail(call, cudaError_t.cudaErrorInvalidValue)
        for seed in range(3):
            feeds = random_feeds(1, seed)
            assert_same(each.session.run(feeds), expected(feeds))


def test_rtx_is_told_to_make_its_own_graph(bundle):
    feeds = random_feeds(1, 3)
    with bench(bundle, kind=FakeRtx) as each:
        for _ in range(3):
            assert_same(each.session.run(feeds), expected(feeds))
        assert each.session.backend == "tensorrt_rtx"
        assert [config.cuda_graph_strategy for config in each.trt.configs] == ["whole"]
        assert "cudaStreamBeginCapture" not in each.cuda.calls


def test_rtx_without_cuda_graphs_disables_its_own(bundle):
    with bench(bundle, kind=FakeRtx, cuda_graphs=False) as each:
        each.session.run(random_feeds(1, 3))
        assert [config.cuda_graph_strategy for config in each.trt.configs] == ["disabled"]


# State ------------------------------------------------------------------------------------


def _frame(value: int, batch: int = 1) -> dict:
    return {"image": np.full((batch, 4, 4, 3), value, np.uint8)}


@pytest.fixture
def temporal(tmp_path):
    return temporal_bundle(tmp_path)


def test_state_passes_from_frame_to_frame(temporal):
    with bench(temporal, TEMPORAL) as each:
        stream = each.session.open_stream()
        stream.submit(_frame(10), "key").result()
        answers = [stream.submit(_frame(0), "nonkey").result()["answer"][0, 0] for _ in range(5)]
        again = stream.submit(_frame(40), "key").result()["answer"][0, 0]
        after = stream.submit(_frame(0), "nonkey").result()["answer"][0, 0]
    assert answers == [11, 12, 13, 14, 15]
    assert (again, after) == (40, 41)


def test_state_is_no_result_and_never_visits_the_host(temporal):
    with bench(temporal, TEMPORAL) as each:
        stream = each.session.open_stream()
        results = stream.submit(_frame(10), "key").result()
        pinned = [a for a in each.cuda.allocations.values() if a.kind == "pinned"]
        assert list(results) == ["answer"]
        assert sorted(a.nbytes for a in pinned) == [8, 8, 48, 48]  # answer, image, two slots


def test_state_belongs_to_its_stream(temporal):
    with bench(temporal, TEMPORAL) as each:
        first, second = each.session.open_stream(), each.session.open_stream()
        first.submit(_frame(10), "key").result()
        second.submit(_frame(100), "key").result()
        answers = [
            stream.submit(_frame(0), "nonkey").result()["answer"][0, 0]
            for stream in (first, second, first)
        ]
    assert answers == [11, 101, 12]


def test_state_that_a_graph_does_not_read_itself_is_written_in_place(temporal):
    with bench(temporal, TEMPORAL) as each:
        stream = each.session.open_stream()
        stream.submit(_frame(10), "key").result()
        device = [a.nbytes for a in each.cuda.allocations.values() if a.kind == "device"]
        assert sorted(device) == [8, 8, 48]  # memory, answer, image
        each.cuda.calls.clear()
        stream.submit(_frame(20), "key").result()
        assert "cudaMemcpyAsync" not in each.cuda.calls


def test_time_of_an_inference_is_the_gpus_without_waits(temporal):
    graphs = {
        name: dataclasses.replace(graph, compute_ms=ms)
        for (name, graph), ms in zip(TEMPORAL.items(), (8.0, 3.0), strict=True)
    }
    with bench(temporal, graphs) as each:
        stream = each.session.open_stream()
        tickets = [stream.submit(_frame(1), name) for name in ("key", "nonkey", "nonkey", "key")]
        assert tickets[-1].compute_ms is None
        for ticket in tickets:
            ticket.result()
    assert [ticket.compute_ms for ticket in tickets] == [8.0, 3.0, 3.0, 8.0]


def test_key_frame_that_fails_leaves_no_state_behind(temporal):
    with bench(temporal, TEMPORAL) as each:
        stream = each.session.open_stream()
        for image in (_frame(10), _frame(20)):
            stream.submit(image, "key").result()
        each.cuda.fail("cudaGraphLaunch", cudaError_t.cudaErrorInvalidValue)
        with pytest.raises(SessionError, match="cudaGraphLaunch"):
            stream.submit(_frame(30), "key")
        with pytest.raises(SessionError, match="Run the graph 'key' first"):
            stream.submit(_frame(0), "nonkey")
        stream.submit(_frame(40), "key")
        assert stream.submit(_frame(0), "nonkey").result()["answer"][0, 0] == 41


def test_nonkey_before_key_is_refused(temporal):
    with bench(temporal, TEMPORAL) as each:
        stream = each.session.open_stream()
        with pytest.raises(SessionError, match="Run the graph 'key' first"):
            stream.submit(_frame(0), "nonkey")
        stream.submit(_frame(3), "key")
        assert stream.submit(_frame(0), "nonkey").result()["answer"][0, 0] == 4
