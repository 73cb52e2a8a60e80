"""Cases for the kernels of selection and suppression, and what NumPy says of them.

The reference selects in float64, which holds every float32; thresholds keep a distance from the
logits, since the last bit of a logarithm is nobody's promise. IoUs are computed twice: in float32,
as the definition does, and in float64 where boxes lie on a grid that makes both exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Arrays = dict[str, np.ndarray]

CLEARANCE = 1e-4  # of logits from log(t / (1 - t))
TINY = float(np.finfo(np.float32).tiny)
GRID = 4  # boxes lie on quarters of a pixel below 512: products of sides take 22 bits, sums 23


@dataclass(frozen=True)
class Config:
    """Sizes: T, M, A, K, B; activation "sigmoid" or "none"; method "greedy" or "fast"."""

    candidates: int
    kept: int
    anchors: int
    classes: int
    batch: int = 1
    activation: str = "sigmoid"
    method: str = "greedy"
    per_class_limit: int = 200


# ------------------------------------------------------------------------------------------ cases


def make_image(rng: np.random.Generator, config: Config) -> Arrays:
    """Logits (A, K), boxes (A, 4) on the grid, score_threshold (K), iou_threshold ()."""
    clusters = rng.uniform(40, 460, (int(rng.choice([2, 12, 150])), 2))
    centres = clusters[rng.integers(0, len(clusters), config.anchors)]
    centres = centres + rng.normal(0, 5, centres.shape)
    sides = rng.uniform(2, 60, (config.anchors, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    logits = rng.normal(0, 2, (config.anchors, config.classes))
    if config.activation == "none":
        logits = 1 / (1 + np.exp(-logits))
    return {
        "logits": logits,
        "boxes": np.round(np.clip(boxes, 0, 511) * GRID) / GRID,
        "score_threshold": np.full(config.classes, rng.choice([0.05, 0.3, 0.5])),
        "iou_threshold": np.array(rng.choice([0.0, 0.3, 0.5, 0.7, 1.0])),
    }


def _equal_scores(rng: np.random.Generator, image: Arrays) -> None:
    image["logits"][:] = 0.75


def _ties(rng: np.random.Generator, image: Arrays) -> None:
    image["logits"] = np.round(image["logits"] * 4) / 4


def _signed_zeros(rng: np.random.Generator, image: Arrays) -> None:
    image["logits"] = np.where(rng.random(image["logits"].shape) < 0.5, 0.0, -0.0)
    image["score_threshold"][:] = 0.3


def _not_a_number(rng: np.random.Generator, image: Arrays) -> None:
    logits = image["logits"]
    logits[rng.random(logits.shape) < 0.2] = np.nan
    logits[rng.random(logits.shape) < 0.02] = np.inf
    logits[rng.random(logits.shape) < 0.1] = -np.inf
    image["score_threshold"] = rng.choice([0.0, 0.1, 1.0], logits.shape[1])


def _boxes_not_finite(rng: np.random.Generator, image: Arrays) -> None:
    boxes = image["boxes"]
    boxes[rng.random(boxes.shape) < 0.05] = np.nan
    boxes[rng.random(boxes.shape) < 0.02] = np.inf
    boxes[rng.random(boxes.shape) < 0.02] = -np.inf


def _no_area(rng: np.random.Generator, image: Arrays) -> None:
    """Zero width, inverted in x, inverted in both (whose area is positive)."""
    boxes, kind = image["boxes"], rng.integers(0, 6, len(image["boxes"]))
    boxes[kind == 0, 2] = boxes[kind == 0, 0]
    boxes[kind == 1] = boxes[kind == 1][:, [2, 1, 0, 3]]
    boxes[kind == 2] = boxes[kind == 2][:, [2, 3, 0, 1]]


def _huge(rng: np.random.Generator, image: Arrays) -> None:
    """Areas and unions overflow; some boxes reach as far as float32 does."""
    image["boxes"] = (image["boxes"] - 256) * rng.choice([1e17, 1e30, 6e35])


def _minute(rng: np.random.Generator, image: Arrays) -> None:
    """Areas underflow."""
    image["boxes"] = image["boxes"] * rng.choice([1e-10, 1e-20, 1e-24])


def _negative(rng: np.random.Generator, image: Arrays) -> None:
    image["boxes"] = image["boxes"] - rng.choice([256, 512])


def _at_the_threshold(rng: np.random.Generator, image: Arrays) -> None:
    """IoUs of small integers hit 1/2 and 1/4 exactly."""
    corners = rng.integers(0, 6, image["boxes"].shape)
    image["boxes"] = np.sort(corners.reshape(-1, 2, 2), axis=1).reshape(-1, 4).astype(float)
    image["iou_threshold"] = np.array(rng.choice([0.25, 0.5]))


def _beside_the_threshold(rng: np.random.Generator, image: Arrays) -> None:
    """The threshold is the IoU of some pair, or the float32 next to it."""
    x1, y1, x2, y2 = np.float32(image["boxes"][rng.integers(0, len(image["boxes"]), 2)]).T
    inter = max(min(x2) - max(x1), 0) * max(min(y2) - max(y1), 0)
    union = max(((x2 - x1) * (y2 - y1)).sum() - inter, np.float32(TINY))
    exact = np.float32(inter / union)
    beside = [exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(1))]
    image["iou_threshold"] = np.array(beside[int(rng.integers(0, 3))])


def _classes_off(rng: np.random.Generator, image: Arrays) -> None:
    """What is switched off has the best logits of all: it must not crowd others out."""
    off = rng.random(image["logits"].shape[1]) < 0.5
    image["logits"][:, off] += 10
    image["score_threshold"][off] = rng.choice([1.5, 2.0, np.inf])


def _threshold_a_class(rng: np.random.Generator, image: Arrays) -> None:
    choice = [-1.0, 0.0, 0.02, 0.5, 0.9, 1.0, 2.0, np.nan]
    image["score_threshold"] = rng.choice(choice, image["logits"].shape[1])


def _few(rng: np.random.Generator, image: Arrays) -> None:
    image["logits"][rng.random(image["logits"].shape) > 0.01] -= 40


def _none(rng: np.random.Generator, image: Arrays) -> None:
    image["logits"] -= 60


def _chain(rng: np.random.Generator, image: Arrays) -> None:
    """Boxes in a row, each overlapping only the next: every second is kept, by what is before."""
    count = len(image["boxes"])
    left = np.arange(count) * 8.0
    image["boxes"] = np.stack([left, 0 * left, left + 32, 0 * left + 24], axis=1)
    image["logits"][:] = image["logits"].min()
    image["logits"][:, 0] = np.linspace(0.99, 0.5, count)
    image["score_threshold"][:] = 0.3
    image["iou_threshold"] = np.array(0.5)


def _same_boxes(rng: np.random.Generator, image: Arrays) -> None:
    image["boxes"][:] = image["boxes"][rng.integers(0, 3, len(image["boxes"]))]


def _rising(rng: np.random.Generator, image: Arrays) -> None:
    """Every value beats all before it, the worst order for a filter by the best so far."""
    image["logits"] = np.sort(image["logits"].reshape(-1)).reshape(image["logits"].shape)
    image["score_threshold"][:] = 0.0


CHANGES = (
    *(_equal_scores, _ties, _signed_zeros, _not_a_number, _boxes_not_finite, _no_area, _huge),
    *(_minute, _negative, _at_the_threshold, _beside_the_threshold, _classes_off),
    *(_threshold_a_class, _few, _none, _chain, _same_boxes, _rising),
)
OFF_GRID = {"_huge", "_minute", "_boxes_not_finite", "_chain"}
# The definition clamps areas that torchvision lets underflow to 0 / 0.
UNLIKE_TORCHVISION = {"_minute"}


def make_case(config: Config, number: int) -> tuple[Arrays, set[str]]:
    """B images with up to two changes each, every change in turn; the names of the changes."""
    rng = np.random.default_rng([number, config.anchors, config.classes])
    images: list[Arrays] = []
    changes: set[str] = set()
    for index in range(config.batch):
        image = make_image(rng, config)
        first = CHANGES[(number + index) % len(CHANGES)]
        others = rng.permutation(np.array(CHANGES))[: rng.integers(0, 2)]
        for change in (first, *others) if number % 7 else ():
            change(rng, image)
            changes.add(change.__name__)
        with np.errstate(over="ignore"):
            image = {name: array.astype(np.float32) for name, array in image.items()}
        _keep_clear(image, config.activation)
        images.append(image)
    return {name: np.stack([image[name] for image in images]) for name in images[0]}, changes


def _keep_clear(image: Arrays, activation: str) -> None:
    if activation == "none":
        return
    logits, cut = image["logits"], cut_of(image["score_threshold"], activation)
    with np.errstate(invalid="ignore"):
        is_near = np.abs(logits - cut) < CLEARANCE
    image["logits"] = np.where(is_near, logits + np.float32(2 * CLEARANCE), logits)


# -------------------------------------------------------------------------------------- reference


def cut_of(score_threshold: np.ndarray, activation: str) -> np.ndarray:
    """The threshold in the units of the logits, in float64."""
    threshold = score_threshold.astype(np.float64)
    if activation == "none":
        return np.where(np.isnan(threshold), np.inf, np.maximum(threshold, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = np.log(threshold / (1 - threshold))
    lowest = -float(np.finfo(np.float32).max)
    return np.where(threshold >= 1, np.inf, np.where(threshold > 0, cut, lowest))


def select_by_definition(
    image: Arrays, candidates: int, activation: str
) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices (n,) of the first n <= T candidates, and their scores (n,) in float64."""
    logits = image["logits"].astype(np.float64)
    flat = np.flatnonzero(logits > cut_of(image["score_threshold"], activation))
    value = logits.reshape(-1)[flat]
    order = np.lexsort((flat, -value))[:candidates]
    with np.errstate(over="ignore"):
        score = 1 / (1 + np.exp(-value[order])) if activation == "sigmoid" else value[order]
    return flat[order], np.maximum(score, TINY)


