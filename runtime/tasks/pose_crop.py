"""Joints of one person in each crop; a frame given whole is the crop of its person.

`runtime/topdown.py` makes the crops of a detector's boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from runtime.contract.manifest import Manifest
from runtime.poses import Poses
from runtime.preprocess import Letterbox
from runtime.results import Detections
from runtime.sessions.base import Array
from runtime.tasks import IouThreshold, ScoreThreshold, keypoints

draw = keypoints.draw


def thresholds(
    manifest: Manifest,  # noqa: ARG001 - as of other tasks
    batch: int,  # noqa: ARG001
    score_threshold: ScoreThreshold = None,
    iou_threshold: IouThreshold = None,
) -> dict[str, Array]:
    """The graph's inputs beside the image: none.

    Raises:
        ValueError: a threshold was given; a crop's person is always there.
    """
    for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
        if value is not None:
            raise ValueError(
                f"{name} is {value}; a bundle of task pose_crop takes none, it gives every crop "
                "its joints. Leave it out, or give it to the detector."
            )
    return {}


def finish(
    outputs: Mapping[str, Array], letterboxes: Sequence[Letterbox], manifest: Manifest
) -> list[Detections]:
    """Take the graph's outputs back to the source frames.

    Args:
        outputs: as in runtime.contract.outputs, batch B.
        letterboxes: of the first crops of the batch; rows beyond them are padding.
        manifest: gives the names of classes and joints.

    Returns:
        One Poses per crop, of one person: its box is the whole crop, its score the mean confidence
        of the joints.
    """
    assert manifest.joints is not None, "checked when the manifest was read"
    results: list[Detections] = []
    for row, letterbox in enumerate(letterboxes):
        found = np.array(outputs["keypoints_xyc"][row], np.float32)
        found[:, :2] = letterbox.points_to_source(found[:, :2])
        height, width = letterbox.source_hw
        box = np.array([[0, 0, width, height]], np.float32)
        results.append(
            Poses(
                box,
                found[:, 2].mean(keepdims=True),
                np.zeros(1, np.int32),
                manifest.classes,
                keypoints_xyc=found[None],
                joints=manifest.joints,
            )
        )
    return results
