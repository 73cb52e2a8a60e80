"""When a live source's next frame is taken: in virtual time, with engines that are simulated."""

from __future__ import annotations

import random

import pytest

from runtime.pipeline.pacing import LEAD_HOST_TIMES, LEAD_S, WINDOW, EnginePace

HOST_S = 0.002


def run(engine_s, *, num_calls=300, skip=2 * WINDOW):
    """The pipeline's loop over a camera that always has a frame.

    Args:
        engine_s: number of the call -> how long the engine takes.
        skip: calls before what is looked at.

    Returns:
        The mean period, and how long each frame waited from its taking to the engine's start.
    """
    pace = EnginePace()
    now, free_at = 0.0, 0.0
    waits, answers = [], []
    pending: list[tuple[float, float]] = []  # submitted, done
    number = 0
    while number < num_calls:
        if pending:
            take_at = pace.take_at(pending[0][0])
            takes = take_at is not None
            now = max(now, take_at) if takes else now
        else:
            takes = True
        if takes:
            taken, now = now, now + HOST_S
            pace.note_submitted(taken, now)
            begins = max(now, free_at)
            waits.append(begins - taken)
            free_at = begins + engine_s(number)
            pending.append((now, free_at))
            number += 1
        if not takes or len(pending) == 2:
            submitted, done = pending.pop(0)
            now = max(now, done)
            pace.note_answered(submitted, now)
            answers.append(now)
    later = answers[skip:]
    return (later[-1] - later[0]) / (len(later) - 1), waits[skip:]


@pytest.mark.parametrize("engine_s", [0.005, 0.02, 0.1])
def test_steady_engine_never_waits_and_frames_hardly_do(engine_s):
    period, waits = run(lambda number: engine_s)
    assert period == pytest.approx(engine_s, rel=1e-6)
    assert max(waits) <= LEAD_HOST_TIMES * HOST_S + LEAD_S + 1e-9


def test_engine_with_a_little_noise_is_foreseen_too():
    noise = random.Random(1)
    period, waits = run(lambda number: 0.02 * (1 + 0.05 * noise.random()))
    assert period < 0.0205 * 1.02
    assert max(waits) < 0.006


def test_frames_of_an_unsteady_engine_are_taken_when_it_is_free():
    """Key frames and others: a frame taken on the guess would age by a whole key frame."""
    period, waits = run(lambda number: 0.1 if number % 5 == 0 else 0.02)
    assert max(waits) == pytest.approx(HOST_S)
    assert period == pytest.approx((0.1 + 4 * 0.02) / 5 + HOST_S, rel=0.05)


def test_nothing_is_foreseen_before_enough_was_seen():
    pace = EnginePace()
    for number in range(WINDOW - 1):
        pace.note_submitted(number, number + 0.001)
        pace.note_answered(number + 0.001, number + 0.5)
    assert pace.take_at(100.0) is None


def test_pace_finds_back_when_the_engine_becomes_faster():
    period, waits = run(lambda number: 0.05 if number < 60 else 0.02, skip=60 + 2 * WINDOW)
    assert period == pytest.approx(0.02)
    assert max(waits) <= LEAD_HOST_TIMES * HOST_S + LEAD_S + 1e-9
