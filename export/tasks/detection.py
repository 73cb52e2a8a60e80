"""Detection on the way out: the module that becomes the graph."""

from __future__ import annotations

from torch import Tensor, nn

from export.graph.input_folding import fold_input
from export.graph.operators import select_pairs, suppress
from training.models.base import Model


class EndToEnd(nn.Module):
    """Raw frame and thresholds to padded detections.

    Selection and suppression are custom operators: in torch they compute, in ONNX they become
    the nodes KestrelSelect and KestrelNms.

    Args:
        model: of task detection, in eval mode; not changed.
        is_folded: normalisation in the first convolution, as exported; False runs the model's
            own preparation, which is what the export is proven against.
    """

    def __init__(self, model: Model, *, is_folded: bool = True) -> None:
        super().__init__()
        self.model, self.input = fold_input(model) if is_folded else (model, model.prepare)
        self.num_candidates = model.spec.num_candidates
        self.max_detections = model.spec.max_detections

    def forward(
        self, image: Tensor, score_threshold: Tensor, iou_threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run the whole road.

        Args:
            image: (B, H, W, 3) uint8 BGR, network size.
            score_threshold: (B, K) float32. iou_threshold: (B,) float32.

        Returns:
            num_detections (B,) int32, boxes_xyxy (B, M, 4) float32 in pixels of the network
            input, scores (B, M) float32, classes (B, M) int32; padding has score 0, class -1.
        """
        found = self.model.candidates(self.model(self.input(image)))
        scores, anchors, classes = select_pairs(
            found.logits, score_threshold, self.num_candidates, "sigmoid"
        )
        boxes = found.decode(anchors)
        count, boxes_xyxy, kept_scores, kept_classes, _ = suppress(
            boxes, scores, classes, iou_threshold, self.max_detections
        )
        return count, boxes_xyxy, kept_scores, kept_classes
