"""Time selection and suppression in PyTorch: the peer that benchmarks/kernels.py starts.

The benchmarks import no PyTorch, so this runs as a process of its own. It computes what the
operators KestrelSelect and KestrelNms are defined to, in two ways: in operators of fixed shape,
compiled, within a CUDA graph; and as torchvision's detectors do, with shapes that depend on the
data. It prints one line of JSON: microseconds of one input, and the rows that were kept.

Examples:
  python training/time_selection.py inputs.npz --device cpu
      Without a GPU: neither compiled nor within a graph.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
import torchvision
from torch import Tensor

from training.errors import TrainingError, run_script
from training.manual import ScriptParser

Feeds = tuple[Tensor, Tensor, Tensor, Tensor]  # logits, boxes, score_threshold, iou_threshold

NAMES = ("logits", "boxes", "score_threshold", "iou_threshold")
SIZES = ("candidates", "kept")
NUM_REPLAYS = 10
LOWEST = torch.finfo(torch.float32).min
TINY = torch.finfo(torch.float32).tiny


def main() -> int:
    """Read the inputs, time both ways, print what was found."""
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "inputs",
        type=Path,
        help="npz with logits (N, B, A, K), boxes (N, B, A, 4), score_threshold (N, B, K), "
        "iou_threshold (N, B), float32, and the numbers candidates and kept; N inputs in turn",
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("PyTorch sees no GPU. Give --device cpu, or check the driver.")
    feeds, candidates, kept = read_inputs(args.inputs, torch.device(args.device))

    def compute(*feed: Tensor) -> tuple[Tensor, Tensor]:
        return keep_fixed(*feed, candidates=candidates, kept=kept)

    with torch.no_grad():
        is_gpu = args.device == "cuda"
        fixed = torch.compile(compute, dynamic=False) if is_gpu else compute
        compiled_us = time_graph_us(fixed, feeds) if is_gpu else time_us(fixed, feeds)
        torchvision_us = time_us(lambda *feed: keep_dynamic(*feed, candidates, kept), feeds)
        anchors, counts = fixed(*feeds[0])
        theirs = keep_dynamic(*feeds[0], candidates, kept)
    answer = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": torch.cuda.get_device_name() if is_gpu else "cpu",
        "is_compiled": is_gpu,
        "fixed_us": round(compiled_us, 3),
        "torchvision_us": round(torchvision_us, 3),
        "fixed_anchors": [row[:count].tolist() for row, count in zip(anchors, counts, strict=True)],
        "torchvision_anchors": [row.tolist() for row in theirs],
    }
    print(json.dumps(answer))
    return 0


def read_inputs(path: Path, device: torch.device) -> tuple[list[Feeds], int, int]:
    """The inputs of a file; TrainingError where it is not one."""
    try:
        with np.load(path) as file:
            arrays = [torch.from_numpy(file[name]).to(device) for name in NAMES]
            candidates, kept = (int(file[name]) for name in SIZES)
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(
            f"{path} is no file of inputs ({error}); expected an npz with "
            f"{', '.join((*NAMES, *SIZES))}. benchmarks/kernels.py writes one."
        ) from None
    return [tuple(each) for each in zip(*arrays, strict=True)], candidates, kept  # type: ignore[misc]


def keep_fixed(
    logits: Tensor,
    boxes: Tensor,
    score_threshold: Tensor,
    iou_threshold: Tensor,
    *,
    candidates: int,
    kept: int,
) -> tuple[Tensor, Tensor]:
    """The two operators' definition, every shape fixed (export/graph/select.py, nms.py).

    Args:
        logits: (B, A, K). boxes: (B, A, 4) as (x1, y1, x2, y2).
        score_threshold: (B, K), within 0..1. iou_threshold: (B,).
        candidates: T. kept: M.

    Returns:
        Anchors of the kept rows (B, M), -1 in padding, and how many there are (B,).
    """
    batch, num_anchors, num_classes = logits.shape
    cut = torch.logit(score_threshold)[:, None]
    masked = torch.where(logits > cut, logits, LOWEST)
    best = masked.amax(2).topk(min(candidates, num_anchors), dim=1).indices.sort(dim=1).values
    rows = masked.gather(1, best[..., None].expand(-1, -1, num_classes)).flatten(1)
    top, pairs = rows.topk(candidates, dim=1)
    anchors = best.gather(1, pairs // num_classes)
    labels = (pairs % num_classes).float()
    x1, y1, x2, y2 = boxes.gather(1, anchors[..., None].expand(-1, -1, 4)).unbind(2)
    areas = ((x2 - x1) * (y2 - y1)).clamp(min=TINY)
    ranks = torch.arange(candidates, 0, -1, device=logits.device, dtype=torch.float32)
    alive = torch.where(top > LOWEST, ranks, 0.0)  # (B, T): T - row, 0 once out
    found = []
    for _ in range(kept):
        rank, row = alive.max(dim=1, keepdim=True)
        own = [side.gather(1, row) for side in (x1, y1, x2, y2, areas, labels)]
        width = torch.minimum(x2, own[2]) - torch.maximum(x1, own[0])
        height = torch.minimum(y2, own[3]) - torch.maximum(y1, own[1])
        inter = width.clamp(min=0) * height.clamp(min=0)
        iou = inter / (areas + own[4] - inter)
        is_out = (iou > iou_threshold[:, None]) & (labels == own[5])
        alive = torch.where(is_out | (alive == rank), 0.0, alive)
        found.append(torch.where(rank > 0, anchors.gather(1, row), -1))
    chosen = torch.cat(found, dim=1)
    return chosen, (chosen >= 0).sum(dim=1)


def keep_dynamic(
    logits: Tensor,
    boxes: Tensor,
    score_threshold: Tensor,
    iou_threshold: Tensor,
    candidates: int,
    kept: int,
) -> list[Tensor]:
    """As torchvision's one-stage detectors postprocess: what passes, the best, batched_nms.

    Returns:
        Anchors of the kept rows of each image.
    """
    found = []
    for image in range(len(logits)):
        scores = logits[image].sigmoid()
        passing = scores > score_threshold[image]
        values, places = scores[passing], passing.nonzero()
        best = values.topk(min(candidates, len(values))).indices
        values, anchors, labels = values[best], places[best, 0], places[best, 1]
        threshold = float(iou_threshold[image])
        rows = torchvision.ops.batched_nms(boxes[image][anchors], values, labels, threshold)
        found.append(anchors[rows[:kept]])
    return found


def time_graph_us(compute: Callable[..., Any], feeds: list[Feeds]) -> float:
    """Microseconds of one input within a CUDA graph that goes through all."""
    for feed in feeds[:2] * 2:
        compute(*feed)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for feed in feeds:
            compute(*feed)
    begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begun.record()
    for _ in range(NUM_REPLAYS):
        graph.replay()
    done.record()
    torch.cuda.synchronize()
    return begun.elapsed_time(done) * 1e3 / (NUM_REPLAYS * len(feeds))


def time_us(compute: Callable[..., Any], feeds: list[Feeds]) -> float:
    """Microseconds of one input, by the clock: data-dependent shapes make the host wait."""
    compute(*feeds[0])
    _wait()
    begun = perf_counter()
    for feed in feeds:
        compute(*feed)
    _wait()
    return (perf_counter() - begun) * 1e6 / len(feeds)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(run_script(main))
