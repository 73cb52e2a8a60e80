"""The names of the street: object classes, COCO joints, face landmarks, semantic classes."""

from __future__ import annotations

from training.data.joints import PERSON_JOINTS

CLASSES: tuple[str, ...] = ("person", "car", "bicycle", "cone", "ball")
CATEGORY_IDS: tuple[int, ...] = (1, 2, 3, 4, 5)
PERSON, CAR, BICYCLE, CONE, BALL = range(5)

JOINT_NAMES = PERSON_JOINTS.joints
JOINT_SKELETON = PERSON_JOINTS.skeleton
JOINT_FLIP_PAIRS = PERSON_JOINTS.flip_pairs
JOINT_SIGMAS = PERSON_JOINTS.sigmas

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
