"""A drawn sample whose picture, masks, boxes and joints can be held to each other."""

from __future__ import annotations

import cv2
import numpy as np

from training.data.geometry import tight_box
from training.data.sample import Sample

SIZE_HW = (96, 160)
MASK_PX = 1.0  # a mask knows its edge to one pixel
COLOURS = ((0, 0, 255), (0, 255, 0), (255, 0, 0))


def make_sample(hw: tuple[int, int] = (120, 200)) -> Sample:
    """Three ellipses in pure colours on black, with masks, tight boxes and three joints each."""
    height, width = hw
    image = np.zeros((height, width, 3), np.uint8)
    masks, boxes, joints = [], [], []
    for place, colour in enumerate(COLOURS):
        mask = np.zeros(hw, np.uint8)
        centre = int(width * (0.2 + 0.3 * place)), int(height * (0.3 + 0.2 * place))
        cv2.ellipse(mask, centre, (width // 10, height // 8), 0, 0, 360, 1, -1)
        image[mask > 0] = colour
        box = tight_box(mask)
        assert box is not None
        masks.append(mask)
        boxes.append(box)
        x, y = centre[0] + 0.5, centre[1] + 0.5
        joints.append([[x - 5, y, 2], [x + 5, y, 2], [0, 0, 0]])
    return Sample(
        image=image,
        boxes_xyxy=np.array(boxes, np.float32),
        classes=np.arange(3),
        is_crowd=np.zeros(3, bool),
        image_id=7,
        file_name="drawn.png",
        masks=np.array(masks),
        keypoints_xyv=np.array(joints, np.float32),
    )


def empty_sample(hw: tuple[int, int] = (30, 50)) -> Sample:
    return Sample(
        image=np.zeros((*hw, 3), np.uint8),
        boxes_xyxy=np.zeros((0, 4), np.float32),
        classes=np.zeros(0, np.int64),
        is_crowd=np.zeros(0, bool),
        image_id=1,
        file_name="empty.png",
        masks=np.zeros((0, *hw), np.uint8),
        keypoints_xyv=np.zeros((0, 3, 3), np.float32),
    )


def check_consistent(sample: Sample) -> None:
    """Hold boxes to masks, masks to the picture, and joints to the object they sit on."""
    height, width = sample.image_hw
    assert sample.masks is not None
    assert sample.keypoints_xyv is not None
    for row, label in enumerate(sample.classes):
        tight = tight_box(sample.masks[row])
        assert tight is not None
        np.testing.assert_allclose(sample.boxes_xyxy[row], tight, atol=MASK_PX)
        seen = (sample.image[..., COLOURS[label].index(255)] > 127).astype(np.uint8)
        x1, y1, x2, y2 = tight
        outside = seen[y1:y2, x1:x2] != sample.masks[row, y1:y2, x1:x2]
        assert outside.mean() < 0.02
        for x, y, visible in sample.keypoints_xyv[row]:
            if visible:
                assert 0 <= x <= width
                assert 0 <= y <= height
                column, line = min(int(x), width - 1), min(int(y), height - 1)
                assert sample.masks[row, line, column] == 1
            else:
                assert x == y == 0
