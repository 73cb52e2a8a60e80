"""Joints of one person in a crop, on the way out: no selection, no thresholds."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from export.graph.input_folding import fold_input
from export.tasks import keypoints
from training.models.base import CropSpec, Model
from training.tasks import pose_crop


class EndToEnd(nn.Module):
    """Raw crop to joints.

    Args:
        model: of task pose_crop, in eval mode; not changed.
        is_folded: as of `export.tasks.detection.EndToEnd`.
    """

    def __init__(self, model: Model, *, is_folded: bool = True) -> None:
        super().__init__()
        self.model, self.input = fold_input(model) if is_folded else (model, model.prepare)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Run the whole road.

        Args:
            image: (B, H, W, 3) uint8 BGR, crops of network size.

        Returns:
            keypoints_xyc (B, J, 3) float32 as (x, y, confidence), pixels of the crop and 0..1.
        """
        return (self.model.candidates(self.model(self.input(image))),)


def describe_outputs(model: Model) -> dict[str, Any]:
    """Fields of the manifest that say the sizes of this task's outputs."""
    assert isinstance(model.spec, CropSpec)
    return {**keypoints.describe_outputs(model), "crop_margin": model.spec.crop_margin}


def score(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """Scores by name, 0..1, of COCO results in pixels of the crops."""
    return pose_crop.score(ground_truth, results)
