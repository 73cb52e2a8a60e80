"""What a graph of each task takes and gives: names, types and shapes.

This table is the contract between `export/`, which writes graphs, and `runtime/`, which runs
them. Letters: B batch, H W height and width of the network input, K classes, M max_detections,
J joints, h w prototype height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: the tensor's name in the graph.
        dtype: NumPy name of its type.
        shape: letters of the module's docstring, or numbers.
    """

    name: str
    dtype: str
    shape: tuple[str | int, ...]

    def resolved(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The shape in numbers; a letter that is not in `sizes` is a KeyError."""
        return tuple(sizes[side] if isinstance(side, str) else side for side in self.shape)

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        return np.dtype(self.dtype)


KEY, NONKEY = "key", "nonkey"  # the graphs of a temporal model; others have "model"
MASK_INSIDE = 128  # of 0..255: a soft mask at or above it is the object
IMAGE = TensorSpec("image", "uint8", ("B", "H", "W", 3))
SCORE_THRESHOLD = TensorSpec("score_threshold", "float32", ("B", "K"))
IOU_THRESHOLD = TensorSpec("iou_threshold", "float32", ("B",))

# How far a frame has moved from its key frame, pixels of the network input; of NONKEY alone.
CHANGE = TensorSpec("change", "float32", ("B",))

_DETECTION = (
    TensorSpec("num_detections", "int32", ("B",)),
    TensorSpec("boxes_xyxy", "float32", ("B", "M", 4)),
    TensorSpec("scores", "float32", ("B", "M")),
    TensorSpec("classes", "int32", ("B", "M")),
)

INPUTS: dict[str, tuple[TensorSpec, ...]] = {
    "detection": (IMAGE, SCORE_THRESHOLD, IOU_THRESHOLD),
    "instance": (IMAGE, SCORE_THRESHOLD, IOU_THRESHOLD),
    "keypoints": (IMAGE, SCORE_THRESHOLD, IOU_THRESHOLD),
    "pose_crop": (IMAGE,),
    "semantic": (IMAGE,),
    "panoptic": (IMAGE, SCORE_THRESHOLD, IOU_THRESHOLD),
}

OUTPUTS: dict[str, tuple[TensorSpec, ...]] = {
    "detection": _DETECTION,
    "instance": (*_DETECTION, TensorSpec("masks", "uint8", ("B", "M", "h", "w"))),
    "keypoints": (*_DETECTION, TensorSpec("keypoints_xyc", "float32", ("B", "M", "J", 3))),
    "pose_crop": (TensorSpec("keypoints_xyc", "float32", ("B", "J", 3)),),
    "semantic": (TensorSpec("labels", "uint8", ("B", "H", "W")),),
    "panoptic": (
        *_DETECTION,
        TensorSpec("masks", "uint8", ("B", "M", "h", "w")),
        TensorSpec("labels", "uint8", ("B", "H", "W")),
    ),
}

# What only some models of a task give, after the others: how sure a mask is, 0..1, and CHANGE.
OPTIONAL_OUTPUTS: dict[str, tuple[TensorSpec, ...]] = {
    "instance": (TensorSpec("mask_scores", "float32", ("B", "M")), CHANGE),
}

TASKS = tuple(OUTPUTS)


def inputs_of(task: str, *, is_suppressed: bool = True) -> tuple[TensorSpec, ...]:
    """What a caller feeds a graph: without IOU_THRESHOLD where no row suppresses another."""
    return tuple(spec for spec in INPUTS[task] if is_suppressed or spec != IOU_THRESHOLD)


def outputs_of(task: str, optional: tuple[str, ...] = ()) -> tuple[TensorSpec, ...]:
    """What a graph gives: all outputs of its task, and those of the optional ones that are named.

    Raises:
        KeyError: the task, or one of the optional outputs, is not in the tables.
    """
    known = {spec.name: spec for spec in OPTIONAL_OUTPUTS.get(task, ())}
    return (*OUTPUTS[task], *(known[name] for name in optional))
