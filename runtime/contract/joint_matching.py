"""Joints of two results of one object, held against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOLD = 0.1  # a joint of less confidence in the reference may lie anywhere: it is not compared
OTHER_SIGMA = 0.05  # of joints whose constants are not known
CROP_SHARE = 0.5  # of a crop's area that its person takes


def joint_distances(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.float64]:
    """How far the joints that the reference is sure of lie apart.

    Args:
        ours, theirs: (J, 3) as (x, y, confidence), ours the reference's.

    Returns:
        (n,) pixels; infinite where a joint is no finite number.
    """
    gaps = np.linalg.norm(ours[:, :2].astype(np.float64) - theirs[:, :2], axis=1)
    gaps = np.where(np.isfinite(gaps) & np.isfinite(theirs[:, 2]), gaps, np.inf)
    return np.asarray(gaps[_is_told(ours)], np.float64)


def similarity(
    ours: NDArray[Any], theirs: NDArray[Any], area: float, sigmas: Sequence[float] = ()
) -> float:
    """COCO's object keypoint similarity of two results, over the joints that are compared.

    Args:
        ours, theirs: as of `joint_distances`.
        area: of the object, square pixels.
        sigmas: J constants; empty takes 0.05 for each.

    Returns:
        0..1; 1 where no joint is compared.
    """
    constants = np.asarray(sigmas or [OTHER_SIGMA] * len(ours), np.float64)[_is_told(ours)]
    gaps = joint_distances(ours, theirs)
    likeness = np.exp(-(gaps**2) / (2 * (2 * constants) ** 2 * max(area, 1.0)))
    return float(likeness.mean()) if len(likeness) else 1.0


def _is_told(ours: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(~(ours[:, 2] < TOLD))  # NaN of the reference is told, and differs
