"""Keypoints: detection's thresholds and boxes, and joints for each box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from runtime.contract.manifest import Manifest
from runtime.poses import FACE_JOINTS, Faces, Poses
from runtime.preprocess import Frame, Letterbox
from runtime.results import Detections
from runtime.sessions.base import Array
from runtime.tasks import detection

thresholds = detection.thresholds


def finish(
    outputs: Mapping[str, Array], letterboxes: Sequence[Letterbox], manifest: Manifest
) -> list[Detections]:
    """Take the graph's outputs back to the source frames.

    Args:
        outputs: as in runtime.contract.outputs, batch B.
        letterboxes: of the first frames of the batch; rows beyond them are padding.
        manifest: gives the names of classes and joints.

    Returns:
        One Poses per letterbox; Faces where the joints are those of faces.
    """
    assert manifest.joints is not None, "checked when the manifest was read"
    kind = Faces if manifest.joints.names == FACE_JOINTS else Poses
    results: list[Detections] = []
    found = detection.finish(outputs, letterboxes, manifest)
    for row, (result, letterbox) in enumerate(zip(found, letterboxes, strict=True)):
        keypoints = np.array(outputs["keypoints_xyc"][row, : len(result)], np.float32)
        keypoints[..., :2] = letterbox.points_to_source(keypoints[..., :2])
        results.append(
            kind(
                result.boxes_xyxy,
                result.scores,
                result.classes,
                result.names,
                keypoints_xyc=keypoints,
                joints=manifest.joints,
            )
        )
    return results


def draw(frame_bgr: Frame, result: Detections) -> Frame:
    """Draw boxes, labels, limbs and joints into the frame, in place."""
    from runtime.draw_poses import draw_poses

    assert isinstance(result, Poses)
    return draw_poses(frame_bgr, result)
