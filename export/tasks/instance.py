"""Instance segmentation on the way out: detection's graph, and a mask for each row it keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from export.graph.masks import make_masks, to_bytes
from export.tasks import detection
from training.metrics.detection import score_boxes
from training.metrics.instance import score_masks
from training.models.base import Model, Raw


class EndToEnd(detection.EndToEnd):
    """Raw frame and thresholds to padded detections with masks; built as detection's."""

    def answer(
        self, raw: Raw, score_threshold: Tensor, iou_threshold: Tensor | None
    ) -> tuple[Tensor, ...]:
        """What `forward` returns, of the network's raw output.

        Returns:
            detection's four outputs, masks (B, M, h, w) uint8, 0..255, at prototype size, and of a
            model that re-scores them mask_scores (B, M) float32, 0..1; padding has 0.
        """
        found = self.model.candidates(raw)
        *rows, anchors = self.find_boxes(found, score_threshold, iou_threshold)
        boxes_xyxy, classes = rows[1], rows[3]
        table = found.extras["coefficients"]  # (B, A, P)
        kept = table.gather(1, anchors[:, :, None].expand(-1, -1, table.shape[2]))  # (B, M, P)
        prototypes = found.maps["prototypes"]
        masks = make_masks(kept, prototypes, boxes_xyxy, classes >= 0, self.spec.size_hw)
        if found.rescore is None:
            return (*rows, to_bytes(masks))
        return (*rows, to_bytes(masks), rows[2] * found.rescore(masks, classes.long()))


def describe_outputs(model: Model) -> dict[str, Any]:
    """Fields of the manifest that say the sizes of this task's outputs."""
    height, width = model.spec.size_hw
    with torch.no_grad():
        found = model.candidates(model(torch.zeros(1, 3, height, width)))
    return {"mask_hw": tuple(found.maps["prototypes"].shape[-2:])}


def score(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """Scores by name, 0..1, of COCO results in pixels of the source frames."""
    return score_masks(ground_truth, results) | score_boxes(ground_truth, results)
