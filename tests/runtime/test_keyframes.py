"""The choice of key frames, without a network and without a clock."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
from pipeline_fakes import BOOK, CAR, NO_CLIPS

from runtime.contract.outputs import KEY, NONKEY
from runtime.keyframes import (
    LONGEST,
    THUMBNAIL_HW,
    KeyframeOptions,
    KeyframeScheduler,
    Sight,
    picture_difference,
    thumbnail_of,
)

FPS = 25.0
HD = (720, 1280)
SIDES = ((48, 64), (384, 640), (550, 550), (17, 33), (1, 1))


def scheduler(**options):
    options.setdefault("max_key_age_ms", math.inf)
    return KeyframeScheduler(KeyframeOptions(**options))


def play(chooser, positions, *, lag=0, fps=FPS, times_ms=None, first=0, still=0.0):
    """Run frames whose picture stands at `positions` pixels; results come `lag` frames late.

    Args:
        still: what the model says of no motion.

    Returns:
        The choices, and how far each frame had moved from its key frame.
    """
    choices, moved, under_way = [], [], deque()
    at_key = 0.0
    for index, position in enumerate(positions, first):
        choice = chooser.choose(Sight(index / fps, HD))
        at_key = position if choice.is_key else at_key
        choices.append(choice)
        moved.append(abs(position - at_key))
        under_way.append((choice, None if choice.is_key else still + moved[-1]))
        while len(under_way) > lag:
            done, change = under_way.popleft()
            compute_ms = None if times_ms is None else times_ms[done.graph]
            chooser.learn(done, change_px=change, compute_ms=compute_ms)
    return choices, moved


def keys_of(choices):
    return [place for place, choice in enumerate(choices) if choice.is_key]


@pytest.mark.parametrize("interval", [1, 2, 5, 7])
@pytest.mark.parametrize("lag", [0, 1, 2])
def test_fixed_schedule_has_a_key_frame_at_every_interval(interval, lag):
    chooser = scheduler(schedule="fixed", key_interval=interval)
    choices, _ = play(chooser, np.arange(50) * 100.0, lag=lag)
    assert keys_of(choices) == list(range(0, 50, interval))
    assert [choice.distance for choice in choices] == [index % interval for index in range(50)]


def test_schedule_of_key_frames_alone_has_no_others():
    choices, _ = play(scheduler(schedule="key"), np.zeros(9))
    assert all(choice.is_key for choice in choices)


def test_adaptive_schedule_lets_a_still_picture_be():
    choices, _ = play(scheduler(key_interval=5), np.zeros(50))
    assert keys_of(choices) == list(range(0, 50, 5 * LONGEST))
    assert choices[-10].reason == "interval"


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("speed", [0.3, 0.9, 1.5])
def test_adaptive_schedule_keeps_a_steady_motion_within_the_limit(speed, lag):
    chooser = scheduler(key_interval=10, max_change_px=4.0)
    choices, moved = play(chooser, np.arange(200) * speed, lag=lag)
    first_told = lag + 1  # frames after a key frame of which nothing is known when they are chosen
    known = keys_of(choices)[1]  # by then it is known what the model says of no motion
    assert max(moved[known:]) <= max(4.0, first_told * speed)
    spacing = np.diff(keys_of(choices))[1:]
    farthest = max(math.floor(4.0 / speed + 1e-9), first_told)
    assert set(spacing) == {farthest + 1}  # not one frame too early either
    assert {choice.reason for choice in choices} == {"first", "", "change"}


@pytest.mark.parametrize("still", [0.0, 1.3, 2.5])
def test_adaptive_schedule_leaves_out_what_a_model_says_of_no_motion(still):
    chooser = scheduler(key_interval=10, max_change_px=2.0)
    positions = np.concatenate([np.zeros(60), np.arange(60) * 0.5])
    choices, moved = play(chooser, positions, lag=1, still=still)
    assert keys_of(choices)[:2] == [0, 40]
    assert max(moved) <= 2.0
    assert set(np.diff(keys_of(choices))[2:]) == {5}


def test_adaptive_schedule_meets_a_motion_that_is_too_fast_from_the_start():
    choices, _ = play(scheduler(max_change_px=4.0), np.arange(40) * 9.0)
    assert keys_of(choices) == [0, *range(3, 40, 2)]  # one look more until no motion is known


def test_adaptive_schedule_sees_a_motion_that_grows():
    chooser = scheduler(key_interval=10, max_change_px=4.0)
    choices, moved = play(chooser, 0.1 * np.arange(12.0) ** 2, lag=1)
    assert choices[keys_of(choices)[1]].reason == "change"
    assert max(moved[: keys_of(choices)[1]]) <= 4.0


def test_adaptive_schedule_has_fewer_key_frames_than_fixed_and_moves_no_farther():
    still_and_moving = np.cumsum(np.repeat([0.0, 1.2, 0.0, 2.0, 0.1, 0.0], 40))
    fixed, moved_fixed = play(scheduler(schedule="fixed"), still_and_moving, lag=1)
    adaptive, moved_adaptive = play(scheduler(max_change_px=4.0), still_and_moving, lag=1)
    assert len(keys_of(adaptive)) < 0.8 * len(keys_of(fixed))
    assert np.mean(moved_adaptive) < np.mean(moved_fixed)


def test_adaptive_schedule_of_a_model_that_tells_no_change_is_fixed():
    chooser = scheduler(key_interval=4)
    choices = []
    for index in range(20):
        choices.append(chooser.choose(Sight(index / FPS, HD)))
        chooser.learn(choices[-1])
    assert keys_of(choices) == list(range(0, 20, 4))


@pytest.mark.parametrize("change", [math.nan, math.inf], ids=str)
def test_change_that_is_no_number_brings_a_key_frame(change):
    chooser = scheduler()
    play(chooser, [0.0])
    chooser.learn(chooser.choose(Sight(1 / FPS, HD)), change_px=change)
    assert chooser.choose(Sight(2 / FPS, HD)).reason == "change"


def test_change_from_an_older_key_frame_is_not_held_against_the_new_one():
    chooser = scheduler(max_change_px=4.0)
    play(chooser, [0.0])
    late = chooser.choose(Sight(1 / FPS, HD))
    chooser.restart("asked")
    assert chooser.choose(Sight(2 / FPS, HD)).is_key
    chooser.learn(late, change_px=99.0)
    assert not chooser.choose(Sight(3 / FPS, HD)).is_key


@pytest.mark.parametrize(("fps", "spacing"), [(30.0, 16), (10.0, 6), (4.0, 3), (1.0, 1)])
def test_key_frame_grows_no_older_than_its_limit(fps, spacing):
    chooser = scheduler(key_interval=20, max_key_age_ms=510.0)
    choices, _ = play(chooser, np.zeros(60), fps=fps)
    assert set(np.diff(keys_of(choices))) == {spacing}
    assert choices[spacing].reason == "age"


SIGHTS = {
    "size": (Sight(2 / FPS, (1080, 1920)), "size"),
    "seek back": (Sight(0.5 / FPS, HD), "seek"),
    "seek forward": (Sight(60.0, HD), "age"),
    "drops": (Sight(2 / FPS, HD, num_dropped=6), "drops"),
    "few drops": (Sight(2 / FPS, HD, num_dropped=5), ""),
    "nothing": (Sight(2 / FPS, HD), ""),
}


@pytest.mark.parametrize(("sight", "reason"), SIGHTS.values(), ids=SIGHTS)
def test_frame_that_does_not_follow_brings_a_key_frame(sight, reason):
    chooser = scheduler(max_key_age_ms=1000.0)
    play(chooser, [0.0, 0.0])
    assert chooser.choose(sight).reason == reason


def test_restart_makes_the_next_frame_a_key_frame_and_only_that():
    chooser = scheduler()
    play(chooser, np.zeros(3))
    chooser.restart("reconnect")
    choices, _ = play(chooser, np.zeros(3), first=3)
    assert [choice.reason for choice in choices] == ["reconnect", "", ""]


# --- cuts


def scene(seed, height=96, width=160):
    """A smooth picture, other for every seed."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (7, 11, 3)).astype(np.float32)
    rows, columns = np.linspace(0, 5.99, height), np.linspace(0, 9.99, width)
    top, left = rows.astype(int), columns.astype(int)
    down, right = (rows - top)[:, None, None], (columns - left)[None, :, None]
    upper = coarse[top][:, left] * (1 - right) + coarse[top][:, left + 1] * right
    lower = coarse[top + 1][:, left] * (1 - right) + coarse[top + 1][:, left + 1] * right
    return (upper * (1 - down) + lower * down).astype(np.uint8)


