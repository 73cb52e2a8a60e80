"""A predictor with ids and counters, alone and in the company of the others."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_bundle import CLASSES, InputGeometry, paint, write_tiny_bundle
from tracks import NAMES, ids_by_x, seen

from runtime.contract.manifest import Joints
from runtime.draw import UNTRACKED_BGR, draw_detections, track_colour
from runtime.poses import Poses
from runtime.predictor import Timings, load
from runtime.results import Detections
from runtime.smoothing import PoseSmoother, SmoothedPredictor, SmoothingOptions
from runtime.topdown import TopDown
from runtime.tracking.counting import Counting
from runtime.tracking.counts import Line, Zone
from runtime.tracking.tracked import TrackedPredictor

FRAME = np.zeros((120, 300, 3), np.uint8)
GATE = Line("gate", (100, 120), (100, 0))


class Finder:
    """Finds what it is told to, if its score is over the threshold that it is given."""

    manifest = SimpleNamespace(
        task="detection",
        classes=NAMES,
        inputs=("image", "score_threshold", "iou_threshold"),
        defaults=SimpleNamespace(score_threshold=0.5, iou_threshold=0.5),
    )

    def __init__(self, frames: list[Detections]) -> None:
        self.frames = iter(frames)
        self.asked: list[Any] = []
        self.restarts: list[str] = []

    def submit(self, frame_bgr: Any, score: Any = None, iou: Any = None, **about: Any) -> Any:
        self.asked.append((score, iou, about))
        found = next(self.frames)
        found = found[np.flatnonzero(found.scores > score[found.classes])]
        return SimpleNamespace(result=lambda: found, timings=Timings(1.0, 2.0, 3.0))

    def draw(self, frame_bgr: np.ndarray, result: Any) -> np.ndarray:
        return draw_detections(frame_bgr, result)

    def restart(self, reason: str = "asked") -> None:
        self.restarts.append(reason)


def run(predictor: TrackedPredictor, count: int, **options: Any) -> list[Detections]:
    tickets = (predictor.submit(FRAME, time_s=n / 25, **options) for n in range(count))
    return [ticket.result() for ticket in tickets]


def test_low_scores_are_asked_for_and_given_only_where_they_belong_to_a_track():
    low = seen((50, 50, 0.2), (200, 50, 0.2))
    finder = Finder([seen((50, 50)), low, low])
    found = run(TrackedPredictor(finder), 3)
    assert [ids_by_x(each) for each in found] == [[1], [1], [1]]
    assert np.allclose(finder.asked[0][0], 0.1)


def test_sure_results_of_no_track_are_given():
    finder = Finder([seen(), seen((50, 50, 0.9))])
    assert ids_by_x(run(TrackedPredictor(finder), 2)[1]) == [-1]


def test_a_class_that_is_filtered_out_stays_out():
    finder = Finder([seen((50, 50, 0.9, 0), (200, 50, 0.9, 1))])
    found = run(TrackedPredictor(finder), 1, score_threshold={"car": 1.0})[0]
    assert found.classes.tolist() == [0]
    assert np.allclose(finder.asked[0][0], [0.1, 1.0])


def test_a_threshold_below_the_low_score_stays():
    finder = Finder([seen((50, 50, 0.08))])
    assert len(run(TrackedPredictor(finder), 1, score_threshold=0.05)[0]) == 1


def test_all_else_goes_through():
    finder = Finder([seen((50, 50))])
    ticket = TrackedPredictor(finder).submit(FRAME, None, 0.4, time_s=3.0, num_dropped=2)
    assert finder.asked[0][1:] == (0.4, {"time_s": 3.0, "num_dropped": 2})
    assert ticket.result() is ticket.result()
    assert ticket.timings == Timings(1.0, 2.0, 3.0)


def test_counts_come_with_each_result():
    frames = [seen((40 + 20 * n, 60)) for n in range(6)]
    zone = Zone("left", ((0, 0), (70, 0), (70, 120), (0, 120)))
    predictor = TrackedPredictor(Finder(frames), counting=Counting([GATE], [zone]))
    found = run(predictor, 6)
    assert [each.counts.lines[0].to_right.get("person", 0) for each in found] == [0, 0, 0, 0, 1, 1]
    assert [each.counts.zones[0].inside.get("person", 0) for each in found] == [1, 1, 0, 0, 0, 0]
    assert predictor.counts == found[-1].counts
    assert found[-1].to_json()["lines"][0]["to_right"] == {"person": 1}
    assert found[-1][:0].counts == found[-1].counts


def test_a_change_of_size_begins_anew_and_gives_no_id_again():
    predictor = TrackedPredictor(Finder([seen((50, 50))] * 3))
    sizes = [FRAME, FRAME[:100], FRAME[:100]]
    tickets = [predictor.submit(frame, time_s=n / 25) for n, frame in enumerate(sizes)]
    assert [ids_by_x(ticket.result()) for ticket in tickets] == [[1], [2], [2]]


def test_a_restart_counts_from_the_next_frame_that_is_submitted():
    finder = Finder([seen((50, 50))] * 3)
    predictor = TrackedPredictor(finder)
    under_way = [predictor.submit(FRAME, time_s=n / 25) for n in range(2)]
    predictor.restart("reconnect")
    under_way.append(predictor.submit(FRAME, time_s=0.08))
    assert [ids_by_x(ticket.result()) for ticket in under_way] == [[1], [1], [2]]
    assert finder.restarts == ["reconnect"]


def test_a_restart_reaches_the_tracker_through_smoothing():
    finder = Finder([])
    SmoothedPredictor(TrackedPredictor(finder)).restart("reconnect")
    assert finder.restarts == ["reconnect"]


def test_a_line_outside_of_the_picture_is_warned_of_once(caplog):
    line = Line("far", (1000, 0), (1000, 100))
    predictor = TrackedPredictor(Finder([seen()] * 3), counting=Counting([line, GATE]))
    with caplog.at_level(logging.WARNING):
        run(predictor, 3)
    assert [record.getMessage() for record in caplog.records] == [
        "line far lies outside of frames of 300x120"
    ]


def test_another_stream_has_tracks_and_counts_of_its_own():
    finder = Finder([seen((60 + 20 * n, 60)) for n in range(5)])
    finder.open_stream = lambda: Finder([seen((40, 60))])
    predictor = TrackedPredictor(finder, counting=Counting([GATE]))
    run(predictor, 5)
    other = predictor.open_stream()
    assert ids_by_x(other(FRAME, time_s=0.0)) == [1]
    assert str(other.counts) == "line gate: 0 to the right, 0 to the left"
    assert str(predictor.counts) == "line gate: 1 person to the right, 0 to the left"


def test_people_with_joints_have_the_tracks_of_their_boxes():
    """The pose network sees only who is tracked or sure, and sorts them by its own scores."""
    crops: list[int] = []

    def find(frames: list[np.ndarray]) -> list[Poses]:
        crops.append(len(frames))
        sure = [0.2, 0.9, 0.9][: len(frames)]
        return [
            dataclasses.replace(pose(8, -1), keypoints_xyc=np.array([[[8, 8, s]]], np.float32))
            for s in sure
        ]

    names = SimpleNamespace(
        task="pose_crop", classes=("person",), joints=Joints(("nose",)),
        geometry=InputGeometry(16, 16), crop_margin=1.2,
    )  # fmt: skip
    low = seen((50, 50, 0.9), (200, 50, 0.4), (250, 60, 0.2))
    finder = Finder([seen((50, 50), (200, 50)), low])
    tracked = TrackedPredictor(finder, counting=Counting([GATE]))
    top_down = TopDown(tracked, SimpleNamespace(manifest=names, batch=find))
    top_down.submit(FRAME, time_s=0.0).result()
    found = top_down.submit(FRAME, time_s=0.04).result()
    assert crops == [2, 2]
    assert found.track_ids.tolist() == [2, 1]  # 0.4 x 0.9 is more than 0.9 x 0.2
    assert ids_by_x(found) == [1, 2]
    assert found.counts is not None


def test_a_bundle_without_boxes_is_refused():
    finder = Finder([])
    finder.manifest = SimpleNamespace(task="pose_crop")
    with pytest.raises(ValueError, match="gives none. Track a detector"):
        TrackedPredictor(finder)


def test_a_real_bundle_is_tracked(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny", geometry=InputGeometry(96, 128), num_samples=0)
    with load(bundle, "onnxruntime") as predictor:
        tracked = TrackedPredictor(predictor, ids=itertools.count(7))
        for n in range(4):
            image = paint(192, 256, {0: (20 + 4 * n, 20, 80 + 4 * n, 80), 2: (150, 100, 230, 160)})
            found = tracked.submit(image, time_s=n / 25).result()
        assert {found.names[c]: i for c, i in zip(found.classes, found.track_ids, strict=True)} == {
            CLASSES[0]: 7,
            CLASSES[2]: 8,
        }


# --- the picture


def test_colours_and_labels_are_the_track_s():
    found = dataclasses.replace(
        seen((80, 90), (220, 90)), track_ids=np.array([5, -1]), scores=np.array([0.9, 0.8])
    )
    frame = np.zeros((180, 300, 3), np.uint8)
    draw_detections(frame, found)
    assert frame[109, 80].tolist() == list(track_colour(5))  # lower edges of the boxes
    assert frame[109, 220].tolist() == list(UNTRACKED_BGR)
    assert track_colour(5) == track_colour(5) != track_colour(6)


def test_lines_and_zones_are_drawn_with_their_figures():
    zone = Zone("yard", ((200, 20), (280, 20), (280, 160), (200, 160)))
    counting = Counting([Line("gate", (100, 170), (100, 10))], [zone])
    empty = dataclasses.replace(seen(), track_ids=np.zeros(0, np.int64))
    frame = np.zeros((180, 300, 3), np.uint8)
    draw_detections(frame, dataclasses.replace(empty, counts=counting.update(empty, ())))
    yellow = (frame.astype(int) - [0, 215, 255] == 0).all(axis=2)
    assert yellow[20:60, 99:102].all(axis=1).mean() > 0.9  # the line, upwards
    assert yellow[20, 205:275].all()  # the zone's upper side


# --- smoothing by tracks


def pose(x: float, track_id: int) -> Poses:
    plain = seen((x, 50))
    return Poses(
        plain.boxes_xyxy, plain.scores, plain.classes, plain.names,
        track_ids=np.array([track_id]), keypoints_xyc=np.array([[[x, 50, 0.9]]], np.float32),
        joints=Joints(("nose",)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("moved_px", "then", "is_smoothed"),
    [(60, 1, True), (60, 2, False), (6, 1, True), (6, 2, False), (6, -1, True)],
    ids=["far, same", "far, other", "near, same", "near, other", "near, none"],
)
def test_smoothing_follows_tracks_where_there_are_any(moved_px, then, is_smoothed):
    smoother = PoseSmoother(SmoothingOptions(beta=0.0))
    smoother(pose(50, 1), 0.0)
    x = smoother(pose(50 + moved_px, then), 0.04).keypoints_xyc[0, 0, 0]
    assert (x < 50 + moved_px - 1) == is_smoothed
