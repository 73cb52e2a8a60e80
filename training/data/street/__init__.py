"""The procedural street: a rendered data set with complete truth that needs no download."""

from training.data.street.dataset import Street, StreetFaces
from training.data.street.frame import StreetFrame, render_frame
from training.data.street.vocabulary import (
    CATEGORY_IDS,
    CLASSES,
    JOINT_FLIP_PAIRS,
    JOINT_NAMES,
    JOINT_SIGMAS,
    JOINT_SKELETON,
    LABELS,
    LANDMARK_FLIP_PAIRS,
    LANDMARK_NAMES,
    SEMANTIC_CLASSES,
)

__all__ = [
    "CATEGORY_IDS",
    "CLASSES",
    "JOINT_FLIP_PAIRS",
    "JOINT_NAMES",
    "JOINT_SIGMAS",
    "JOINT_SKELETON",
    "LABELS",
    "LANDMARK_FLIP_PAIRS",
    "LANDMARK_NAMES",
    "SEMANTIC_CLASSES",
    "Street",
    "StreetFaces",
    "StreetFrame",
    "render_frame",
]