def look(chooser, pictures, first=0):
    return [
        chooser.choose(Sight((first + index) / FPS, HD, thumbnail_of(picture))).reason
        for index, picture in enumerate(pictures)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_cut_brings_a_key_frame_at_once(seed):
    chooser = scheduler(key_interval=100)
    reasons = look(chooser, [scene(seed)] * 3 + [scene(seed + 50)] * 3)
    assert reasons == ["first", "", "", "cut", "", ""]


def test_cut_within_a_moving_shot_is_seen():
    wide = [scene(seed, width=400) for seed in (1, 2)]
    shots = [[shot[:, 4 * n : 4 * n + 160] for n in range(20)] for shot in wide]
    reasons = look(scheduler(key_interval=100), [*shots[0], *shots[1]])
    assert [place for place, reason in enumerate(reasons) if reason == "cut"] == [20]


def _noisy(index):
    random = np.random.default_rng(index)
    return np.clip(scene(1) + random.normal(0, 12, (96, 160, 3)), 0, 255).astype(np.uint8)


CALM = {
    "noise": [_noisy(index) for index in range(12)],
    "noise in the dark": [(_noisy(index) // 16) for index in range(12)],
    "exposure": [np.clip(scene(1) * gain, 0, 255).astype(np.uint8) for gain in (1, 0.9, 1, 0.85)],
    "fast pan": [scene(1, width=600)[:, 12 * n : 12 * n + 160] for n in range(30)],
    "black": [np.zeros((96, 160, 3), np.uint8)] * 3,
}


@pytest.mark.parametrize("pictures", CALM.values(), ids=CALM)
def test_what_is_no_cut_is_not_taken_for_one(pictures):
    assert "cut" not in look(scheduler(key_interval=100), pictures)


@pytest.mark.skipif(not CAR.exists(), reason=NO_CLIPS)
def test_cuts_between_real_clips_are_found_and_no_others():
    import cv2

    pictures, num_each = [], 20
    for clip in (CAR, BOOK, CAR):
        capture = cv2.VideoCapture(str(clip))
        pictures += [capture.read()[1] for _ in range(num_each)]
    reasons = look(scheduler(key_interval=1000), pictures)
    assert [place for place, reason in enumerate(reasons) if reason == "cut"] == [20, 40]


@pytest.mark.parametrize("hw", SIDES, ids=str)
def test_thumbnail_is_the_mean_of_each_part_whatever_the_size(hw):
    picture = np.zeros((*hw, 3), np.uint8)
    picture[..., 1] = 77
    thumbnail = thumbnail_of(picture)
    assert thumbnail.shape == THUMBNAIL_HW
    assert (thumbnail == 77).all()


def test_thumbnail_shows_what_is_where():
    picture = np.zeros((360, 640, 3), np.uint8)
    picture[:180, 320:] = 200
    thumbnail = thumbnail_of(picture)
    assert (thumbnail[:9, 16:] == 200).all()
    assert thumbnail.sum() == 9 * 16 * 200


def test_difference_of_unrelated_pictures_is_what_theory_says():
    random = np.random.default_rng(0)
    one, other = random.normal(128, 40, (2, 300, 300)).astype(np.float32)
    assert picture_difference(one, other) == pytest.approx(2 / math.sqrt(math.pi), rel=0.01)
    assert picture_difference(one, one) == 0


# --- gain


def graphs_of(choices):
    return [choice.graph for choice in choices]


def test_frames_between_that_do_not_pay_are_given_up_and_tried_again():
    chooser = scheduler(schedule="fixed", key_interval=2)
    choices, _ = play(chooser, np.zeros(400), times_ms={KEY: 10.0, NONKEY: 9.5})
    tried = [place for place, graph in enumerate(graphs_of(choices)) if graph == NONKEY]
    gaps = np.diff(tried)
    assert tried[:11] == list(range(1, 23, 2))
    assert choices[23].reason == "no gain"
    assert gaps[gaps > 2].tolist() == [101, 201]  # rests of 100 and 200 key frames


def test_frames_between_that_come_to_pay_are_kept():
    chooser = scheduler(schedule="fixed", key_interval=2)
    play(chooser, np.zeros(90), times_ms={KEY: 10.0, NONKEY: 12.0})
    choices, _ = play(chooser, np.zeros(300), times_ms={KEY: 10.0, NONKEY: 5.0}, first=90)
    assert graphs_of(choices[-100:]).count(NONKEY) == 50


def test_frames_between_that_pay_are_never_given_up():
    chooser = scheduler(schedule="fixed", key_interval=5)
    choices, _ = play(chooser, np.zeros(500), times_ms={KEY: 10.0, NONKEY: 8.9})
    assert graphs_of(choices).count(NONKEY) == 400


def test_gain_is_judged_by_medians():
    chooser = scheduler(schedule="fixed", key_interval=2)
    random = np.random.default_rng(0)
    for index in range(300):
        choice = chooser.choose(Sight(index / FPS, HD))
        slow = 500.0 if random.random() < 0.1 else 0.0
        chooser.learn(choice, compute_ms=slow + (10.0 if choice.is_key else 5.0))
        assert choice.is_key == (index % 2 == 0)


def test_gain_need_not_be_asked():
    chooser = scheduler(schedule="fixed", key_interval=2, worst_share=math.inf)
    choices, _ = play(chooser, np.zeros(100), times_ms={KEY: 10.0, NONKEY: 50.0})
    assert keys_of(choices) == list(range(0, 100, 2))


# --- the whole


@pytest.mark.parametrize("seed", range(20))
def test_no_frame_leans_on_a_key_frame_it_must_not(seed):
    """Random cameras: jumps, drops, sizes and restarts, judged by a plain list of what happened."""
    random = np.random.default_rng(seed)
    options = KeyframeOptions(
        schedule=("adaptive", "fixed")[seed % 2],
        key_interval=int(random.integers(1, 8)),
        max_key_age_ms=float(random.integers(100, 900)),
    )
    chooser = KeyframeScheduler(options)
    longest = options.key_interval * (LONGEST if seed % 2 == 0 else 1)
    time_s, size_hw, since, at_key = 0.0, HD, 0, 0.0
    for _ in range(200):
        event = random.choice(["none", "back", "size", "drops", "restart"], p=[0.8] + [0.05] * 4)
        time_s += float(random.uniform(0.01, 0.2)) * (-1 if event == "back" else 1)
        size_hw = (size_hw[1], size_hw[0]) if event == "size" else size_hw
        if event == "restart":
            chooser.restart("asked")
        dropped = 9 if event == "drops" else 0
        choice = chooser.choose(Sight(time_s, size_hw, num_dropped=dropped))
        if choice.is_key:
            since, at_key = 0, time_s
        else:
            since += 1
            assert event == "none"
            assert since == choice.distance < longest
            assert (time_s - at_key) * 1e3 <= options.max_key_age_ms
            chooser.learn(choice, change_px=0.1)


def test_summary_counts_frames_and_reasons_and_gives_medians():
    chooser = scheduler(schedule="fixed", key_interval=2)
    play(chooser, np.zeros(20), times_ms={KEY: 10.0, NONKEY: 4.0})
    chooser.restart("seek")
    play(chooser, np.zeros(2), first=20)
    summary = chooser.summary()
    assert (summary.num_key, summary.num_nonkey) == (11, 11)
    assert summary.reasons == {"interval": 9, "first": 1, "seek": 1}
    assert (summary.key_ms, summary.nonkey_ms) == (10.0, 4.0)
    assert str(summary) == (
        "11 key frames (50 %: interval 9, first 1, seek 1), 10.00 ms; 11 between, 4.00 ms"
    )


def test_summary_of_nothing_says_nothing_of_times():
    assert str(scheduler().summary()) == "0 key frames (0 %: none); 0 between"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "adaptiv"}, "expected adaptive, fixed, key; did you mean 'adaptive'"),
        ({"key_interval": 0}, "key_interval is 0; expected 1 frame or more"),
        ({"max_key_age_ms": 0.0}, "max_key_age_ms is 0.0; expected a number above 0"),
        ({"max_key_age_ms": math.nan}, "max_key_age_ms is nan"),
        ({"max_change_px": -1.0}, "max_change_px is -1.0"),
        ({"worst_share": 0}, "worst_share is 0"),
        ({"max_dropped": -1}, "max_dropped is -1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        KeyframeOptions(**options)
