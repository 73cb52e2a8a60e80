"""Frames of several cameras in one engine call: the results are those of each by itself."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_bundle import paint, write_tiny_bundle

import runtime
from runtime.batching import MicroBatcher


class CountedStream:
    """A session's stream that notes the batch of every call."""

    def __init__(self, stream):
        self.stream = stream
        self.batches: list[int] = []

    def submit(self, feeds, graph="model"):
        self.batches.append(len(feeds["image"]))
        return self.stream.submit(feeds, graph)

    def close(self):
        self.stream.close()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    folder = write_tiny_bundle(tmp_path_factory.mktemp("tiny"), batches=(1, 2, 4))
    with runtime.load(folder, "onnxruntime") as loaded:
        yield loaded


@pytest.fixture
def calls(predictor, monkeypatch):
    stream = CountedStream(predictor._stream)
    monkeypatch.setattr(predictor, "_stream", stream)
    return stream.batches


def frame(number):
    """Of one of several sizes, with a blue box whose place tells the number."""
    height, width = ((48, 64), (96, 128), (100, 60))[number % 3]
    x1 = 3 * number
    return paint(height, width, {0: (x1, 10, x1 + 20, 30)})


def assert_same(got, expected):
    np.testing.assert_array_equal(got.classes, expected.classes)
    np.testing.assert_allclose(got.scores, expected.scores, atol=1e-6)
    np.testing.assert_allclose(got.boxes_xyxy, expected.boxes_xyxy, atol=1e-3)


@pytest.mark.parametrize(
    ("num_frames", "sizes"), [(1, [1]), (2, [2]), (3, [2, 1]), (4, [4]), (7, [4, 2, 1])]
)
def test_results_in_full_batches_are_those_of_single_frames(predictor, calls, num_frames, sizes):
    batcher = MicroBatcher(predictor)
    cameras = [batcher.open_stream() for _ in range(num_frames)]
    tickets = [camera.submit(frame(number)) for number, camera in enumerate(cameras)]
    batcher.flush()
    assert calls == sizes  # never padded
    for number, ticket in reversed(list(enumerate(tickets))):
        found = ticket.result()
        assert len(found) == 1
        assert_same(found, predictor(frame(number)))
        assert ticket.timings.engine_ms > 0


def test_cameras_with_thresholds_of_their_own_keep_them(predictor, calls):
    batcher = MicroBatcher(predictor)
    strict, lax, per_class, again = (batcher.open_stream() for _ in range(4))
    tickets = [
        strict.submit(frame(0), 0.99),
        lax.submit(frame(0), 0.1),
        per_class.submit(frame(0), {"blue ball": 1.1}),
        again.submit(frame(0), {"blue ball": 1.1}),
    ]
    batcher.flush()
    assert [len(ticket.result()) for ticket in tickets] == [0, 1, 0, 0]
    assert calls == [1, 1, 2]


def test_result_that_is_asked_for_early_does_not_wait_for_the_flush(predictor):
    batcher = MicroBatcher(predictor)
    first, second = (batcher.open_stream().submit(frame(number)) for number in (1, 2))
    assert_same(second.result(), predictor(frame(2)))
    assert_same(first.result(), predictor(frame(1)))
    batcher.flush()  # nothing is left


def test_flush_without_frames_runs_nothing(predictor, calls):
    MicroBatcher(predictor).flush()
    assert calls == []


def test_camera_of_a_batch_knows_the_bundle_and_draws(predictor):
    camera = MicroBatcher(predictor).open_stream()
    assert camera.manifest is predictor.manifest
    picture = frame(0)
    before = picture.copy()
    camera.draw(picture, predictor(picture))
    assert (picture != before).any()
