"""The kernels of selection and suppression as functions of arrays, run on the CPU."""

from __future__ import annotations

import numpy as np
from kernel_emulation import emulate

from runtime.engines.kernels.shipped import NMS, SELECT, SELECT_STRETCH

Arrays = dict[str, np.ndarray]

METHODS = ("greedy", "fast")
GARBAGE = 0x5A  # what outputs and scratch hold before a launch


def select(
    logits: np.ndarray,
    score_threshold: np.ndarray,
    candidates: int,
    activation: str = "sigmoid",
    *,
    order: int = 0,
    scratch: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Launch kestrel_select; shapes as in `export/graph/select.py`.

    Args:
        logits: (B, A, K) f32. score_threshold: (B, K) f32.
        candidates: T.
        activation: "sigmoid" or "none".
        order: of threads and blocks, as of the emulation.
        scratch: to use again; None makes one full of garbage.
    """
    batch, anchors, classes = logits.shape
    blocks = num_blocks(anchors, classes)
    if scratch is None:
        scratch = garbage((batch, blocks, candidates + 1), np.int64)
    outputs = [garbage((batch, candidates), kind) for kind in (np.float32, np.int64, np.int64)]
    emulate(SELECT.source).launch(
        SELECT.name,
        grid=(blocks, batch, 1),
        block=(SELECT.max_threads, 1, 1),
        arguments=[
            np.ascontiguousarray(logits),
            np.ascontiguousarray(score_threshold),
            *(anchors, classes, candidates, int(activation == "sigmoid")),
            *outputs,
            scratch,
        ],
        order=order,
        guarded=scratch.nbytes < 1 << 16,
    )
    return outputs[0], outputs[1], outputs[2]


def suppress(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    iou_threshold: np.ndarray,
    max_detections: int,
    method: str = "greedy",
    per_class_limit: int = 200,
    *,
    order: int = 0,
) -> Arrays:
    """Launch kestrel_nms; shapes as in `export/graph/nms.py`, results by their names there."""
    batch, rows = scores.shape
    most = max_detections
    outputs = {
        "num_detections": garbage((batch,), np.int32),
        "det_boxes": garbage((batch, most, 4), np.float32),
        "det_scores": garbage((batch, most), np.float32),
        "det_classes": garbage((batch, most), np.int32),
        "det_indices": garbage((batch, most), np.int64),
    }
    inputs = [boxes, scores, classes, iou_threshold]
    emulate(NMS.source).launch(
        NMS.name,
        grid=(batch, 1, 1),
        block=(NMS.max_threads, 1, 1),
        arguments=[
            *(np.ascontiguousarray(each) for each in inputs),
            *(rows, most, METHODS.index(method), per_class_limit),
            *outputs.values(),
        ],
        order=order,
        guarded=True,
    )
    return outputs


def num_blocks(anchors: int, classes: int) -> int:
    """Blocks of one image in the grid of kestrel_select."""
    return -(-anchors * classes // SELECT_STRETCH)


def garbage(shape: tuple[int, ...], kind: type) -> np.ndarray:
    """Memory as TensorRT hands it over: of any content."""
    return (
        np.full(int(np.prod(shape)) * np.dtype(kind).itemsize, GARBAGE, np.uint8)
        .view(kind)
        .reshape(shape)
    )
