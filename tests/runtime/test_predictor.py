import threading

import numpy as np
import pytest
from tiny_bundle import CLASSES, find_colours, paint, write_tiny_bundle

import runtime.feeding
from runtime.contract.errors import BundleError, SessionError, SourceError
from runtime.contract.manifest import InputGeometry
from runtime.preprocess import Letterbox

SOURCE_PIXELS = 2.0  # the frame is four times the network's input: half a network pixel
GEOMETRY = InputGeometry(48, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def predictor(request, folder):
    with runtime.load(folder, request.param) as loaded:
        yield loaded


def frames_of_many_sizes():
    return [
        paint(192, 256, {0: (40, 40, 120, 100)}),
        paint(100, 400, {1: (20, 20, 200, 80), 2: (300, 10, 380, 90)}),
        paint(300, 90, {2: (10, 100, 80, 200)}),
        paint(48, 64, {}),
        paint(96, 128, {0: (0, 0, 64, 48), 1: (64, 48, 128, 96), 2: (70, 4, 120, 40)}),
    ]


def assert_same(got, expected):
    np.testing.assert_array_equal(got.classes, expected.classes)
    np.testing.assert_allclose(got.scores, expected.scores, atol=1e-6)
    np.testing.assert_allclose(got.boxes_xyxy, expected.boxes_xyxy, atol=1e-3)


def test_results_are_in_pixels_of_the_source_frame(predictor):
    detections = predictor(paint(192, 256, {0: (40, 40, 120, 100), 2: (160, 100, 240, 180)}))
    assert [each.name for each in detections] == ["blue ball", "red car"]
    np.testing.assert_allclose(
        detections.boxes_xyxy, [[40, 40, 120, 100], [160, 100, 240, 180]], atol=SOURCE_PIXELS
    )


def test_results_are_those_of_the_letterboxed_frame(predictor):
    for frame in frames_of_many_sizes():
        letterbox = Letterbox.fit(frame.shape[:2], GEOMETRY)
        expected = find_colours(letterbox.apply(frame)[None], np.full((1, 3), 0.3, np.float32))
        detections = predictor(frame)
        count = int(expected["num_detections"][0])
        np.testing.assert_array_equal(detections.classes, expected["classes"][0, :count])
        boxes = letterbox.to_source(expected["boxes_xyxy"][0, :count])
        np.testing.assert_allclose(detections.boxes_xyxy, boxes, atol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_batch_gives_what_single_frames_give(predictor, count):
    frames = frames_of_many_sizes()[:count]
    together = predictor.batch(frames)
    assert len(together) == count
    for frame, result in zip(frames, together, strict=True):
        assert_same(result, predictor(frame))


def test_batch_of_nothing_gives_nothing(predictor):
    assert predictor.batch([]) == []


def test_submitted_frames_overlap_and_keep_their_results(predictor):
    frames = frames_of_many_sizes()
    tickets = [predictor.submit(frame) for frame in frames]
    for frame, ticket in reversed(list(zip(frames, tickets, strict=True))):
        assert_same(ticket.result(), predictor(frame))


def test_frame_may_be_reused_once_it_is_submitted(predictor):
    frame = paint(192, 256, {0: (40, 40, 120, 100)})
    ticket = predictor.submit(frame)
    frame[:] = 0
    assert len(ticket.result()) == 1


def test_frames_one_after_another_reuse_their_input_buffer(predictor, monkeypatch):
    predictor(paint(192, 256, {}))
    monkeypatch.setattr(runtime.feeding, "Buffer", None)  # making one more would fail
    for frame in frames_of_many_sizes():
        predictor(frame)


def test_result_asked_for_twice_is_the_same(predictor):
    ticket = predictor.submit(paint(192, 256, {0: (40, 40, 120, 100)}))
    assert ticket.result() is ticket.result()


def test_score_threshold_filters_by_class(predictor):
    frame = paint(96, 128, {0: (0, 0, 64, 48), 1: (64, 48, 128, 96), 2: (70, 4, 120, 40)})
    assert len(predictor(frame)) == 3
    names = [each.name for each in predictor(frame, {"green cone": 2.0, "red car": 0.59})]
    assert names == ["blue ball", "red car"]
    assert [each.name for each in predictor(frame, 0.7)] == ["blue ball", "green cone"]
    assert [each.name for each in predictor(frame, [2, 2, 0])] == ["red car"]
    assert len(predictor(frame)) == 3


def test_timings_are_there_once_the_result_is(predictor):
    ticket = predictor.submit(paint(96, 128, {}))
    assert ticket.timings is None
    ticket.result()
    timings = ticket.timings
    assert predictor.timings is timings
    assert min(timings.preprocess_ms, timings.engine_ms, timings.finish_ms) > 0


def test_predictor_says_what_it_runs_on(predictor):
    assert predictor.backend in ("onnxruntime", "openvino")
    assert predictor.device.startswith("CPU")
    assert predictor.precision == "fp32"
    assert predictor.manifest.classes == CLASSES


def test_bad_frame_leaves_the_predictor_usable(predictor):
    frame = paint(96, 128, {0: (0, 0, 64, 48)})
    expected = predictor(frame)
    with pytest.raises(SourceError, match="float64"):
        predictor(frame.astype(float))
    with pytest.raises(SourceError, match="NoneType"):
        predictor(None)
    assert_same(predictor(frame), expected)


def test_frames_of_changing_size_leave_no_trace_in_one_another(predictor):
    frames = frames_of_many_sizes()
    first = [predictor(frame) for frame in frames]
    for frame, expected in reversed(list(zip(frames, first, strict=True))):
        assert_same(predictor(frame), expected)


def test_streams_of_one_engine_run_in_threads_of_their_own(predictor):
    frames = frames_of_many_sizes()[:2]
    expected = [predictor(frame) for frame in frames]
    failures = []

    def watch(frame, wanted):
        stream = predictor.open_stream()
        for _ in range(50):
            try:
                assert_same(stream(frame), wanted)
            except AssertionError as error:
                failures.append(error)
        stream.close()

    threads = [
        threading.Thread(target=watch, args=pair) for pair in zip(frames, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_closing_a_stream_leaves_the_engine_to_the_others(predictor):
    predictor.open_stream().close()
    assert len(predictor(paint(192, 256, {0: (40, 40, 120, 100)}))) == 1


def test_warm_up_runs_every_batch_and_leaves_no_timings(predictor):
    predictor.warm_up()
    assert predictor.timings is None


def test_drawing_a_result_changes_its_frame(predictor):
    frame = paint(192, 256, {0: (40, 40, 120, 100)})
    before = frame.copy()
    assert predictor.draw(frame, predictor(frame)) is frame
    assert (frame != before).any()


def test_closed_predictor_says_so(folder):
    predictor = runtime.load(folder, "onnxruntime")
    predictor.close()
    predictor.close()
    with pytest.raises(SessionError, match="this predictor is closed"):
        predictor(paint(48, 64, {}))


def test_task_that_this_runtime_does_not_know_is_refused(tmp_path):
    folder = write_tiny_bundle(tmp_path)
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"detection"', '"semantic"'))
    with pytest.raises(BundleError, match="task is 'semantic'"):
        runtime.load(folder, "onnxruntime")


def test_failed_verdict_is_refused_unless_allowed(tmp_path):
    folder = write_tiny_bundle(tmp_path, verdicts={("fp32", "onnxruntime"): "fail"})
    with pytest.raises(BundleError, match="verdict"):
        runtime.load(folder, "onnxruntime")
    with runtime.load(folder, "onnxruntime", allow_unverified=True) as predictor:
        assert predictor.backend == "onnxruntime"


def test_batch_beyond_the_largest_size_takes_thresholds_frame_by_frame(tmp_path):
    folder = write_tiny_bundle(tmp_path, batches=(1, 2))
    frames = [paint(48, 64, {0: (4, 4, 30, 30), 2: (34, 8, 60, 40)}) for _ in range(5)]
    scores = np.full((5, 3), 0.1, np.float32)
    scores[1::2] = 2.0  # everything off in every second frame
    with runtime.load(folder, backend="onnxruntime") as predictor:
        found = predictor.batch(frames, scores, np.full(5, 0.5, np.float32))
        alone = [predictor(frame, row[None]) for frame, row in zip(frames, scores, strict=True)]
    assert [len(each) for each in found] == [len(each) for each in alone]
    assert len(found[1]) == len(found[3]) == 0