def keep_by_definition(
    boxes: np.ndarray,
    classes: np.ndarray,
    iou_threshold: np.ndarray,
    config: Config,
    precision: type = np.float32,
) -> np.ndarray:
    """Rows (n,) that are kept of filled rows (T, 4), one after the other; IoU in `precision`."""
    entered = (np.abs(boxes) < np.finfo(np.float32).max).all(axis=1)
    corners = boxes.astype(precision)
    kept: list[int] = []
    rivals: dict[int, list[int]] = {}
    for row in np.flatnonzero(entered):
        before = rivals.setdefault(int(classes[row]), [])
        is_beaten = bool(
            before
            and (
                _ious(corners[before], corners[row]).astype(np.float32) > np.float32(iou_threshold)
            ).any()
        )
        if config.method == "fast":
            if len(before) < config.per_class_limit and not is_beaten:
                kept.append(int(row))
            before.append(int(row))
        elif not is_beaten:
            kept.append(int(row))
            before.append(int(row))
    return np.array(kept[: config.kept], np.int64)


def _ious(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
        sides = np.maximum(sides, 0)
        inter = sides[:, 0] * sides[:, 1]
        areas = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), TINY)
        area = np.maximum((box[2] - box[0]) * (box[3] - box[1]), TINY)
        return inter / ((areas + area).astype(boxes.dtype) - inter)
