"""A bundle is exchanged between two frames: none is lost, and each is drawn by who found it."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from sink_servers import PATIENCE_S, wait_for
from test_web_pictures import decode, is_annotated
from tiny_bundle import CLASSES, InputGeometry, write_tiny_bundle
from tiny_video_bundle import write_tiny_video_bundle
from web_run import Camera, WebRun

from runtime import threads_left
from runtime.contract.bundle import hash_file
from runtime.contract.errors import SessionError
from runtime.contract.files import write_text
from runtime.contract.manifest import MANIFEST_NAME, Graph, Manifest
from runtime.contract.outputs import OUTPUTS
from runtime.web import run_face, switching
from runtime.web.limits import Limits
from runtime.web.switching import BusyError, Loaded, Switch, load_beside

ROOT = Path(__file__).resolve().parents[2]

GEOMETRY = InputGeometry(96, 128)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Three that differ by what they find: two colours, one of them, and nothing that runs."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "first": write_tiny_bundle(folder / "first", geometry=GEOMETRY, num_samples=0),
        "other": write_tiny_bundle(
            folder / "other",
            geometry=GEOMETRY,
            num_samples=0,
            base_scores={"model.fp32.onnx": (0.9, 0.8, 0.1)},
        ),
        "failed": write_tiny_bundle(
            folder / "failed",
            geometry=GEOMETRY,
            num_samples=0,
            verdicts={("fp32", "onnxruntime"): "fail"},
        ),
    }


def write_mask_bundle(folder: Path) -> Path:
    """The tiny detector, whose masks fill their boxes, as a bundle of another task."""
    write_tiny_bundle(folder, geometry=GEOMETRY, num_samples=0)
    manifest = Manifest.from_file(folder / MANIFEST_NAME)
    path = folder / "model.fp32.onnx"
    model = onnx.load(path)
    for name, value in (("full", 255), ("none", 0)):
        constant = np.full((1, 1, 12, 16), value, np.uint8)
        model.graph.initializer.append(onnx.numpy_helper.from_array(constant, name))
    sides = onnx.numpy_helper.from_array(np.array([2, 3], np.int64), "mask_sides")
    model.graph.initializer.append(sides)
    make = onnx.helper.make_node
    model.graph.node.extend(
        [
            make("Unsqueeze", ["scores", "mask_sides"], ["score_maps"]),
            make("Greater", ["score_maps", "zero_scalar"], ["is_found"]),
            make("Where", ["is_found", "full", "none"], ["masks"]),
        ]
    )
    shape = ["B", manifest.max_detections, 12, 16]
    value = onnx.helper.make_tensor_value_info("masks", onnx.TensorProto.UINT8, shape)
    model.graph.output.append(value)
    onnx.save(model, path)
    graph = Graph({"fp32": path.name}, sha256={path.name: hash_file(path)})
    manifest = dataclasses.replace(
        manifest,
        task="instance",
        outputs=OUTPUTS["instance"],
        mask_hw=(12, 16),
        graphs={"model": graph},
    )
    write_text(folder / MANIFEST_NAME, manifest.to_json())
    return folder


def allow(*paths):
    return [word for path in paths for word in ("--web-bundle", str(path))]


def test_no_frame_is_lost_between_two_bundles(bundles):
    sources = [Camera(name, is_live=False, interval_s=0.002) for name in ("left", "right")]
    both, one = (CLASSES[0], CLASSES[2]), (CLASSES[0],)
    with WebRun(bundles["first"], sources, *allow(bundles["other"])) as run:
        wait_for(lambda: len(run.results.rows) > 20)
        answer = run.put("/api/bundle", {"path": str(bundles["other"])})
        assert answer.status == 200
        assert answer.json["is_running"] is True
        assert answer.json["bundle"]["name"] == "other"
        for name in ("left", "right"):
            wait_for(lambda name=name: (name, one) in {row[::2] for row in run.results.rows[-40:]})
        run.end()
        rows = run.results.rows
    for name in ("left", "right"):
        own = [row for row in rows if row[0] == name]
        assert [row[1] for row in own] == list(range(len(own)))
        found = [row[2] for row in own]
        changed = found.index(one)
        assert changed > 0
        assert found == [both] * changed + [one] * (len(own) - changed)


def test_bundle_of_another_task_draws_as_its_own(bundles, tmp_path):
    masks = write_mask_bundle(tmp_path / "masks")
    video = write_tiny_video_bundle(tmp_path / "video", GEOMETRY)
    with WebRun(bundles["first"], None, *allow(masks, video)) as run:
        plain = decode(run.get("/frame.jpg").body)
        assert is_annotated(plain)
        for path, task in ((masks, "instance"), (video, "detection")):
            assert run.put("/api/bundle", {"path": str(path)}).status == 200
            num_rows = len(run.results.rows)
            wait_for(lambda before=num_rows: len(run.results.rows) > before + 5)
            assert run.get("/api/card").json["task"] == task
            drawn = decode(run.get("/frame.jpg").body)
            assert is_annotated(drawn)
            assert np.array_equal(drawn, plain) == (task != "instance")  # masks tint their boxes
        assert run.put("/api/bundle", {"path": str(bundles["first"])}).json["is_running"]
        assert run.failure is None


@pytest.mark.parametrize(
    ("name", "words"),
    [("failed", "the verdict on fp32 with onnxruntime is 'fail'"), ("gone", "does not exist")],
)
def test_bundle_that_cannot_run_is_refused_and_the_old_one_goes_on(bundles, tmp_path, name, words):
    path = str(bundles.get(name, tmp_path / "gone"))
    with WebRun(bundles["first"], None, *allow(path)) as run:
        rows = {each["path"]: each for each in run.get("/api/bundles").json["bundles"]}
        assert (rows[path]["problem"] is not None) == (name == "gone")
        answer = run.put("/api/bundle", {"path": path})
        assert answer.status == 409
        assert words in answer.json["error"]
        assert "\n" not in answer.json["error"]
        num_rows = len(run.results.rows)
        wait_for(lambda: len(run.results.rows) > num_rows + 5)
        assert run.get("/api/state").json["bundle"]["name"] == "first"
        assert run.get("/api/state").json["switching"] is None
        assert run.put("/api/bundle", {"path": str(bundles["first"])}).status == 200


def test_only_bundles_of_the_command_line_are_loaded(bundles):
    with WebRun(bundles["first"], None, *allow(bundles["other"])) as run:
        listed = run.get("/api/bundles").json["bundles"]
        assert [(each["name"], each["is_running"]) for each in listed] == [
            ("first", True),
            ("other", False),
        ]
        for path in (bundles["failed"], f"{bundles['other']}/", "", "../first"):
            answer = run.put("/api/bundle", {"path": str(path)})
            assert answer.status == 404
            assert "choose one of GET /api/bundles" in answer.json["error"]


def test_one_exchange_at_a_time_and_thresholds_are_the_new_bundles(bundles, monkeypatch):
    begun, goes_on = threading.Event(), threading.Event()
    load = switching.open_networks

    def load_slowly(*args):
        begun.set()
        assert goes_on.wait(60)
        return load(*args)

    with WebRun(bundles["first"], None, *allow(bundles["other"])) as run:
        run.put("/api/thresholds", {"score": {"default": 0.65, "per_class": {CLASSES[0]: 0.1}}})
        monkeypatch.setattr(switching, "open_networks", load_slowly)
        path = str(bundles["other"])
        answers = []
        first = threading.Thread(
            target=lambda: answers.append(run.put("/api/bundle", {"path": path}))
        )
        first.start()
        assert begun.wait(60)
        assert run.get("/api/state").json["switching"] == {"path": path}
        num_rows = len(run.results.rows)
        wait_for(lambda: len(run.results.rows) > num_rows + 5)  # the old one runs meanwhile
        second = run.put("/api/bundle", {"path": path})
        assert (second.status, "is being loaded" in second.json["error"]) == (409, True)
        goes_on.set()
        first.join()
        assert answers[0].status == 200
        (row,) = run.get("/api/thresholds").json["sources"]
        assert row["score"] == {"default": 0.3, "per_class": {}}


# --- without a server


class Counted:
    """A predictor of numbers; it says who it is, and whether it is closed."""

    def __init__(self, name):
        self.name = name
        self.is_closed = False
        self.drew = []

    def submit(self, frame, score=None, iou=None, *, time_s=None, num_dropped=0):
        assert not self.is_closed
        return SimpleNamespace(result=lambda: [self.name, frame], timings=None)

    def draw(self, frame, result):
        self.drew.append(result)
        return frame


def loaded(name):
    predictor = Counted(name)
    closes = contextlib.ExitStack()
    closes.callback(lambda: setattr(predictor, "is_closed", True))
    networks = SimpleNamespace(infers=[predictor], batchers=[], first=None)
    return Loaded(name, networks, closes, [Limits(None, {}, None)]), predictor


def test_results_are_drawn_by_the_bundle_that_found_them_and_it_ends_after_the_last():
    (old, of_old), (new, of_new) = loaded("old"), loaded("new")
    switch = Switch(old, 1, lambda path: new)
    source = switch.infers[0]
    drawn_before = source.submit(0).result()
    under_way = [source.submit(number) for number in (1, 2)]
    asking = threading.Thread(target=lambda: switch.exchange("new", 60))
    asking.start()
    wait_for(lambda: switch._next is not None)
    assert switch.running is old
    switch.flush()  # the call is with the engine: now
    asking.join()
    assert switch.running is new
    later = source.submit(3)
    assert not of_old.is_closed
    found = [ticket.result() for ticket in (*under_way, later)]
    wait_for(lambda: of_old.is_closed)
    for result in (drawn_before, *found):
        source.draw(None, result)
    assert of_old.drew == [["old", 0], ["old", 1], ["old", 2]]
    assert of_new.drew == [["new", 3]]
    assert not of_new.is_closed
    switch.close()
    assert of_new.is_closed


def test_exchange_without_a_frame_waits_for_the_next_one():
    (old, _), (new, _) = loaded("old"), loaded("new")
    switch = Switch(old, 1, lambda path: new)
    assert switch.exchange("new", 0.01) is False
    assert switch.running is old
    assert switch.next_path == "new"
    switch.flush()
    assert switch.running is new
    assert switch.next_path is None
    switch.close()


def test_bundle_that_waits_for_its_frame_gives_way_to_a_newer_wish():
    (old, of_old), (new, of_new), (newer, of_newer) = map(loaded, ("old", "new", "newer"))
    beside = {"new": new, "newer": newer}
    switch = Switch(old, 1, beside.pop)
    refused = []

    def ask_for_new():
        with pytest.raises(BusyError, match="another bundle was asked for since"):
            switch.exchange("new", 60)
        refused.append("new")

    asking = threading.Thread(target=ask_for_new)
    asking.start()
    wait_for(lambda: switch._next is new)
    assert switch.exchange("newer", 0.01) is False
    asking.join()
    assert refused == ["new"]
    assert of_new.is_closed
    assert switch.next_path == "newer"
    switch.stay()
    assert of_newer.is_closed
    assert switch.next_path is None
    switch.flush()
    assert switch.running is old
    assert not of_old.is_closed
    switch.close()


def test_run_that_is_over_takes_no_bundle_and_frees_all():
    (old, of_old), (new, of_new) = loaded("old"), loaded("new")
    switch = Switch(old, 1, lambda path: new)
    switch.exchange("new", 0.01)
    switch.close()
    assert of_old.is_closed
    assert of_new.is_closed
    with pytest.raises(BusyError, match="the run is over"):
        switch.exchange("new", 0.01)


def test_bundle_that_comes_when_the_run_is_over_is_freed():
    (old, _), (new, of_new) = loaded("old"), loaded("new")

    def load(path):
        switch.close()
        return new

    switch = Switch(old, 1, load)
    with pytest.raises(BusyError, match="the run is over"):
        switch.exchange("new", 0.01)
    assert of_new.is_closed


def test_end_of_the_run_waits_for_the_bundle_that_is_being_loaded():
    (old, _), (new, of_new) = loaded("old"), loaded("new")
    begun, goes_on = threading.Event(), threading.Event()

    def load(path):
        begun.set()
        assert goes_on.wait(60)
        return new

    switch = Switch(old, 1, load)
    told = []

    def ask():
        with pytest.raises(BusyError, match="the run is over"):
            switch.exchange("new", 60)
        told.append("over")

    asking = threading.Thread(target=ask)
    asking.start()
    assert begun.wait(60)
    closing = threading.Thread(target=switch.close)
    closing.start()
    wait_for(lambda: switch._is_closed)
    assert closing.is_alive()
    goes_on.set()
    closing.join()
    assert not asking.is_alive()
    assert told == ["over"]
    assert of_new.is_closed


def test_bundle_that_takes_too_long_is_left_and_the_old_one_freed(monkeypatch):
    (old, of_old), (new, _) = loaded("old"), loaded("new")
    begun, goes_on = threading.Event(), threading.Event()
    monkeypatch.setattr(switching, "END_S", 0.01)
    monkeypatch.setattr(threads_left, "_left", [])

    def load(path):
        begun.set()
        assert goes_on.wait(60)
        return new

    switch = Switch(old, 1, load)
    asking = threading.Thread(target=lambda: refuse_quietly(switch))
    asking.start()
    assert begun.wait(60)
    switch.close()
    assert of_old.is_closed
    assert threads_left._left == [asking]
    goes_on.set()
    asking.join()
    assert threads_left.end_process(3) == 3  # nothing runs any longer


def refuse_quietly(switch):
    with contextlib.suppress(BusyError):
        switch.exchange("new", 60)


def test_process_with_a_thread_that_was_left_ends_with_its_status_and_its_words():
    code = """
