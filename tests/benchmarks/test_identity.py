"""IDF1 and switches, against cases worked out by hand and the clips of others.

Forty random clips agreed with motmetrics 1.4.0 to the last switch.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_bundle import write_tiny_bundle

from benchmarks import tracking
from benchmarks.measure.identity import Boxes, IdentityScores, score_clip, true_ids
from runtime import predictor
from runtime.contract.errors import EXIT_BAD_INPUT, run_script
from runtime.results import Detections
from training.data.street.vocabulary import CLASSES

HERE, THERE = (0, 0, 10, 10), (100, 0, 110, 10)


def frame(boxes: dict[int, tuple], classes: int = 0) -> Boxes:
    """{id: box} of one class."""
    ids = np.array(list(boxes), np.int64)
    places = np.array(list(boxes.values()), np.float64).reshape(-1, 4)
    return Boxes(ids, np.full(len(ids), classes, np.int32), places)


def clip(*frames: dict[int, tuple]) -> list[Boxes]:
    return [frame(each) for each in frames]


def test_perfect_tracks_score_one():
    truth = clip(*[{1: HERE, 2: THERE}] * 5)
    scores = score_clip(truth, clip(*[{8: HERE, 9: THERE}] * 5))
    assert (scores.idf1, scores.mota, scores.num_switches) == (1.0, 1.0, 0)


def test_an_id_that_changes_in_the_middle():
    """Ten frames, id 7 in six and 8 in four: IDTP 6, IDFP 4, IDFN 4, one switch."""
    scores = score_clip(clip(*[{1: HERE}] * 10), clip(*[{7: HERE}] * 6, *[{8: HERE}] * 4))
    assert scores.idf1 == pytest.approx(2 * 6 / (2 * 6 + 4 + 4))
    assert (scores.num_switches, scores.num_ids, scores.mota) == (1, 2, pytest.approx(0.9))


def test_ids_that_swap():
    """The objects swap ids after six of ten frames: IDTP 12 of 20 boxes, two switches."""
    truth = clip(*[{1: HERE, 2: THERE}] * 10)
    found = clip(*[{7: HERE, 8: THERE}] * 6, *[{8: HERE, 7: THERE}] * 4)
    scores = score_clip(truth, found)
    assert (scores.idf1, scores.num_switches) == (pytest.approx(0.6), 2)


def test_gaps_are_no_switch_and_false_boxes_cost():
    """Two of ten missed, three false: IDF1 16 / (10 + 11), MOTA 1 - (2 + 3) / 10."""
    found = [{7: HERE}] * 4 + [{}] * 2 + [{7: HERE}] * 4
    for place, false in enumerate((20, 21, 22)):
        found[place] = {**found[place], false: THERE}
    scores = score_clip(clip(*[{1: HERE}] * 10), clip(*found))
    assert scores.idf1 == pytest.approx(16 / 21)
    assert (scores.mota, scores.num_switches) == (pytest.approx(0.5), 0)


def test_an_object_keeps_its_box_while_that_covers_it():
    near = (2, 0, 12, 10)  # 0.67 of HERE
    found = clip({7: near}, {7: near, 8: HERE}, {7: near, 8: HERE})
    assert score_clip(clip(*[{1: HERE}] * 3), found).num_switches == 0


def test_a_box_of_another_class_covers_nothing():
    scores = score_clip([frame({1: HERE})], [frame({1: HERE}, classes=1)])
    assert (scores.idf1, scores.num_covered) == (0.0, 0)


def test_what_lies_on_an_ignored_region_does_not_count():
    found = clip({7: HERE, 8: THERE})
    region = [np.array([(95, -5, 120, 15)], np.float64)]
    assert score_clip(clip({1: HERE}), found, region).idf1 == 1.0
    assert score_clip(clip({1: HERE}), found, [np.zeros((0, 4))]).idf1 == pytest.approx(2 / 3)
    on_an_object = score_clip(clip({1: HERE, 2: THERE}), found, region)
    assert on_an_object.num_found == 2


def test_nothing_and_nothing_is_right():
    scores = score_clip(clip({}, {}), clip({}, {}))
    assert (scores.idf1, scores.mota) == (1.0, 1.0)


def test_scores_of_clips_add_up():
    one = score_clip(clip(*[{1: HERE}] * 4), clip(*[{1: HERE}] * 4))
    two = score_clip(clip(*[{1: HERE}] * 4), clip(*[{}] * 4))
    assert (one + two).idf1 == pytest.approx(8 / 12)
    assert one + IdentityScores() == one


def test_true_ids_are_those_of_the_objects():
    given = true_ids(frame({4: HERE, 5: THERE}), frame({0: THERE, 1: (50, 50, 60, 60), 2: HERE}))
    assert given.ids.tolist() == [5, -2, 4]


def test_bundle_of_other_classes_is_refused(tmp_path, capsys):
    bundle = write_tiny_bundle(tmp_path / "tiny", num_samples=0)
    arguments = [str(bundle), "--backend", "onnxruntime", "--clips", "1"]
    assert run_script(lambda: tracking.main(arguments)) == EXIT_BAD_INPUT
    assert "expected a bundle of the street's classes" in capsys.readouterr().err


class Blind:
    """A detector of the street's classes that sees nothing."""

    manifest = SimpleNamespace(
        task="detection", classes=CLASSES, defaults=SimpleNamespace(score_threshold=0.3)
    )

    def __enter__(self):
        return self

    def __exit__(self, *about):
        return None

    def __call__(self, frame_bgr, score_threshold):
        assert frame_bgr.flags.c_contiguous
        none = np.zeros(0, np.float32)
        return Detections(none.reshape(0, 4), none, none.astype(np.int32), CLASSES)


def test_script_tracks_clips_and_writes_its_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predictor, "load", lambda *_, **__: Blind())
    for name in ("describe_bundle", "describe_machine", "describe_libraries"):
        monkeypatch.setattr(tracking, name, lambda *_: {})
    out = tmp_path / "record.json"
    arguments = ["blind", "--clips", "1", "--frames", "4", "--steps", "1", "2", "--out", str(out)]
    assert tracking.main(arguments) == 0
    record = json.loads(out.read_text())
    rows = {(row["boxes"], row["ids_by"], row["step"]): row for row in record["scores"]}
    assert rows["true", "tracker", 1]["true_boxes"] > rows["true", "tracker", 2]["true_boxes"] > 0
    assert 0.4 < rows["true", "tracker", 1]["idf1"] <= rows["true", "truth", 1]["idf1"] + 0.1
    assert rows["found", "tracker", 1]["idf1"] == 0.0
    assert "idf1" in capsys.readouterr().out
