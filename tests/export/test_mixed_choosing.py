"""Choosing groups by what was measured: how few go back to float, and what is kept of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from export.precision.search.choosing import choose, find_drop, sort_groups
from export.precision.search.grouping import Group
from export.precision.search.progress import Progress, SearchState, TimeUp

NAMES = ("a", "b", "c", "d", "e", "f", "g", "h", "i")
GROUPS = [Group(name, (name,), 1000) for name in NAMES]
FLOAT_AP = 0.5


class Network:
    """AP falls by the errors of the groups that are int8; counts what is asked of it."""

    def __init__(self, errors: dict[str, float], calls_left: int | None = None) -> None:
        self.errors = dict.fromkeys(NAMES, 0.0) | errors
        self.scored: list[tuple[str, ...]] = []
        self.calls_left = calls_left

    def _count(self) -> None:
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise TimeUp

    def score(self, floats: Sequence[str]) -> dict[str, float]:
        self._count()
        self.scored.append(tuple(floats))
        lost = sum(error for name, error in self.errors.items() if name not in floats)
        return {"AP": FLOAT_AP - lost}

    def error(self, name: str) -> float:
        self._count()
        return self.errors[name]

    def choose(self, budget: float) -> object:
        return choose(GROUPS, budget, score=self.score, error=self.error)


def test_int8_throughout_is_taken_where_it_is_within_the_budget():
    choice = Network({"c": 0.002, "d": 0.002}).choose(0.005)
    assert choice.floats == ()
    assert choice.is_complete
    assert choice.scores == pytest.approx({"AP": 0.496})


def test_the_one_disastrous_group_goes_back_to_float():
    choice = Network({"f": 0.2, "a": 0.001}).choose(0.005)
    assert choice.floats == ("f",)


@pytest.mark.parametrize("num_bad", range(len(NAMES) + 1))
def test_as_few_groups_as_the_budget_allows_are_float(num_bad):
    network = Network({name: 0.1 + place / 100 for place, name in enumerate(NAMES[:num_bad])})
    choice = network.choose(0.01)
    assert {*choice.floats} == {*NAMES[:num_bad]}
    assert len(network.scored) <= 2 + 4  # bisected, not tried one by one


def test_budget_of_nothing_leaves_everything_float_where_everything_costs():
    choice = Network(dict.fromkeys(NAMES, 0.001)).choose(0.0)
    assert {*choice.floats} == {*NAMES}


def test_group_of_few_multiply_adds_goes_before_one_of_many():
    groups = [Group("large", ("x",), 1000), Group("small", ("y",), 10)]
    assert sort_groups(groups, {"large": 0.02, "small": 0.01}) == ("small", "large")
    assert sort_groups(groups, {"large": 2.0, "small": 0.01}) == ("large", "small")


def test_the_score_that_falls_most_counts():
    assert find_drop({"AP": 0.5, "mask_AP": 0.4}, {"AP": 0.5, "mask_AP": 0.3}) == pytest.approx(0.1)
    assert find_drop({"AP": 0.5}, {"AP": 0.6}) == pytest.approx(-0.1)
    assert find_drop({"AP": 0.5}, {}) == float("inf")


@pytest.mark.parametrize("calls", range(2 + len(NAMES)))
def test_everything_is_float_where_time_is_up_before_any_choice_was_scored(calls):
    choice = Network({"f": 0.2}, calls_left=calls).choose(0.005)
    assert {*choice.floats} == {*NAMES}
    assert not choice.is_complete


def test_best_choice_so_far_is_taken_when_time_is_up():
    calls = 2 + len(NAMES) + 1  # one step of the bisection
    choice = Network({"f": 0.2}, calls_left=calls).choose(0.005)
    assert len(choice.floats) == len(NAMES) // 2
    assert "f" in choice.floats
    assert not choice.is_complete


# ---------------------------------------------------------------------------------- what is kept


KEY = {"network": "n", "frames": 4}


def test_measurements_are_found_again(tmp_path: Path):
    path = tmp_path / "state.json"
    first = SearchState(path, KEY)
    first.put("error a", 0.5)
    first.put("scores", {"AP": 0.25})
    second = SearchState(path, KEY)
    assert second.num_found == 2
    assert "error a" in second
    assert second["scores"] == {"AP": 0.25}
    assert not second.is_other


def test_measurements_of_another_search_are_not_used(tmp_path: Path):
    path = tmp_path / "state.json"
    SearchState(path, KEY).put("error a", 0.5)
    other = SearchState(path, KEY | {"network": "m"})
    assert other.is_other
    assert "error a" not in other
    other.put("error a", 0.25)
    assert json.loads(path.read_text())["measured"] == {"error a": 0.25}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 7, "key": {}}'])
def test_damaged_state_is_begun_anew(text, tmp_path: Path):
    path = tmp_path / "state.json"
    path.write_text(text)
    assert SearchState(path, KEY).is_other


def test_time_is_up_at_a_frame_and_not_before():
    progress = Progress(10, minutes=60)
    progress.advance()
    progress.close()
    late = Progress(10, minutes=0)
    with pytest.raises(TimeUp):
        late.advance()
    late.close()
