import logging
import shutil

import numpy as np
import pytest
from tiny_bundle import find_colours, write_tiny_bundle
from tiny_video_bundle import write_tiny_video_bundle

import runtime.sessions
from runtime.contract.bundle import Bundle
from runtime.contract.errors import BundleError, SessionError
from runtime.sessions import Backend, open_session

CPU_BACKENDS = ("onnxruntime", "openvino")
# Scores are a product of two float32 numbers; the engines may round it differently.
SCORE_ULPS = 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny"), num_samples=4)


@pytest.fixture(params=CPU_BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def feeds(folder):
    return Bundle.open(folder).samples().feeds


def part(feeds, start, stop):
    return {name: array[start:stop] for name, array in feeds.items()}


def without_change(results):
    """What a frame between key frames gives as every graph does."""
    assert set(results) - {"change"} < set(results)
    return {name: array for name, array in results.items() if name != "change"}


def assert_same(got, expected):
    assert set(got) == set(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        np.testing.assert_allclose(got[name], array, atol=SCORE_ULPS, err_msg=name)


def test_session_gives_what_the_samples_hold(folder, backend, feeds):
    session = open_session(Bundle.open(folder), backend)
    assert_same(session.run(feeds), Bundle.open(folder).samples().results)
    session.close()


def test_single_images_give_what_the_batch_gives(folder, backend, feeds):
    session = open_session(Bundle.open(folder), backend)
    batched = session.run(feeds)
    for row in range(4):
        single = session.run(part(feeds, row, row + 1))
        assert_same(single, part(batched, row, row + 1))
    session.close()


def test_submitted_inferences_answer_in_any_order_of_asking(folder, backend, feeds):
    session = open_session(Bundle.open(folder), backend)
    stream = session.open_stream()
    tickets = [stream.submit(part(feeds, row, row + 1)) for row in range(4)]
    for row in (2, 0, 3, 1):
        expected = find_colours(
            *(part(feeds, row, row + 1)[n] for n in ("image", "score_threshold"))
        )
        assert_same(tickets[row].result(), expected)
    session.close()


def test_results_stay_the_callers_when_the_stream_goes_on(folder, backend, feeds):
    session = open_session(Bundle.open(folder), backend)
    stream = session.open_stream()
    first = stream.submit(part(feeds, 0, 1)).result()
    kept = {name: array.copy() for name, array in first.items()}
    for row in (1, 2, 3):
        stream.submit(part(feeds, row, row + 1)).result()
    assert_same(first, kept)
    session.close()


def test_session_reads_feeds_that_are_not_contiguous(folder, backend, feeds):
    session = open_session(Bundle.open(folder), backend)
    turned = part(feeds, 0, 2)
    turned["image"] = np.asfortranarray(turned["image"])
    assert_same(session.run(turned), session.run(part(feeds, 0, 2)))
    session.close()


def test_session_reads_feeds_that_are_read_only(folder, backend, feeds):
    session = open_session(Bundle.open(folder), backend)
    locked = part(feeds, 0, 1)
    for array in locked.values():
        array.flags.writeable = False
    assert_same(session.run(locked), session.run(part(feeds, 0, 1)))
    session.close()


REFUSED_FEEDS = {
    "missing input": (lambda f: f.pop("iou_threshold"), "fed image, score_threshold; expected"),
    "unknown input": (lambda f: f.update(colour=f["image"]), "fed colour, image"),
    "float image": (lambda f: f.update(image=f["image"].astype(np.float32)), "is float32"),
    "other size": (lambda f: f.update(image=f["image"][:, :-1]), r"is uint8 \(1, 47, 64, 3\)"),
    "batch not compiled": (
        lambda f: f.update(image=np.repeat(f["image"], 3, axis=0)),
        "has batch 3; this bundle takes 1, 2, 4",
    ),
    "batches differ": (
        lambda f: f.update(image=np.repeat(f["image"], 2, axis=0)),
        r"'score_threshold' is float32 \(1, 3\); expected float32 \(2, 3\)",
    ),
    "a list": (lambda f: f.update(image=[1, 2]), "'image' is list; expected an array"),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED_FEEDS.values(), ids=REFUSED_FEEDS)
def test_session_refuses_feeds_with_the_reason(folder, backend, feeds, spoil, message):
    session = open_session(Bundle.open(folder), backend)
    wrong = part(feeds, 0, 1)
    spoil(wrong)
    with pytest.raises(SessionError, match=message):
        session.run(wrong)
    assert_same(session.run(part(feeds, 0, 1)), session.run(part(feeds, 0, 1)))
    session.close()


def test_session_refuses_an_unknown_graph(folder, backend, feeds):
    session = open_session(Bundle.open(folder), backend)
    with pytest.raises(SessionError, match="no graph 'key'; this session has model"):
        session.run(part(feeds, 0, 1), "key")
    session.close()


def test_closed_session_says_so(folder, backend, feeds):
    session = open_session(Bundle.open(folder), backend)
    session.close()
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session.run(part(feeds, 0, 1))


def test_int8_on_a_cpu_takes_the_file_for_cpus(tmp_path, backend, feeds):
    folder = write_tiny_bundle(
        tmp_path,
        precisions=("fp32", "int8"),
        cpu_precisions=("int8",),
        base_scores={"model.int8.cpu.onnx": (0.5, 0.5, 0.5)},
    )
    session = open_session(Bundle.open(folder), backend, "int8")
    image = np.zeros((1, 48, 64, 3), np.uint8)
    image[0, 4:9, 4:9, 0] = 255
    results = session.run({**part(feeds, 0, 1), "image": image})
    assert results["scores"][0, 0] == pytest.approx(0.5)
    session.close()


def test_session_loads_weights_from_external_data(tmp_path, backend, feeds):
    folder = write_tiny_bundle(tmp_path, has_external_data=True)
    session = open_session(Bundle.open(folder), backend)
    assert_same(session.run(feeds), Bundle.open(folder).samples().results)
    session.close()


def test_temporal_state_reaches_the_next_frame(tmp_path, backend, feeds):
    session = open_session(Bundle.open(write_tiny_video_bundle(tmp_path)), backend)
    stream = session.open_stream()
    first, other = part(feeds, 0, 1), part(feeds, 1, 2)
    expected = stream.submit(first, "key").result()
    for _ in range(3):
        assert_same(without_change(stream.submit(other, "nonkey").result()), expected)
    session.close()


def test_temporal_state_belongs_to_its_stream(tmp_path, backend, feeds):
    session = open_session(Bundle.open(write_tiny_video_bundle(tmp_path)), backend)
    streams = [session.open_stream(), session.open_stream()]
    frames = [part(feeds, row, row + 1) for row in (0, 1)]
    keys = [
        stream.submit(frame, "key").result() for stream, frame in zip(streams, frames, strict=True)
    ]
    tickets = [stream.submit(frames[0], "nonkey") for stream in streams]
    for ticket, expected in zip(tickets, keys, strict=True):
        assert_same(without_change(ticket.result()), expected)
    session.close()


def test_temporal_state_follows_key_frames_submitted_without_waiting(tmp_path, backend, feeds):
    session = open_session(Bundle.open(write_tiny_video_bundle(tmp_path)), backend)
    stream = session.open_stream()
    tickets = []
    for row in range(4):
        frame = part(feeds, row, row + 1)
        tickets.append((stream.submit(frame, "key"), stream.submit(part(feeds, 0, 1), "nonkey")))
    for key, nonkey in tickets:
        assert_same(without_change(nonkey.result()), key.result())
    session.close()


def test_nonkey_frame_before_any_key_frame_is_refused(tmp_path, backend, feeds):
    session = open_session(Bundle.open(write_tiny_video_bundle(tmp_path)), backend)
    with pytest.raises(SessionError, match="Run the graph 'key' first"):
        session.run(part(feeds, 0, 1), "nonkey")
    session.close()


def test_failed_verdict_is_refused(tmp_path, backend):
    folder = write_tiny_bundle(tmp_path, verdicts={("fp32", backend): "fail"})
    with pytest.raises(BundleError, match="--allow-unverified"):
        open_session(Bundle.open(folder), backend)


def test_failed_verdict_is_loaded_where_that_is_allowed(tmp_path, backend):
    folder = write_tiny_bundle(tmp_path, verdicts={("fp32", backend): "fail"})
    session = open_session(Bundle.open(folder, allow_unverified=True), backend)
    assert session.backend == backend
    session.close()


def test_precision_that_the_bundle_lacks_is_refused_with_the_list(folder, backend):
    with pytest.raises(BundleError, match="no precision 'int8'; it has fp32"):
        open_session(Bundle.open(folder), backend, "int8")


def test_damaged_graph_is_refused_in_one_line(tmp_path, backend):
    folder = write_tiny_bundle(tmp_path / "tiny")
    alone = tmp_path / "alone.onnx"
    data = (folder / "model.fp32.onnx").read_bytes()
    alone.write_bytes(data.replace(b"GatherElements", b"GatherNonsense"))
    with pytest.raises(SessionError, match=r"refuses .*alone\.onnx") as caught:
        open_session(Bundle.open(alone), backend)
    assert "\n" not in str(caught.value)


def test_single_file_runs_alone(folder, tmp_path, backend, feeds):
    alone = tmp_path / "alone.onnx"
    shutil.copy(folder / "model.fp32.onnx", alone)
    session = open_session(Bundle.open(alone), backend)
    assert_same(session.run(feeds), Bundle.open(folder).samples().results)
    session.close()


@pytest.mark.parametrize(
    ("backend_name", "options", "message"),
    [
        ("openvinno", {}, "did you mean 'openvino'"),
        ("openvino", {"thread": 2}, "no option 'thread'; it has cache, inference_precision"),
        ("openvino", {"device": "cuda"}, "no option 'device'"),
        ("openvino", {"threads": 0}, "threads is 0"),
        ("openvino", {"inference_precision": "int4"}, "inference_precision is 'int4'"),
        ("onnxruntime", {"device": "tpu"}, "unknown device 'tpu'"),
        ("onnxruntime", {"threads": -1}, "threads is -1"),
        ("auto", {"treads": 2}, "did you mean 'threads'"),
    ],
)
def test_wrong_options_are_refused_with_the_right_ones(folder, backend_name, options, message):
    with pytest.raises(SessionError, match=message):
        open_session(Bundle.open(folder), backend_name, **options)


def test_threads_do_not_change_the_results(folder, backend, feeds):
    one = open_session(Bundle.open(folder), backend, threads=1)
    two = open_session(Bundle.open(folder), backend, threads=2)
    assert_same(one.run(feeds), two.run(feeds))
    one.close()
    two.close()


def only(monkeypatch, *entries):
    monkeypatch.setattr(runtime.sessions, "BACKENDS", entries)


ABSENT = Backend("imaginary", "runtime.sessions.imaginary", "no_such_package")
OPENVINO = next(entry for entry in runtime.sessions.BACKENDS if entry.name == "openvino")
ORT = next(entry for entry in runtime.sessions.BACKENDS if entry.fixed.get("device") == "cpu")


def test_auto_takes_the_first_that_works_and_logs_why_not_the_others(folder, monkeypatch, caplog):
    only(monkeypatch, ABSENT, ORT, OPENVINO)
    with caplog.at_level(logging.INFO, "kestrel.runtime"):
        session = open_session(Bundle.open(folder))
    assert session.backend == "onnxruntime"
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "imaginary",
        folder.name,
        "onnxruntime",
    ]
    assert "no_such_package" in caplog.records[0].message
    session.close()


def test_auto_says_why_nothing_works(folder, monkeypatch):
    only(monkeypatch, ABSENT)
    with pytest.raises(SessionError, match=r"no backend can run .*'no_such_package' is not inst"):
        open_session(Bundle.open(folder))


def test_auto_passes_over_a_backend_that_failed_verification(tmp_path, monkeypatch, caplog):
    only(monkeypatch, OPENVINO, ORT)
    verdicts = {("fp32", "openvino"): "fail", ("fp32", "onnxruntime"): "pass"}
    session = open_session(Bundle.open(write_tiny_bundle(tmp_path, verdicts=verdicts)))
    assert session.backend == "onnxruntime"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    session.close()


@pytest.mark.parametrize(
    ("verdict", "warnings"),
    [
        ("pass", []),
        ("not run", ["tiny: fp32 on openvino was never verified; run export/verify.py on it"]),
    ],
)
def test_what_was_never_verified_is_loaded_with_one_warning(tmp_path, caplog, verdict, warnings):
    folder = write_tiny_bundle(tmp_path / "tiny", verdicts={("fp32", "openvino"): verdict})
    open_session(Bundle.open(folder), "openvino").close()
    assert [record.message for record in caplog.records] == warnings


def test_lone_file_is_loaded_with_a_warning(folder, tmp_path, caplog):
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((folder / "model.fp32.onnx").read_bytes())
    open_session(Bundle.open(alone), "onnxruntime", device="cpu").close()
    assert "alone: fp32 on onnxruntime was never verified; open its bundle's" in caplog.text


def test_auto_refuses_where_every_backend_failed_verification(tmp_path, monkeypatch):
    only(monkeypatch, OPENVINO, ORT)
    verdicts = {("fp32", "openvino"): "fail", ("fp32", "onnxruntime"): "fail"}
    folder = write_tiny_bundle(tmp_path, verdicts=verdicts)
    with pytest.raises(BundleError, match="verdict"):
        open_session(Bundle.open(folder))


def test_auto_on_a_cpu_does_not_try_gpus(folder, caplog):
    with caplog.at_level(logging.INFO, "kestrel.runtime"):
        session = open_session(Bundle.open(folder), device="cpu")
    assert session.device.startswith("CPU")
    assert not [record for record in caplog.records if "tensorrt" in record.message]
    session.close()


def test_auto_keeps_options_that_only_one_backend_knows(folder, monkeypatch):
    only(monkeypatch, ORT, OPENVINO)
    session = open_session(Bundle.open(folder), inference_precision="f32", threads=1)
    assert session.backend == "onnxruntime"
    session.close()
