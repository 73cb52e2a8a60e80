"""What tasks with joints give: objects with joints, and faces with landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.contract.manifest import Joints
from runtime.preprocess import Frame
from runtime.results import Detections

# Where five landmarks lie in a face of 112x112 pixels that is ready to be recognised, in the order
# of FACE_JOINTS (ArcFace, arXiv:1801.07698).
FACE_TEMPLATE_XY = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
     [70.7299, 92.2041]]
)  # fmt: skip
TEMPLATE_PX = 112
FACE_JOINTS = ("right_eye", "left_eye", "nose", "right_mouth_corner", "left_mouth_corner")


@dataclass(frozen=True, slots=True, eq=False)
class Poses(Detections):
    """The objects of one frame with their joints, by falling score.

    Attributes:
        keypoints_xyc: (N, J, 3) float32 as (x, y, confidence): pixels of the source frame, perhaps
            outside of it, and 0..1.
        joints: their names, limbs, pairs and constants.
    """

    keypoints_xyc: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((0, 0, 3), np.float32), kw_only=True
    )
    joints: Joints = field(default=Joints(()), kw_only=True)

    def __getitem__(self, index: slice | NDArray[Any] | list[int]) -> Poses:
        """A part of them: `poses[poses.scores > 0.5]`, `poses[:10]`."""
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[index],
            scores=self.scores[index],
            classes=self.classes[index],
            keypoints_xyc=self.keypoints_xyc[index],
            track_ids=None if self.track_ids is None else self.track_ids[index],
        )

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Entries of a COCO results file: as of `Detections`, with "keypoints".

        These are [x, y, confidence] of each joint in a row; COCO's tools do not read the third.
        """
        entries = Detections.to_coco(self, image_id, category_ids)
        for entry, rows in zip(entries, self.keypoints_xyc, strict=True):
            entry["keypoints"] = [round(float(value), 3) for value in rows.ravel()]
        return entries

    def to_json(self) -> dict[str, Any]:
        """As of `Detections`; each has "keypoints": {joint: [x, y, confidence]}."""
        document = Detections.to_json(self)
        for entry, rows in zip(document["detections"], self.keypoints_xyc, strict=True):
            entry["keypoints"] = {
                name: [round(x, 2), round(y, 2), round(confidence, 3)]
                for name, (x, y, confidence) in zip(self.joints.names, rows.tolist(), strict=True)
            }
        return document


@dataclass(frozen=True, slots=True, eq=False)
class Faces(Poses):
    """The faces of one frame with five landmarks in the order of FACE_JOINTS, by falling score."""

    def align(self, frame_bgr: Frame, index: int, side_px: int = TEMPLATE_PX) -> Frame:
        """One face turned upright and scaled, as networks that recognise faces take it.

        The landmarks are laid on ArcFace's template by the similarity that fits them best (Umeyama,
        1991: least squares, no mirror).

        Args:
            frame_bgr: (h, w, 3) uint8, the frame that the faces were found in.
            index: of the face.
            side_px: of the result.

        Returns:
            (side_px, side_px, 3) uint8, black where the frame ends.
        """
        import cv2

        target = FACE_TEMPLATE_XY * (side_px / TEMPLATE_PX)
        matrix = fit_similarity(self.keypoints_xyc[index, :, :2], target)
        matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5  # OpenCV counts from pixel centres
        return np.asarray(cv2.warpAffine(frame_bgr, matrix, (side_px, side_px)), np.uint8)


def fit_similarity(source_xy: NDArray[Any], target_xy: NDArray[Any]) -> NDArray[np.float64]:
    """The scale, turn and shift that bring points closest to others, in the sum of squares.

    Args:
        source_xy, target_xy: (N, 2), N at least 2.

    Returns:
        (2, 3): target = matrix[:, :2] @ source + matrix[:, 2].
    """
    source, target = np.asarray(source_xy, np.float64), np.asarray(target_xy, np.float64)
    centre, goal = source.mean(axis=0), target.mean(axis=0)
    z, w = ((points - middle) @ (1, 1j) for points, middle in ((source, centre), (target, goal)))
    turn = (z.conj() @ w) / max(float((z.conj() @ z).real), np.finfo(float).tiny)
    matrix = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.hstack([matrix, (goal - matrix @ centre)[:, None]])
