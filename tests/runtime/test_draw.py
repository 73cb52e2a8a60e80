import dataclasses
import time

import numpy as np
import pytest
from tiny_bundle import CLASSES
from tiny_masks import ellipses, scattered_boxes

from runtime.contract.manifest import InputGeometry
from runtime.draw import PALETTE_BGR, class_colour, draw_caption, draw_detections
from runtime.results import Detections

GREY = 128


def blank(height=432, width=768):
    return np.full((height, width, 3), GREY, np.uint8)


def one(box_xyxy, index=0, name="red car"):
    names = tuple(name if place == index else "x" for place in range(index + 1))
    return Detections(np.float32([box_xyxy]), np.float32([0.876]), np.int32([index]), names)


def test_drawing_happens_in_the_frame_itself():
    frame = blank()
    assert draw_detections(frame, one((50, 60, 200, 150))) is frame
    assert (frame != GREY).any()


def test_box_edges_have_the_colour_of_the_class():
    frame = draw_detections(blank(), one((50, 160, 200, 250), index=3), labels=False)
    for y, x in ((160, 120), (249, 120), (200, 50), (200, 199)):
        assert tuple(frame[y, x]) == class_colour(3)


def test_inside_of_a_box_stays_as_it_was():
    frame = draw_detections(blank(), one((50, 160, 200, 250)))
    assert (frame[166:244, 56:194] == GREY).all()


def test_drawing_nothing_changes_nothing():
    nothing = Detections(np.zeros((0, 4), np.float32), np.float32([]), np.int32([]), CLASSES)
    np.testing.assert_array_equal(draw_detections(blank(), nothing), blank())


@pytest.mark.parametrize(
    "box_xyxy",
    [(0, 0, 30, 20), (740, 0, 768, 20), (740, 410, 768, 432), (0, 410, 30, 432), (0, 0, 768, 432)],
    ids=["top left", "top right", "bottom right", "bottom left", "whole frame"],
)
def test_label_is_whole_inside_the_frame(box_xyxy):
    frame = draw_detections(blank(), one(box_xyxy))
    free = draw_detections(blank(), one((300, 200, 330, 220)))
    colour = np.array(class_colour(0))
    ink = (np.abs(free.astype(int) - colour).sum(axis=2) > 0) & (free != GREY).any(axis=2)
    here = (np.abs(frame.astype(int) - colour).sum(axis=2) > 0) & (frame != GREY).any(axis=2)
    assert ink.sum() > 50  # the letters
    assert here.sum() == ink.sum()


def test_label_wider_than_the_frame_is_cut():
    frame = draw_detections(blank(24, 32), one((2, 2, 20, 20), name="a very long class name"))
    assert frame.shape == (24, 32, 3)


def test_label_is_readable_on_every_class_colour():
    for index, colour in enumerate(PALETTE_BGR):
        frame = draw_detections(blank(), one((300, 200, 330, 220), index=index))
        label = frame[180:200, 300:360].reshape(-1, 3).astype(int)
        contrast = np.abs(label - np.array(colour)).max()
        assert contrast > 90, index


def test_colours_of_neighbouring_classes_differ():
    assert len(set(PALETTE_BGR)) == len(PALETTE_BGR)
    assert class_colour(0) == class_colour(len(PALETTE_BGR))


def test_surer_box_lies_on_top():
    boxes = np.float32([[50, 60, 200, 150], [50, 60, 200, 150]])
    both = Detections(boxes, np.float32([0.9, 0.5]), np.int32([1, 2]), CLASSES)
    frame = draw_detections(blank(), both, labels=False)
    assert tuple(frame[60, 100]) == class_colour(1)


def test_caption_lines_stand_below_one_another():
    one_line = draw_caption(blank(), ["29.9 fps"])
    two_lines = draw_caption(blank(), ["29.9 fps", "p95 12 ms"])
    rows = [np.flatnonzero((frame != GREY).any(axis=(1, 2))) for frame in (one_line, two_lines)]
    assert rows[1].max() > rows[0].max()
    np.testing.assert_array_equal(one_line[: rows[0].max()], two_lines[: rows[0].max()])


# ------------------------------------------------------------------------------------------- masks


MASKS_30_MS = 25.0  # of one core, 5 at rest; a way over whole frames takes over 100
GEOMETRY = InputGeometry(288, 512)


def masked(boxes, height=432, width=768):
    return ellipses(np.float32(boxes), (height, width), GEOMETRY, (72, 128))


def test_pixels_of_a_mask_are_mixed_with_the_colour_of_the_class():
    found = masked([(100, 100, 300, 250), (400, 200, 600, 300)])
    frame = draw_detections(blank(), found, labels=False)
    bare = draw_detections(blank(), dataclasses.replace(found, masks=None), labels=False)
    changed = (frame != bare).any(axis=2)
    is_box = (bare != GREY).any(axis=2)
    for index in range(2):
        inside = found.masks.bitmap(index) & ~is_box
        assert changed[inside].all()
        mixed = GREY + 0.45 * (np.array(class_colour(index)) - GREY)
        assert np.abs(frame[inside] - mixed).max() <= 1
    assert not changed[~(found.masks.bitmap(0) | found.masks.bitmap(1))].any()


def test_what_lies_below_a_mask_shows_through():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (432, 768, 3)).astype(np.uint8)
    found = masked([(100, 100, 300, 250)])
    inside = found.masks.bitmap(0)
    inside[:110] = inside[240:] = False
    drawn = draw_detections(frame.copy(), found, labels=False)
    below, above = frame[inside].astype(float), drawn[inside].astype(float)
    for channel in range(3):
        assert np.corrcoef(below[:, channel], above[:, channel])[0, 1] > 0.99


@pytest.mark.parametrize(
    "box", [(0, 0, 768, 432), (700, 400, 768, 432), (0, 0, 3, 3), (50, 50, 50.001, 90)],
    ids=["whole frame", "corner", "tiny", "no width"],
)  # fmt: skip
def test_mask_at_the_edge_of_the_frame_is_drawn(box):
    frame = draw_detections(blank(), masked([box]), labels=False)
    assert frame.shape == (432, 768, 3)


def test_masks_are_drawn_into_a_frame_that_is_part_of_another():
    large = np.full((500, 900, 3), GREY, np.uint8)
    found = masked([(100, 100, 300, 250)])
    part = large[30:462, 60:828]
    draw_detections(part, found)
    np.testing.assert_array_equal(part, draw_detections(blank(), found))
    assert (large[:30] == GREY).all()
    assert (large[:, :60] == GREY).all()


def test_thirty_masks_are_drawn_in_milliseconds():
    boxes = scattered_boxes(30, 720, 1280)
    found = masked(boxes, 720, 1280)
    assert sum(found.masks.bitmap(index).sum() for index in range(30)) > 720 * 1280 / 2
    frame = blank(720, 1280)
    spent_ms = []
    for _ in range(8):
        start = time.thread_time()
        draw_detections(frame, found)
        spent_ms.append((time.thread_time() - start) * 1e3)
    assert min(spent_ms) < MASKS_30_MS