import atexit, sys, threading
from runtime.threads_left import end_process, leave
atexit.register(print, "the interpreter ends")
thread = threading.Thread(target=threading.Event().wait)
thread.start()
leave(thread)
print("done")
sys.exit(end_process(2))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "done\n", "")


def test_request_that_loads_at_the_end_of_the_run_is_told_so(bundles, monkeypatch, caplog):
    begun, goes_on = threading.Event(), threading.Event()
    load = switching.open_networks

    def load_slowly(*args):
        begun.set()
        assert goes_on.wait(60)
        return load(*args)

    answers = []
    with WebRun(bundles["first"], None, *allow(bundles["other"])) as run:
        monkeypatch.setattr(switching, "open_networks", load_slowly)
        path = str(bundles["other"])
        asking = threading.Thread(
            target=lambda: answers.append(run.put("/api/bundle", {"path": path}))
        )
        asking.start()
        assert begun.wait(60)
        run.end()
        run.server.close()
        asking.join()
        goes_on.set()
    assert answers[0].status == 409
    assert "the run is over" in answers[0].json["error"]
    assert not [each for each in caplog.records if each.exc_info]


def test_switch_that_waits_for_a_frame_is_seen_and_can_be_taken_back(bundles, monkeypatch):
    monkeypatch.setattr(run_face, "SWITCH_WAIT_S", 0.01)
    with WebRun(bundles["first"], None, *allow(bundles["other"])) as run:
        wait_for(lambda: run.results.rows)
        run.sources[0].gate.clear()
        drained = run.page.switch.flush
        monkeypatch.setattr(run.page.switch, "flush", lambda: None)
        other, first = str(bundles["other"]), str(bundles["first"])
        assert run.put("/api/bundle", {"path": other}).json["is_running"] is False
        assert run.get("/api/state").json["switching"] == {"path": other}
        assert run.put("/api/bundle", {"path": first}).json["is_running"] is True
        assert run.get("/api/state").json["switching"] is None
        monkeypatch.setattr(run.page.switch, "flush", drained)


def test_bundle_that_takes_crops_is_refused(bundles, monkeypatch):
    crops = SimpleNamespace(manifest=SimpleNamespace(task="pose_crop"))
    monkeypatch.setattr("runtime.contract.bundle.Bundle.open", lambda *args, **options: crops)
    args = SimpleNamespace(allow_unverified=False)
    with pytest.raises(SessionError, match="is of task pose_crop.*Give it as --pose"):
        load_beside(args, "crops", 1)


def test_what_is_not_drawn_is_forgotten():
    (old, _) = loaded("old")
    source = Switch(old, 1, lambda path: old).infers[0]
    for number in range(100):
        source.submit(number).result()
    assert len(source._undrawn) == switching.MOST_UNDRAWN
