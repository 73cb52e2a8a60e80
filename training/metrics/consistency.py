"""How steady masks are over a clip: a mask carried along the true flow, against the next one.

After the temporal consistency of video segmentation (Varghese et al., CVPR workshops 2020; Liu et
al., arXiv:2002.11433), for each object of its own.
"""

from __future__ import annotations

import cv2
import numpy as np

from training.data.clips import Flow
from training.data.sample import Sample

MATCH_IOU = 0.5  # of a mask found with an object's, of the same class


def match_tracks(
    masks: np.ndarray, classes: np.ndarray, truth: Sample, track_ids: np.ndarray
) -> dict[int, np.ndarray]:
    """Which object each mask is of: the one that it covers best, each taken once.

    Args:
        masks: (N, H, W) uint8, 0 or 1, by falling score. classes: (N,) int.
        truth: the frame's objects; crowds do not count.
        track_ids: (M,) of the objects.

    Returns:
        Track id -> (H, W) mask; objects that no mask covers by `MATCH_IOU` are left out.
    """
    assert truth.masks is not None
    free = [row for row in range(len(truth)) if not truth.is_crowd[row]]
    areas = truth.masks.sum(axis=(1, 2), dtype=np.int64)
    found: dict[int, np.ndarray] = {}
    for mask, label in zip(masks, classes, strict=True):
        size, best, best_iou = int(mask.sum()), None, MATCH_IOU
        for row in free:
            if truth.classes[row] == label:
                shared = cv2.countNonZero(mask & truth.masks[row])
                iou = shared / max(1, size + int(areas[row]) - shared)
                if iou >= best_iou:
                    best, best_iou = row, iou
        if best is not None:
            free.remove(best)
            found[int(track_ids[best])] = mask
    return found


def carried_iou(before: np.ndarray, now: np.ndarray, flow: Flow) -> float:
    """IoU of a mask carried along a flow and the mask there.

    Args:
        before: (H, W) uint8 0 or 1, in the earlier frame. now: in the later one.
        flow: from the later frame to the earlier; what it does not see does not count.

    Returns:
        0..1; NaN where neither has a pixel that counts.
    """
    height, width = now.shape
    columns = flow.offsets_xy[..., 0] + np.arange(width, dtype=np.float32)
    rows = flow.offsets_xy[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    carried = cv2.remap(before, columns, rows, cv2.INTER_NEAREST)[flow.is_seen] > 0
    here = now[flow.is_seen] > 0
    either = int((carried | here).sum())
    return int((carried & here).sum()) / either if either else float("nan")


class Consistency:
    """Collects clips frame by frame; see `scores`."""

    def __init__(self) -> None:
        self._ious: list[float] = []
        self._num_before = self._num_kept = 0
        self._last: dict[int, np.ndarray] = {}

    def begin_clip(self) -> None:
        self._last = {}

    def add(
        self,
        masks: np.ndarray,
        classes: np.ndarray,
        truth: Sample,
        track_ids: np.ndarray,
        flow: Flow | None,
    ) -> None:
        """Take the next frame of a clip.

        Args:
            masks, classes, truth, track_ids: see `match_tracks`.
            flow: to the frame before; None of the first, and where the data set has none.
        """
        found = match_tracks(masks, classes, truth, track_ids)
        labelled = {int(t) for t, c in zip(track_ids, truth.is_crowd, strict=True) if not c}
        before = self._last.keys() & labelled
        self._num_before += len(before)
        self._num_kept += len(before & found.keys())
        if flow is not None:
            pairs = ((self._last[t], found[t]) for t in before & found.keys())
            self._ious += [carried_iou(*pair, flow) for pair in pairs]
        self._last = found

    def scores(self) -> dict[str, float]:
        """Over all clips; NaN where there was nothing to compare.

        Returns:
            "mask_consistency": mean IoU of an object's mask carried along the true flow and its
            mask in the next frame; "tracks_kept": of the objects found in a frame that the next
            one shows as well, the share found there; both 0..1.
        """
        known = [iou for iou in self._ious if iou == iou]
        kept = self._num_kept / self._num_before if self._num_before else float("nan")
        steady = float(np.mean(known)) if known else float("nan")
        return {"mask_consistency": steady, "tracks_kept": kept}
