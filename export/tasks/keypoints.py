"""Keypoints on the way out: detection's graph, and the joints of each row it keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from export.tasks import detection
from runtime.contract.manifest import Joints
from training.models.base import KeypointSpec, Model, Raw
from training.tasks import keypoints


class EndToEnd(detection.EndToEnd):
    """Raw frame and thresholds to padded detections with joints; built as detection's."""

    def answer(
        self, raw: Raw, score_threshold: Tensor, iou_threshold: Tensor | None
    ) -> tuple[Tensor, ...]:
        """What `forward` returns, of the network's raw output.

        Returns:
            detection's four outputs, and keypoints_xyc (B, M, J, 3) float32 as (x, y, confidence),
            pixels of the network input and 0..1; padding has 0.
        """
        found = self.model.candidates(raw)
        assert found.decode_keypoints is not None, "models of task keypoints decode joints"
        *rows, anchors = self.find_boxes(found, score_threshold, iou_threshold)
        keypoints_xyc = found.decode_keypoints(anchors)
        is_row = (rows[3] >= 0)[:, :, None, None]
        return (*rows, torch.where(is_row, keypoints_xyc, 0.0))


def describe_outputs(model: Model) -> dict[str, Any]:
    """Fields of the manifest that say the sizes of this task's outputs."""
    spec = model.spec
    assert isinstance(spec, KeypointSpec)
    return {"joints": Joints(spec.joints, spec.skeleton, spec.flip_pairs, spec.sigmas)}


def score(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """Scores by name, 0..1, of COCO results in pixels of the source frames."""
    return keypoints.score(ground_truth, results)
