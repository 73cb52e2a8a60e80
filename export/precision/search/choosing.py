"""Which groups go back to float: the most sensitive ones, as few as the budget allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from export.precision.search.grouping import Group
from export.precision.search.progress import TimeUp

_ROUNDING = 1e-9

Scores = dict[str, float]


@dataclass(kw_only=True)
class Choice:
    """What a search found.

    Attributes:
        floats: groups that stay float; all, where nothing better was found.
        order: groups by falling sensitivity for each multiply-add; empty where time was up before.
        errors: sensitivity of each group, as far as it was measured.
        trials: for each number of groups in float that was scored, the scores.
        is_complete: False where time was up before the search was done.
    """

    floats: tuple[str, ...]
    order: tuple[str, ...] = ()
    errors: dict[str, float] = field(default_factory=dict)
    trials: dict[int, Scores] = field(default_factory=dict)
    is_complete: bool = False

    @property
    def scores(self) -> Scores:
        """Of the choice, on the frames of the search; empty where time was up before."""
        return self.trials.get(len(self.floats), {})


def find_drop(reference: Scores, scores: Scores) -> float:
    """How far scores lie below others: the largest fall of any; infinite where one is missing."""
    return max((value - scores.get(name, -math.inf) for name, value in reference.items()))


def choose(
    groups: Sequence[Group],
    budget: float,
    *,
    score: Callable[[Sequence[str]], Scores],
    error: Callable[[str], float],
) -> Choice:
    """Find the fewest groups that have to be float, most sensitive first.

    The number is bisected: with one group less of those that were tried, the budget is exceeded.
    Where time is up, the best that was measured is taken.

    Args:
        groups: that may be int8.
        budget: how far scores may fall below those of float, 0..1.
        score: gives the scores with some groups in float.
        error: gives a group's sensitivity.
    """
    everything = tuple(group.name for group in groups)
    choice = Choice(floats=everything)
    try:
        reference = choice.trials[len(groups)] = score(everything)
        choice.trials[0] = score(())
        if find_drop(reference, choice.trials[0]) <= budget + _ROUNDING:
            choice.floats = ()
        for group in groups:
            choice.errors[group.name] = error(group.name)
        choice.order = sort_groups(groups, choice.errors)
        low, high = 0, len(groups) if choice.floats else 0  # `low` exceeds the budget
        while high - low > 1:
            middle = (low + high) // 2
            choice.trials[middle] = score(choice.order[:middle])
            if find_drop(reference, choice.trials[middle]) <= budget + _ROUNDING:
                high, choice.floats = middle, choice.order[:middle]
            else:
                low = middle
        choice.is_complete = True
    except TimeUp:
        pass
    return choice


def sort_groups(groups: Sequence[Group], errors: dict[str, float]) -> tuple[str, ...]:
    """Names by falling error for each multiply-add that float would cost."""

    def rank(group: Group) -> float:
        return errors[group.name] / max(1, group.macs)

    return tuple(group.name for group in sorted(groups, key=rank, reverse=True))
