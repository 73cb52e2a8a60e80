"""Detection on the way out: the module that becomes the graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from export.graph.input_folding import fold_input
from export.graph.operators import select_pairs, suppress
from export.graph.top_rows import take_top_rows
from training.metrics.detection import score_boxes
from training.models.base import Candidates, Model, Raw


class EndToEnd(nn.Module):
    """Raw frame and thresholds to padded detections.

    Selection and suppression are custom operators: in torch they compute, in ONNX they become
    the nodes KestrelSelect and KestrelNms. A model whose spec says nms "none" has no KestrelNms
    and no iou_threshold.

    Args:
        model: of task detection, in eval mode; not changed.
        is_folded: normalisation in the first convolution, as exported; False runs the model's
            own preparation, which is what the export is proven against.
    """

    def __init__(self, model: Model, *, is_folded: bool = True) -> None:
        super().__init__()
        self.model, self.input = fold_input(model) if is_folded else (model, model.prepare)
        self.spec = model.spec

    def forward(
        self, image: Tensor, score_threshold: Tensor, iou_threshold: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Run the whole road.

        Args:
            image: (B, H, W, 3) uint8 BGR, network size.
            score_threshold: (B, K) float32. iou_threshold: (B,) float32, where rows suppress.

        Returns:
            num_detections (B,) int32, boxes_xyxy (B, M, 4) float32 in pixels of the network
            input, scores (B, M) float32, classes (B, M) int32; padding has score 0, class -1.
        """
        return self.answer(self.model(self.input(image)), score_threshold, iou_threshold)

    def answer(
        self, raw: Raw, score_threshold: Tensor, iou_threshold: Tensor | None
    ) -> tuple[Tensor, ...]:
        """What `forward` returns, of the network's raw output."""
        found = self.model.candidates(raw)
        return self.find_boxes(found, score_threshold, iou_threshold)[:4]

    def find_boxes(
        self, found: Candidates, score_threshold: Tensor, iou_threshold: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Select, decode and suppress; what `forward` returns, and anchors (B, M) int64."""
        scores, anchors, classes = select_pairs(
            found.logits, score_threshold, self.spec.num_candidates, found.activation
        )
        boxes = found.decode(anchors)
        most, method = self.spec.max_detections, self.spec.nms
        if iou_threshold is None:
            *rows, indices = take_top_rows(boxes, scores, classes, most)
        else:
            *rows, indices = suppress(boxes, scores, classes, iou_threshold, most, method)
        return (*rows, anchors.gather(1, indices))


def describe_outputs(model: Model) -> dict[str, Any]:
    """Fields of the manifest that say the sizes of this task's outputs: none."""
    return {}


def score(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """Scores by name, 0..1, of COCO results in pixels of the source frames."""
    return score_boxes(ground_truth, results)
