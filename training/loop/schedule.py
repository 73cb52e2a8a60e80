"""Learning rate over the run: linear warm-up, then a cosine."""

from __future__ import annotations

import math


def lr_factor(step: int, *, steps: int, warm_up: int, final: float) -> float:
    """Factor on the peak learning rate at a step (SGDR, arXiv:1608.03983, without restarts).

    Args:
        step: 0-based. steps: of the whole run. warm_up: steps of linear growth.
        final: factor at the end.
    """
    if step < warm_up:
        return (step + 1) / warm_up
    progress = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
