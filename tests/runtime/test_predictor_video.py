"""Predictors of a temporal model: which graph a frame runs on, and whose state it leans on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_bundle import CLASSES, paint, write_tiny_bundle
from tiny_video_bundle import write_tiny_video_bundle

import runtime
import runtime.run_images
from runtime.contract.errors import SessionError, SourceError

FPS = 25.0
SIZE = (48, 64)
BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_video_bundle(tmp_path_factory.mktemp("video"))


@pytest.fixture(params=BACKENDS)
def load(request, folder):
    """Loads the bundle with options; closes what was loaded."""
    opened = []

    def open_one(**options):
        options.setdefault("max_key_age_ms", 1e6)
        opened.append(runtime.load(folder, request.param, threads=1, **options))
        return opened[-1]

    yield open_one
    for predictor in opened:
        predictor.close()


def frame(left, colour=0, ground=40):
    """A square that begins at `left`; the remembered frame is known by it."""
    return paint(*SIZE, {colour: (left, 10, left + 8, 18)}, ground)


def left_of(detections):
    (box,) = detections.boxes_xyxy
    return round(float(box[0]))


def watch(predictor, lefts):
    """[(where the square was found, whether it was a key frame)] of frames at 25 a second."""
    found = [predictor(frame(left), time_s=index / FPS) for index, left in enumerate(lefts)]
    return [(left_of(each), each.is_key) for each in found]


def test_frames_between_lean_on_their_key_frame(load):
    predictor = load(schedule="fixed", key_interval=3)
    found = watch(predictor, [0, 2, 4, 6, 8, 10, 12])
    assert found == [
        (0, True), (0, False), (0, False), (6, True), (6, False), (6, False), (12, True),
    ]  # fmt: skip


def test_frames_under_way_keep_their_key_frame(load):
    predictor = load(schedule="fixed", key_interval=3)
    tickets = [predictor.submit(frame(left), time_s=left / FPS) for left in range(12)]
    found = [left_of(ticket.result()) for ticket in reversed(tickets)]
    assert found[::-1] == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9]


def test_adaptive_schedule_follows_what_the_frames_tell(load):
    predictor = load(key_interval=10)
    still = [frame(4)] * 15
    brighter = [frame(4, ground=40 + 2 * n) for n in range(15)]  # change grows by 2 levels a frame
    keys = [predictor(each, time_s=n / FPS).is_key for n, each in enumerate([*still, *brighter])]
    assert keys.index(True, 1) >= 15
    assert sum(keys[15:]) >= 4
    assert predictor.keyframes.reasons.keys() == {"first", "change"}


def test_every_stream_has_key_frames_of_its_own(load):
    first = load(schedule="fixed", key_interval=4)
    streams = [first, first.open_stream(), first.open_stream()]
    found = [[], [], []]
    for index in range(24):
        place = index % 3 if index < 12 else (index * 7) % 3
        at = len(found[place])
        found[place].append(left_of(streams[place](frame(10 * place + at), time_s=at / FPS)))
    for place, lefts in enumerate(found):
        assert lefts == [10 * place + at - at % 4 for at in range(len(lefts))]
    assert [stream.keyframes.num_key for stream in streams] == [
        -(-len(lefts) // 4) for lefts in found
    ]
    for stream in streams[1:]:
        stream.close()


def test_batch_of_unrelated_frames_is_of_key_frames_and_the_camera_begins_anew(load):
    predictor = load(schedule="fixed", key_interval=10)
    watch(predictor, [0, 1])
    several = predictor.batch([frame(left) for left in (20, 30, 40)])
    assert [(left_of(each), each.is_key) for each in several] == [
        (20, True),
        (30, True),
        (40, True),
    ]
    after = [predictor(frame(left), time_s=1.0) for left in (5, 6)]
    assert [(left_of(each), each.is_key) for each in after] == [(5, True), (5, False)]
    assert predictor.keyframes.reasons == {"first": 1, "batch": 1}


EVENTS = {
    "size": (lambda p: p(paint(96, 128, {0: (20, 20, 36, 36)}), time_s=0.1), "size"),
    "seek": (lambda p: p(frame(20), time_s=-1.0), "seek"),
    "age": (lambda p: p(frame(20), time_s=2e3), "age"),
    "drops": (lambda p: p(frame(20), time_s=0.1, num_dropped=20), "drops"),
    "restart": (lambda p: (p.restart("reconnect"), p(frame(20), time_s=0.1))[1], "reconnect"),
    "cut": (lambda p: p(255 - frame(20)[:, ::-1], time_s=0.1), "cut"),
}


@pytest.mark.parametrize(("event", "reason"), EVENTS.values(), ids=EVENTS)
def test_frame_that_does_not_follow_is_a_key_frame(load, event, reason):
    predictor = load(schedule="fixed", key_interval=100)
    watch(predictor, [0, 1])
    assert event(predictor).is_key
    assert predictor.keyframes.reasons == {"first": 1, reason: 1}


def test_time_of_frames_is_now_where_it_is_not_given(load):
    predictor = load(schedule="fixed", key_interval=100, max_key_age_ms=60_000)
    assert [predictor(frame(0)).is_key for _ in range(4)] == [True, False, False, False]


def test_frame_after_one_that_failed_is_a_key_frame(load, monkeypatch):
    predictor = load(schedule="fixed", key_interval=100)
    watch(predictor, [0, 1])
    with pytest.raises(SourceError):
        predictor(None)
    assert not predictor(frame(2), time_s=0.1).is_key  # nothing ran, so nothing is lost

    def fail(feeds, graph):
        raise SessionError("the engine broke")

    with monkeypatch.context() as patched:
        patched.setattr(predictor._stream, "submit", fail)
        with pytest.raises(SessionError, match="the engine broke"):
            predictor(frame(3), time_s=0.2)
    assert predictor(frame(4), time_s=0.3).is_key
    assert predictor.keyframes.reasons == {"first": 1, "error": 1}


def test_timings_and_results_say_which_graph_ran(load):
    predictor = load(schedule="fixed", key_interval=2)
    graphs, told = [], []
    for index in range(3):
        told.append(predictor(frame(index), time_s=index / FPS).to_json()["is_key"])
        graphs.append(predictor.timings.graph)
    assert graphs == ["key", "nonkey", "key"]
    assert told == [True, False, True]


def test_part_of_a_result_still_says_whether_it_was_a_key_frame(load):
    found = load()(frame(3))
    assert found[:0].is_key


def test_warm_up_runs_both_graphs_and_counts_nothing(load):
    predictor = load(schedule="fixed", key_interval=3)
    predictor.warm_up()
    assert predictor.timings is None
    assert (predictor.keyframes.num_key, predictor.keyframes.num_nonkey) == (0, 0)
    assert watch(predictor, [7, 8]) == [(7, True), (7, False)]


def test_summary_has_the_times_of_both_graphs(load):
    predictor = load(schedule="fixed", key_interval=2)
    watch(predictor, range(6))
    summary = predictor.keyframes
    assert (summary.num_key, summary.num_nonkey) == (3, 3)
    assert 0 < summary.key_ms < 1e4
    assert 0 < summary.nonkey_ms < 1e4


# --- bundles without key frames


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("plain"), num_samples=0)


def test_model_without_key_frames_says_nothing_of_them(plain):
    with runtime.load(plain, "onnxruntime", schedule="key") as predictor:
        detections = predictor(frame(3), time_s=0.0, num_dropped=9)
        assert (detections.is_key, predictor.keyframes) == (None, None)
        assert predictor.timings.graph == "model"
        assert "is_key" not in detections.to_json()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_interval": 5}, "key_interval is for models with key frames; .* Leave it out"),
        ({"schedule": "adaptive"}, "schedule is for models with key frames"),
        ({"schedule": "fxed"}, "did you mean 'fixed'"),
    ],
    ids=["interval", "schedule", "spelling"],
)
def test_key_frames_of_a_model_without_them_are_refused(plain, options, message):
    with pytest.raises(ValueError, match=message):
        runtime.load(plain, "onnxruntime", **options)


# --- images


def test_images_are_key_frames_every_one(folder, tmp_path):
    import cv2

    for left in (5, 15, 25, 35):
        cv2.imwrite(str(tmp_path / f"{left:02}.png"), frame(left))
    out = tmp_path / "out" / "results.json"
    arguments = [str(folder), f"{tmp_path}/*.png", "--out", str(out), "--backend", "onnxruntime"]
    assert runtime.run_images.main(arguments) == 0
    found = json.loads(out.read_text())
    assert [round(each["bbox"][0]) for each in found] == [5, 15, 25, 35]
    assert np.unique([each["category_id"] for each in found]).tolist() == [3]
    assert CLASSES[0] == "blue ball"
