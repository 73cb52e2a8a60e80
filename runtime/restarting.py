"""Predictors that remember frames, told that the next one does not follow on the last."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Restarts(Protocol):
    """A predictor that remembers something from frame to frame."""

    def restart(self, reason: str = "asked") -> None: ...


def restart(predictor: object, reason: str) -> None:
    """Let a predictor begin anew with the next frame that it is given, where it remembers any.

    Args:
        predictor: any, or what stands for one.
        reason: for counters and logs, such as "reconnect".
    """
    if isinstance(predictor, Restarts):
        predictor.restart(reason)
