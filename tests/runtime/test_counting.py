"""Lines and zones: each crossing once, whatever trembles."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from tracks import seen

from runtime.results import Detections
from runtime.tracking.counting import (
    Counting,
    CountingOptions,
    distances_to_rim,
    points_inside,
)
from runtime.tracking.counts import Counts, Event, Line, Zone, parse_lines, parse_zones

UPWARD = Line("gate", (100, 200), (100, 0))  # its right is where x is larger
SQUARE = Zone("yard", ((100, 100), (300, 100), (300, 300), (100, 300)))
CENTRE = CountingOptions(point="centre")


def at(*places: tuple, ids: tuple[int, ...] | None = None) -> Detections:
    """One box around each (x, y, class), tracked; ids 1, 2 ... in this order."""
    plain = [seen((x, y, 0.9, *rest)) for x, y, *rest in places]
    return dataclasses.replace(
        seen(),
        boxes_xyxy=np.concatenate([seen().boxes_xyxy, *(p.boxes_xyxy for p in plain)]),
        scores=np.full(len(places), 0.9, np.float32),
        classes=np.array([rest[0] if rest else 0 for _, _, *rest in places], np.int32),
        track_ids=np.array(ids or range(1, len(places) + 1), np.int64),
    )


def count(frames: list[Detections], *shapes: Line | Zone, options=CENTRE) -> list[Counts]:
    lines = [each for each in shapes if isinstance(each, Line)]
    counting = Counting(lines, [each for each in shapes if isinstance(each, Zone)], options)
    return [counting.update(each, frozenset(each.track_ids.tolist())) for each in frames]


def walk(*xs: float, y: float = 100.0) -> list[Detections]:
    return [at((x, y)) for x in xs]


def test_a_line_counts_each_direction_by_class():
    frames = [at((70 + 10 * n, 50), (130 - 10 * n, 150, 1), (60 + 10 * n, 100)) for n in range(8)]
    (line,) = count(frames, UPWARD)[-1].lines
    assert (line.to_right, line.to_left) == ({"person": 2}, {"car": 1})


@pytest.mark.parametrize(
    ("line", "to_right"),
    [
        (Line("up", (100, 200), (100, 0)), True),
        (Line("down", (100, 0), (100, 200)), False),
        (Line("slanting up", (20, 200), (180, 0)), True),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_right_is_the_right_hand_of_who_walks_along_the_line(line, to_right):
    found = count(walk(40, 160), line)[-1].lines[0]
    assert (sum(found.to_right.values()), sum(found.to_left.values())) == (to_right, not to_right)


def test_the_frame_of_the_crossing_has_the_event_and_no_other():
    counts = count(walk(60, 90, 120, 150), UPWARD)
    events = [each.lines[0].events for each in counts]
    assert events == [(), (), (Event(1, "person", "to_right"),), ()]


def test_what_trembles_on_a_line_is_counted_once():
    rng = np.random.default_rng(0)
    tremble = 100 + rng.uniform(-2, 2, 200)  # the margin is 2 px for boxes of 40
    (line,) = count(walk(60, *tremble, 140), UPWARD)[-1].lines
    assert (line.to_right, line.to_left) == ({"person": 1}, {})


def test_without_a_margin_it_would_be_counted_often():
    rng = np.random.default_rng(0)
    tremble = 100 + rng.uniform(-6, 6, 200)
    (line,) = count(walk(60, *tremble, 140), UPWARD)[-1].lines
    assert sum(line.to_right.values()) > 10
    wide = dataclasses.replace(CENTRE, margin_share=0.2)
    (line,) = count(walk(60, *tremble, 140), UPWARD, options=wide)[-1].lines
    assert (line.to_right, line.to_left) == ({"person": 1}, {})


def test_who_turns_back_on_the_line_did_not_cross_and_who_returns_crossed_twice():
    (line,) = count(walk(60, 90, 99, 90, 60), UPWARD)[-1].lines
    assert (line.to_right, line.to_left) == ({}, {})
    (line,) = count(walk(60, 140, 60), UPWARD)[-1].lines
    assert (line.to_right, line.to_left) == ({"person": 1}, {"person": 1})


def test_a_line_ends_where_it_ends():
    past_the_end = [at((60, 230)), at((140, 230)), at((140, 100))]
    assert not count(past_the_end, UPWARD)[-1].lines[0].to_right
    around_it = [at((60, 100)), at((60, 240)), at((140, 240)), at((140, 100))]
    assert not count(around_it, UPWARD)[-1].lines[0].to_right


def test_a_crossing_in_lost_frames_is_counted():
    assert count(walk(10, 190), UPWARD)[-1].lines[0].to_right == {"person": 1}


def test_who_appears_on_the_line_crosses_nothing():
    assert count(walk(100, 120), UPWARD)[-1].lines[0].to_right == {}


def test_a_box_counts_by_its_bottom_centre_unless_told_otherwise():
    lying = Line("kerb", (0, 120), (200, 120))
    frames = [at((50, 90)), at((50, 110))]  # boxes of 40: bottoms at 110 and 130
    assert count(frames, lying, options=None)[-1].lines[0].to_right == {"person": 1}
    assert count(frames, lying, options=CENTRE)[-1].lines[0].to_right == {}


def test_a_zone_counts_who_is_inside_and_who_came_and_went():
    xs = [50, 90, 150, 250, 310, 350]
    found = [each.zones[0] for each in count([at((x, 200)) for x in xs], SQUARE)]
    assert [each.inside.get("person", 0) for each in found] == [0, 0, 1, 1, 0, 0]
    assert [each.events for each in found if each.events] == [
        (Event(1, "person", "entered"),),
        (Event(1, "person", "left"),),
    ]
    assert (found[-1].entered, found[-1].left) == ({"person": 1}, {"person": 1})


def test_what_trembles_on_a_rim_enters_once():
    rng = np.random.default_rng(0)
    frames = [at((x, 200)) for x in (60, *(100 + rng.uniform(-2, 2, 100)), 140)]
    (zone,) = count(frames, SQUARE)[-1].zones
    assert (zone.entered, zone.left) == ({"person": 1}, {})


def test_who_appears_inside_is_inside_and_did_not_enter():
    (zone,) = count([at((200, 200), (250, 250, 1))], SQUARE)[-1].zones
    assert (zone.inside, zone.entered) == ({"person": 1, "car": 1}, {})


@pytest.mark.parametrize("xs", [(100.1, 90), (99.9, 150)], ids=["inside", "outside"])
def test_who_is_first_seen_on_the_rim_neither_enters_nor_leaves(xs):
    (zone,) = count([at((x, 200)) for x in xs], SQUARE)[-1].zones
    assert (zone.entered, zone.left) == ({}, {})
    assert zone.inside == ({"person": 1} if xs[-1] > 100 else {})


def test_who_is_first_seen_on_the_rim_counts_from_its_first_sure_place():
    (zone,) = count([at((x, 200)) for x in (100.1, 150, 50, 150)], SQUARE)[-1].zones
    assert (zone.entered, zone.left) == ({"person": 1}, {"person": 1})


def test_who_is_out_of_sight_stays_inside_until_the_track_ends():
    counting = Counting([], [SQUARE], CENTRE)
    counting.update(at((200, 200)), {1})
    gone = at()
    assert counting.update(gone, {1}).zones[0].inside == {"person": 1}
    (zone,) = counting.update(gone, set()).zones
    assert (zone.inside, zone.left) == ({}, {})


def test_ended_tracks_are_forgotten():
    counting = Counting([UPWARD], [SQUARE], CENTRE)
    for n in range(100):
        counting.update(at((200, 200), ids=(n + 1,)), {n + 1})
    assert len(counting.lines[0]._last) == len(counting.zones[0]._last) == 1


def test_results_of_no_track_do_not_count():
    frames = [at((60, 100), ids=(-1,)), at((150, 150), ids=(-1,))]
    counts = count(frames, UPWARD, SQUARE)[-1]
    assert not counts.lines[0].to_right
    assert not counts.zones[0].inside


def test_frames_without_results_are_no_matter():
    assert count([at(), at()], UPWARD, SQUARE)[-1].to_json()["zones"][0]["inside"] == {}


def test_a_snapshot_does_not_change_with_later_frames():
    counts = count(walk(60, 140, 60, 140), UPWARD)
    assert [each.lines[0].to_right.get("person", 0) for each in counts] == [0, 1, 1, 2]


def test_polygons_are_opencv_s():
    """Inside and distance against cv2.pointPolygonTest, for a polygon with a bay."""
    corners = np.array([[10, 10], [200, 30], [120, 90], [190, 180], [30, 150]], np.float64)
    points = np.random.default_rng(0).uniform(0, 210, (300, 2))
    outline = corners.astype(np.float32)
    expected = [cv2.pointPolygonTest(outline, point.tolist(), True) for point in points]
    signs = np.where(points_inside(points, corners), 1, -1)
    assert np.allclose(signs * distances_to_rim(points, corners), expected, atol=1e-3)


def test_figures_are_told_in_json_and_in_words():
    counts = count(walk(60, 140), UPWARD, SQUARE)[-1]
    assert counts.to_json() == {
        "lines": [
            {
                "name": "gate",
                "to_right": {"person": 1},
                "to_left": {},
                "events": [{"track_id": 1, "name": "person", "kind": "to_right"}],
            }
        ],
        "zones": [{"name": "yard", "inside": {}, "entered": {}, "left": {}, "events": []}],
    }
    assert str(counts) == (
        "line gate: 1 person to the right, 0 to the left; zone yard: 0 inside, 0 entered, 0 left"
    )


def test_lines_and_zones_are_read_as_they_are_written():
    assert parse_lines(["0,1,20,30.5:gate", "5,5,6,6"]) == (
        Line("gate", (0, 1), (20, 30.5)),
        Line("2", (5, 5), (6, 6)),
    )
    assert parse_zones(["0,0,10,0,10,-10: back yard "]) == (
        Zone("back yard", ((0, 0), (10, 0), (10, -10))),
    )


@pytest.mark.parametrize(
    ("parse", "text", "words"),
    [
        (parse_lines, "1,2,3", "3 numbers; expected 4"),
        (parse_lines, "1,2,3,x:gate", "not numbers; expected x1,y1,x2,y2"),
        (parse_lines, "", "not numbers"),
        (parse_lines, "1,2,nan,4", "not numbers"),
        (parse_lines, "1,2,1,2", "begins where it ends"),
        (parse_zones, "1,2,3,4", "4 numbers; expected two for each of 3 or more"),
        (parse_zones, "1,2,3,4,5,6,7", "7 numbers"),
        (parse_zones, "1,1,2,2,3,3", "flat"),
    ],
)
def test_what_cannot_be_read_says_what_was_expected(parse, text, words):
    with pytest.raises(ValueError, match=words):
        parse([text])


def test_two_of_one_name_are_refused():
    with pytest.raises(ValueError, match="'gate' is there 2 times"):
        Counting([UPWARD, UPWARD])


@pytest.mark.parametrize("wrong", [{"point": "middle"}, {"margin_share": -1.0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CountingOptions(**wrong)
