"""The names of the street: object classes, COCO joints, face landmarks, semantic classes."""

from __future__ import annotations

CLASSES: tuple[str, ...] = ("person", "car", "bicycle", "cone", "ball")
CATEGORY_IDS: tuple[int, ...] = (1, 2, 3, 4, 5)
PERSON, CAR, BICYCLE, CONE, BALL = range(5)

JOINT_NAMES: tuple[str, ...] = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip",
    "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
# Pairs of indices into JOINT_NAMES, counted from 0 (COCO's file counts from 1).
JOINT_SKELETON: tuple[tuple[int, int], ...] = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
JOINT_FLIP_PAIRS: tuple[tuple[int, int], ...] = (
    (1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16),
)  # fmt: skip
# The per-joint constants of COCO's object keypoint similarity.
JOINT_SIGMAS: tuple[float, ...] = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107,
    0.087, 0.087, 0.089, 0.089,
)  # fmt: skip

LANDMARK_NAMES: tuple[str, ...] = (
    "left_eye", "right_eye", "nose", "left_mouth_corner", "right_mouth_corner",
)  # fmt: skip
LANDMARK_FLIP_PAIRS: tuple[tuple[int, int], ...] = ((0, 1), (3, 4))

# The value in `StreetFrame.semantic` is the index in this tuple; the object classes follow the
# stuff in the order of CLASSES.
SEMANTIC_CLASSES: tuple[str, ...] = (
    "sky", "building", "road", "pavement", "vegetation", "street_furniture", *CLASSES,
)  # fmt: skip
SKY, BUILDING, ROAD, PAVEMENT, VEGETATION, FURNITURE = range(6)
FIRST_THING = 6

LABELS: tuple[str, ...] = (
    "boxes", "masks", "keypoints", "landmarks", "semantic", "panoptic", "depth", "flow",
)  # fmt: skip
