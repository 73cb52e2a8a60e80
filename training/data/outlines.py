"""Outlines of objects to masks, exactly as COCO's own tools draw them, and masks to run lengths."""

from __future__ import annotations

import cv2
import numpy as np

SCALE = 5  # COCO draws polygons on a grid five times finer than the pixels
MAX_PIXELS = 1 << 28


def rasterise(
    outline: list[np.ndarray] | dict | None,
    box_xyxy: np.ndarray,
    unit: np.ndarray,
    *,
    out: np.ndarray,
) -> None:
    """Draw one object into an empty mask.

    Args:
        outline: (P, 2) polygons as (x, y), an RLE dict, or None for the whole box.
        box_xyxy: (4,) pixels; drawn where there is no outline.
        unit: (2,) pixels per unit of the polygons, as (x, y).
        out: (H, W) uint8, all 0; becomes 0 or 1.
    """
    height, width = out.shape
    if isinstance(outline, dict):
        mask = decode_rle(outline)
        rows, columns = min(height, mask.shape[0]), min(width, mask.shape[1])
        out[:rows, :columns] = mask[:rows, :columns]
    elif outline:
        for polygon in outline:
            draw_polygon(polygon * unit, out)
    else:
        x1, y1, x2, y2 = np.round(box_xyxy).astype(int)
        out[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = 1


def draw_polygon(points_xy: np.ndarray, out: np.ndarray) -> None:
    """Set the pixels inside one polygon to 1 (``rleFrPoly`` of pycocotools, vectorised).

    Args:
        points_xy: (P, 2) as (x, y), pixels; closed by itself.
        out: (H, W) uint8.
    """
    height, width = out.shape
    far = np.array([width, height])
    x, y = _trace(points_xy.clip(-far, 2 * far))  # a stray point must not cost a walk of a mile
    is_step = x[1:] != x[:-1]
    columns = np.where(x[1:] < x[:-1], x[1:], x[1:] - 1)[is_step]
    columns = (columns + 0.5) / SCALE - 0.5
    rows = np.minimum(y[1:], y[:-1])[is_step]
    is_column = (columns == np.floor(columns)) & (columns >= 0) & (columns <= width - 1)
    columns = columns[is_column].astype(np.int64)
    if not len(columns):
        return
    rows = np.ceil(((rows[is_column] + 0.5) / SCALE - 0.5).clip(0, height)).astype(np.int64)
    left, right = int(columns.min()), int(columns.max()) + 1
    # a toggle in row H of a column starts the next one, as in COCO's column-major runs
    toggles = np.bincount((columns - left) * height + rows, minlength=(right - left) * height + 1)
    inside = (np.cumsum(toggles, dtype=np.int32) & 1).astype(np.uint8)
    out[:, left:right] |= inside[:-1].reshape(right - left, height).T


def _trace(points_xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walk the closed polygon on the fine grid, one step along its longer axis at a time."""
    grid = np.trunc(SCALE * points_xy + 0.5).astype(np.int64)  # (P, 2)
    starts, ends = grid, np.roll(grid, -1, axis=0)
    sides = np.abs(ends - starts)
    is_wide = sides[:, 0] >= sides[:, 1]
    is_swapped = np.where(is_wide, starts[:, 0] > ends[:, 0], starts[:, 1] > ends[:, 1])
    low = np.where(is_swapped[:, None], ends, starts)
    high = np.where(is_swapped[:, None], starts, ends)
    long_side = sides.max(axis=1)
    rise = np.where(is_wide, high[:, 1] - low[:, 1], high[:, 0] - low[:, 0])
    slope = rise / np.maximum(long_side, 1)
    counts = long_side + 1
    edge = np.repeat(np.arange(len(grid)), counts)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    step = np.where(is_swapped[edge], long_side[edge] - step, step)
    main = np.where(is_wide, low[:, 0], low[:, 1])[edge] + step
    cross = np.where(is_wide, low[:, 1], low[:, 0])[edge]
    cross = np.trunc(cross + slope[edge] * step + 0.5).astype(np.int64)
    wide = is_wide[edge]
    return np.where(wide, main, cross), np.where(wide, cross, main)


def encode_rle(mask: np.ndarray) -> dict:
    """Write a mask as COCO's run lengths, not compressed; see ``compress_rle``.

    Args:
        mask: (H, W) uint8, 0 or 1.

    Returns:
        ``size`` [H, W] and ``counts``: column-major runs, the first of them of zeros.
    """
    height, width = mask.shape
    left, _, columns, _ = cv2.boundingRect(mask)  # the runs of all other columns are known
    flat = np.zeros(columns * height + 2, np.uint8)
    flat[1:-1] = mask[:, left : left + columns].T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + left * height
    counts = np.diff(edges, prepend=0, append=mask.size)
    return {"size": [height, width], "counts": counts[: None if counts[-1] else -1].tolist()}


def compress_rle(rle: dict) -> dict:
    """The same run lengths with ``counts`` as COCO's compressed string."""
    from faster_coco_eval.core import mask as coco_mask

    compressed = coco_mask.frPyObjects(rle, *rle["size"])
    return {"size": rle["size"], "counts": compressed["counts"].decode("ascii")}


def decode_rle(rle: dict) -> np.ndarray:
    """Decode COCO's run lengths.

    Args:
        rle: ``size`` (H, W) and ``counts``; see ``run_lengths``.

    Returns:
        (H, W) uint8, 0 or 1.
    """
    height, width = (int(side) for side in rle["size"])
    runs = run_lengths(rle)
    values = np.arange(len(runs), dtype=np.int64) & 1
    flat = np.repeat(values.astype(np.uint8), runs)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def run_lengths(rle: dict) -> np.ndarray:
    """Check and unpack the counts of an RLE: column-major runs, the first of them of zeros.

    Args:
        rle: ``size`` (H, W) and ``counts``: numbers, or COCO's compressed string.

    Returns:
        (R,) int64. Runs that do not fill the image exactly are a ValueError.
    """
    height, width = (int(side) for side in rle["size"])
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"run lengths of an image of {width}x{height}")
    counts = rle["counts"]
    if isinstance(counts, str | bytes):
        counts = _uncompress(counts.encode() if isinstance(counts, str) else counts)
    runs = np.asarray(counts, np.int64)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"run lengths sum to {runs.sum()}, expected {height}x{width}")
    return runs


def _uncompress(text: bytes) -> list[int]:
    """COCO's string of run lengths: 5 bits a character, from the third on as differences."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("run lengths end within a number")
    return counts
