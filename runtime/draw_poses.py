"""Limbs and joints, drawn so that one sees the side of the body and how sure each joint is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.contract.manifest import Joints
from runtime.draw import draw_detections, sizes_of
from runtime.poses import Poses
from runtime.preprocess import Frame

LEFT_BGR, RIGHT_BGR, MIDDLE_BGR = (40, 150, 255), (255, 170, 60), (90, 220, 90)
UNDRAWN = 0.15  # a joint of less confidence is not drawn, nor are its limbs
SURE = 0.5  # from here on a joint is a disc and its limbs are lines; below, a ring and thin lines
_RIM_BGR = (30, 30, 30)
_FAR_PX = 1 << 14  # OpenCV wraps coordinates around beyond 2**15


def draw_poses(frame_bgr: Frame, poses: Poses, *, boxes: bool = True) -> Frame:
    """Draw objects with their joints into a frame, in place.

    The left side of the body is orange, the right blue, what lies between green. A joint that is
    not sure is a ring and its limbs are thin; one that is hardly there is left out.

    Args:
        frame_bgr: (h, w, 3) uint8, contiguous.
        poses: in pixels of this frame.
        boxes: draw boxes and labels, too.

    Returns:
        The same frame.
    """
    import cv2

    if boxes:
        draw_detections(frame_bgr, poses)
    thickness, _ = sizes_of(frame_bgr)
    colours = joint_colours(poses.joints)
    for keypoints, box in zip(poses.keypoints_xyc[::-1], poses.boxes_xyxy[::-1], strict=True):
        line, radius = _sizes_for(box, thickness)
        points = keypoints[:, :2].clip(-_FAR_PX, _FAR_PX)
        places = np.rint(np.where(np.isfinite(points), points, 0)).astype(int).tolist()
        confidence = np.where(np.isfinite(keypoints).all(axis=1), keypoints[:, 2], 0.0)
        for a, b in poses.joints.skeleton:
            least = min(confidence[a], confidence[b])
            if least >= UNDRAWN:
                colour = colours[a] if colours[a] == colours[b] else MIDDLE_BGR
                width = line if least >= SURE else 1
                cv2.line(frame_bgr, places[a], places[b], colour, width, cv2.LINE_AA)
        for place, sure, colour in zip(places, confidence, colours, strict=True):
            if sure >= SURE:
                cv2.circle(frame_bgr, place, radius, colour, cv2.FILLED, cv2.LINE_AA)
                if radius > 2:
                    cv2.circle(frame_bgr, place, radius, _RIM_BGR, 1, cv2.LINE_AA)
            elif sure >= UNDRAWN:
                cv2.circle(frame_bgr, place, radius, colour, 1, cv2.LINE_AA)
    return frame_bgr


def joint_colours(joints: Joints) -> list[tuple[int, int, int]]:
    """The colour of each joint, BGR, by the side of the body it is on."""
    colours = [MIDDLE_BGR] * len(joints.names)
    for pair in joints.flip_pairs:
        for place in pair:
            is_left = "left" in joints.names[place].lower() or (
                "right" not in joints.names[place].lower() and place == pair[0]
            )
            colours[place] = LEFT_BGR if is_left else RIGHT_BGR
    return colours


def _sizes_for(box_xyxy: NDArray[np.float32], thickness: int) -> tuple[int, int]:
    """Line and radius in pixels for an object of this size: small ones are not covered by dots."""
    side = float((box_xyxy[2:] - box_xyxy[:2]).max())
    line = max(1, min(2 * thickness, round(side / 60)))
    return line, max(1, min(2 + thickness, round(side / 45)))
