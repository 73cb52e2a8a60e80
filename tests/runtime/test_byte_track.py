"""Ids over frames."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from tracks import ids_by_x, seen

from runtime.contract.manifest import InputGeometry, Joints
from runtime.masks import Masks
from runtime.poses import Faces, Poses
from runtime.preprocess import Letterbox
from runtime.results import Detections
from runtime.tracking.byte_track import NO_TRACK, Tracker, TrackerOptions, assign

STEP_S = 0.04


def run(tracker: Tracker, frames: list[Detections], step_s: float = STEP_S) -> list[list[int]]:
    """Ids from left to right of each frame."""
    return [ids_by_x(tracker.update(each, n * step_s)) for n, each in enumerate(frames)]


def test_objects_of_the_first_frame_keep_their_ids():
    frames = [seen((50 + 3 * n, 50), (200 - 2 * n, 60)) for n in range(20)]
    assert run(Tracker(), frames) == [[1, 2]] * 20


def test_a_later_object_has_its_id_from_its_second_frame_on():
    frames = [seen((50, 50)), *[seen((50, 50), (200, 50))] * 3]
    assert run(Tracker(), frames) == [[1], [1, NO_TRACK], [1, 2], [1, 2]]


def test_what_is_seen_once_gets_no_id_and_uses_none_up():
    frames = [seen((50, 50)), seen((50, 50), (200, 50)), seen((50, 50)), seen((50, 50), (90, 200))]
    frames += frames[-1:]
    assert run(Tracker(), frames)[-1] == [1, 2]


def test_a_low_score_continues_a_track_and_begins_none():
    low = seen((50, 50, 0.2), (200, 50, 0.2))
    assert run(Tracker(), [seen((50, 50)), low, low, low]) == [[1], *[[1, NO_TRACK]] * 3]


def test_a_score_below_the_low_one_is_nothing():
    assert run(Tracker(), [seen((50, 50)), seen((50, 50, 0.05))])[1] == [NO_TRACK]


def test_what_is_sure_may_differ_by_class():
    limits = np.array([0.3, 0.6], np.float32)
    tracker = Tracker()
    tracker.update(seen(), 0.0, limits)
    for n in range(1, 3):
        found = tracker.update(seen((50, 50, 0.5, 0), (200, 50, 0.5, 1)), n * STEP_S, limits)
    assert ids_by_x(found) == [1, NO_TRACK]


def test_a_hidden_object_comes_back_with_its_id_where_it_was_going():
    frames = [seen((50 + 6 * n, 50)) for n in range(40)]
    frames[20:30] = [seen()] * 10
    assert run(Tracker(), frames)[30:] == [[1]] * 10


def test_an_object_that_is_gone_for_longer_is_another():
    frames = [seen((50, 50))] * 5 + [seen()] * 30 + [seen((50, 50))] * 2
    assert run(Tracker(TrackerOptions(max_lost_s=1.0)), frames)[-1] == [2]
    assert run(Tracker(TrackerOptions(max_lost_s=2.0)), frames)[-1] == [1]


def test_lost_frames_cost_no_id():
    """Boxes of 40 px that move by 30 between frames hardly meet, but their speed is known."""
    tracker = Tracker()
    for n in [*range(12), 18, 24, 30, 31, 37]:
        found = tracker.update(seen((50 + 5 * n, 50)), n * STEP_S)
        assert ids_by_x(found) == [1]


def test_objects_that_pass_each_other_keep_their_ids():
    frames = [seen((50 + 5 * n, 50), (250 - 5 * n, 62)) for n in range(41)]
    ids = run(Tracker(), frames)
    assert ids[0] == [1, 2]
    assert ids[-1] == [2, 1]


def test_classes_are_tracked_apart():
    frames = [seen((50, 50, 0.9, 0)), seen((50, 50, 0.9, 1)), seen((50, 50, 0.9, 1))]
    assert run(Tracker(), frames) == [[1], [NO_TRACK], [2]]


def test_no_id_is_given_again_after_a_restart():
    tracker = Tracker()
    first = tracker.update(seen((50, 50)), 0.0)
    tracker.restart()
    assert not tracker.alive_ids
    assert (ids_by_x(first), ids_by_x(tracker.update(seen((50, 50)), STEP_S))) == ([1], [2])


def test_a_step_back_in_time_begins_anew():
    tracker = Tracker()
    tracker.update(seen((50, 50)), 5.0)
    assert ids_by_x(tracker.update(seen((50, 50)), 0.0)) == [2]
    assert ids_by_x(tracker.update(seen((50, 50)), 0.0)) == [2]  # the same time again does not


def test_trackers_that_share_ids_never_give_one_twice():
    ids = itertools.count(1)
    trackers = Tracker(ids=ids), Tracker(ids=ids)
    given = [ids_by_x(each.update(seen((50, 50), (200, 50)), 0.0)) for each in trackers]
    assert given == [[1, 2], [3, 4]]


def test_alive_are_tracks_that_may_come_back():
    tracker = Tracker()
    tracker.update(seen((50, 50), (200, 50)), 0.0)
    tracker.update(seen((50, 50)), 0.1)
    assert tracker.alive_ids == {1, 2}
    tracker.update(seen((50, 50)), 1.1)
    assert tracker.alive_ids == {1}


def test_a_lost_track_under_one_that_is_seen_is_ended():
    """As where a detector gave one object two boxes for a while."""
    tracker = Tracker()
    for n in range(3):
        tracker.update(seen((50, 50), (51, 50)), n * STEP_S)
    assert tracker.alive_ids == {1, 2}
    found = tracker.update(seen((50, 50)), 3 * STEP_S)
    assert tracker.alive_ids == set(found.track_ids.tolist())
    apart = Tracker()
    apart.update(seen((50, 50), (90, 50)), 0.0)
    apart.update(seen((50, 50)), STEP_S)
    assert apart.alive_ids == {1, 2}


def test_empty_frames_are_no_matter():
    assert run(Tracker(), [seen(), seen(), seen((50, 50)), seen((50, 50))]) == [[], [], [-1], [1]]


def test_tracks_do_not_pile_up():
    rng = np.random.default_rng(0)
    tracker = Tracker()
    for n in range(300):
        places = [tuple(place) for place in rng.uniform(0, 5000, (10, 2))]
        tracker.update(seen(*places), n * STEP_S)
    assert len(tracker._tracks) < 10 * (1 / STEP_S + 2)


def test_jitter_and_gaps_of_many_objects_cost_no_ids():
    rng = np.random.default_rng(1)
    starts, speeds = rng.uniform(0, 1000, (12, 2)) * [1, 0] + [0, 0], rng.normal(0, 60, (12, 2))
    starts[:, 1] = np.arange(12) * 120 + 60
    speeds[:, 1] = 0
    tracker, owner = Tracker(), {}
    for n in range(100):
        places = starts + speeds * n * STEP_S + rng.normal(0, 2, (12, 2))
        is_seen = rng.random(12) < 0.8
        there = [(x, y) for (x, y), s in zip(places, is_seen, strict=True) if s]
        found = tracker.update(seen(*there), n * STEP_S)
        for box, track_id in zip(found.boxes_xyxy, found.track_ids, strict=True):
            if track_id >= 0:
                owner.setdefault(int(track_id), set()).add(int(box[1::2].mean() // 120))
    assert len(owner) == 12
    assert all(len(rows) == 1 for rows in owner.values())


@pytest.mark.parametrize("kind", [Poses, Faces], ids=["poses", "faces"])
def test_poses_and_faces_stay_what_they_are(kind):
    plain = seen((50, 50), (200, 50))
    keypoints = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3)
    poses = kind(
        plain.boxes_xyxy, plain.scores, plain.classes, plain.names,
        keypoints_xyc=keypoints, joints=Joints(tuple("abcde")),
    )  # fmt: skip
    found = Tracker().update(poses, 0.0)
    assert type(found) is kind
    assert (found.keypoints_xyc == keypoints).all()
    assert found.track_ids.tolist() == [1, 2]
    assert found[[1]].track_ids.tolist() == [2]
    assert [row["track_id"] for row in found.to_json()["detections"]] == [1, 2]


def test_masks_and_what_else_a_result_has_stay():
    plain = seen((50, 50))
    soft = np.full((1, 4, 4), 200, np.uint8)
    masks = Masks(soft, Letterbox.fit((100, 100), InputGeometry(100, 100)))
    found = Tracker().update(
        Detections(
            plain.boxes_xyxy, plain.scores, plain.classes, plain.names, masks,
            np.array([0.5], np.float32), is_key=True,
        ),
        0.0,
    )  # fmt: skip
    assert found.masks is masks
    assert found.is_key
    document = found[:1].to_json()
    assert document["is_key"]
    assert document["detections"][0]["track_id"] == 1
    assert document["detections"][0]["mask_score"] == 0.5


def test_no_track_is_null_in_json_and_untracked_results_have_no_such_field():
    tracker = Tracker()
    tracker.update(seen(), 0.0)
    assert tracker.update(seen((50, 50)), STEP_S).to_json()["detections"][0]["track_id"] is None
    assert "track_id" not in seen((50, 50)).to_json()["detections"][0]


def test_assignment_is_the_best_of_all():
    """Against all ways of pairing, some left out."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        rows, columns = rng.integers(1, 5, 2).tolist()
        overlap = rng.random((rows, columns)) * (rng.random((rows, columns)) < 0.7)
        small, big = sorted((rows, columns))
        wide = overlap if rows <= columns else overlap.T
        gains = np.maximum(wide - 0.3, 0)
        best = max(
            gains[np.arange(small), list(order)].sum()
            for order in itertools.permutations(range(big), small)
        )
        a, b = assign(overlap, 0.3)
        assert (overlap[a, b] > 0.3).all()
        assert (overlap[a, b] - 0.3).sum() == pytest.approx(best)
        assert len(set(a.tolist())) == len(set(b.tolist())) == len(a)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"high_score": 1.5}, "high_score is 1.5"),
        ({"match_iou": -0.1}, "match_iou"),
        ({"max_lost_s": 0.0}, "max_lost_s"),
        ({"max_lost_s": float("nan")}, "max_lost_s"),
    ],
)
def test_wrong_options_are_named(wrong, word):
    with pytest.raises(ValueError, match=word):
        TrackerOptions(**wrong)


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"kestrel-vision\[track\]"):
        Tracker()
