"""Heads to select and suppress from: made-up inputs, what NumPy keeps of them, and the floors.

The floors are those of `runtime/engines/kernels/NOTES.md`: what no implementation can be faster
than on a GPU of so much bandwidth and such a clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.preprocess import Letterbox

Arrays = dict[str, NDArray[np.generic]]

OPERATIONS_A_PAIR = 16  # of an IoU and its comparison
LANES = 128  # operations of a multiprocessor in one cycle
CLEARANCE = 1e-4  # of logits from the threshold: the last bit of a logarithm is nobody's promise
GRID = 4  # boxes lie on quarters of a pixel, so that float32 and float64 agree on every IoU


@dataclass(frozen=True, slots=True)
class Head:
    """Sizes of a detector's output.

    Attributes:
        anchors, classes: A, K. candidates, kept: T, M. batch: B.
        threshold: of scores. iou_threshold: of suppression.
        mean: of the logits, whose deviation is 1.3; it decides how many pass.
    """

    anchors: int
    classes: int
    candidates: int
    kept: int = 100
    batch: int = 1
    threshold: float = 0.05
    iou_threshold: float = 0.5
    mean: float = -7.0

    @property
    def logits_nbytes(self) -> int:
        """Of one batch."""
        return 4 * self.batch * self.anchors * self.classes


HEADS = {
    "coco-640": Head(76_725, 80, 1000),
    "coco-640-batch-4": Head(76_725, 80, 1000, batch=4),
    "coco-550": Head(19_248, 80, 1000),
    "street-512": Head(12_000, 5, 300, mean=-4.5),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the floors depend on.

    Attributes:
        bytes_a_s: of its memory. clock_hz: of a multiprocessor. launch_us: of a kernel that does
            nothing, within a CUDA graph.
    """

    bytes_a_s: float
    clock_hz: float
    launch_us: float


@dataclass(frozen=True, slots=True)
class Kept:
    """What the reference keeps of one image.

    Attributes:
        flat: (n,) indices into A * K of the candidates, the best first.
        rows: of the candidates, those that are kept.
        num_pairs: rows held against kept rows before them, until the last that is kept.
    """

    flat: NDArray[np.int64]
    rows: NDArray[np.int64]
    num_pairs: int


def make_feeds(head: Head, seed: int) -> Arrays:
    """Logits (B, A, K), boxes (B, A, 4), score_threshold (B, K), iou_threshold (B), float32."""
    rng = np.random.default_rng(seed)
    shape = (head.batch, head.anchors, head.classes)
    logits = rng.standard_normal(shape, dtype=np.float32) * np.float32(1.3) + np.float32(head.mean)
    cut = np.float32(np.log(head.threshold / (1 - head.threshold)))
    logits[np.abs(logits - cut) < CLEARANCE] -= np.float32(2 * CLEARANCE)
    clusters = rng.uniform(40, 460, (150, 2))
    centres = clusters[rng.integers(0, len(clusters), shape[:2])]
    centres += rng.normal(0, 6, centres.shape)
    sides = rng.uniform(4, 80, centres.shape)
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=2)
    return {
        "logits": logits,
        "boxes": (np.round(np.clip(boxes, 0, 511) * GRID) / GRID).astype(np.float32),
        "score_threshold": np.full((head.batch, head.classes), head.threshold, np.float32),
        "iou_threshold": np.full(head.batch, head.iou_threshold, np.float32),
    }


def keep(head: Head, feeds: Arrays, image: int) -> Kept:
    """Select and suppress one image by definition, in float64."""
    logits = feeds["logits"][image].astype(np.float64).reshape(-1)
    cut = np.log(head.threshold / (1 - head.threshold))
    passing = np.flatnonzero(logits > cut)
    flat = passing[np.lexsort((passing, -logits[passing]))][: head.candidates]
    boxes = feeds["boxes"][image].astype(np.float64)[flat // head.classes]
    labels = flat % head.classes
    rows: list[int] = []
    num_pairs = 0
    for row, box in enumerate(boxes):
        if len(rows) == head.kept:
            break
        before = [other for other in rows if labels[other] == labels[row]]
        num_pairs += len(rows)
        if not (_ious(boxes[before], box) > head.iou_threshold).any():
            rows.append(row)
    return Kept(flat, np.array(rows, np.int64), num_pairs)


def find_floors_us(head: Head, num_pairs: int, gpu: Gpu) -> dict[str, float]:
    """The least time of each kernel and of both, microseconds.

    Args:
        head: sizes.
        num_pairs: the most of any image: images run side by side.
        gpu: what it can do.
    """
    select = head.logits_nbytes / gpu.bytes_a_s * 1e6
    nms = num_pairs * OPERATIONS_A_PAIR / (LANES * gpu.clock_hz) * 1e6
    return {
        "select": select + gpu.launch_us,
        "nms": nms + gpu.launch_us,
        "both": select + nms + 2 * gpu.launch_us,
    }


def find_letterbox_floor_us(letterbox: Letterbox, gpu: Gpu) -> float:
    """The least time to letterbox one BGR frame: two lines of it for each that is written."""
    height, width = letterbox.source_hw
    rows, columns = letterbox.network_hw
    lines = min(height, 2 * letterbox.content_hw[0])
    return 3 * (lines * width + rows * columns) / gpu.bytes_a_s * 1e6 + gpu.launch_us


def _ious(boxes: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.float64]:
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    inter = np.clip(sides, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    tiny = float(np.finfo(np.float32).tiny)
    return np.asarray(inter / np.maximum(areas - inter, tiny))
