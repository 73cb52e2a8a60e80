from __future__ import annotations

import itertools
import logging
import random
import threading
import time

import pytest
from fake_camera import LONG_S, FakeCamera, read_frame, wait_for
from pipeline_fakes import number_of

from runtime.contract.errors import SourceError
from runtime.pipeline.sources import link, reconnecting
from runtime.pipeline.sources.base import NoFrameYet, SourceState
from runtime.pipeline.sources.connection import Picture
from runtime.pipeline.sources.http_video import HttpSource
from runtime.pipeline.sources.link import Mailbox, pauses_s
from runtime.pipeline.sources.live_options import LiveOptions
from runtime.pipeline.sources.reconnecting import ReconnectingSource, joining_later
from runtime.pipeline.sources.rtsp import RtspSource

QUICK = LiveOptions(open_timeout_s=0.3, stall_timeout_s=0.3)
PATIENT = LiveOptions(open_timeout_s=LONG_S, stall_timeout_s=LONG_S)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(reconnecting, "LONGEST_WAIT_S", 0.2)
    monkeypatch.setattr(reconnecting, "GRACE_S", 0.1)
    monkeypatch.setattr(reconnecting, "CLOSE_WAIT_S", 0.2)


@pytest.fixture
def camera():
    camera = FakeCamera()
    yield camera
    camera.let_go.set()
    wait_for(lambda: camera.num_open == 0)  # whatever was opened is closed in the end


@pytest.fixture
def open_it(camera):
    """Opens the camera, whose first picture has number 0."""
    opened = []

    def open_it(options=PATIENT, **more):
        camera.show(0)
        source = ReconnectingSource("fake", camera.connect, options, **more)
        opened.append(source)
        source.states = []
        source.on_state = lambda _, state, reason: source.states.append((state.value, reason))
        return source

    yield open_it
    camera.let_go.set()
    for source in opened:
        source.close()


def test_source_gives_each_picture_once_in_the_order_of_capture(camera, open_it):
    source = open_it()
    frames = []
    for number in range(5):
        if number:
            camera.show(number)
        frames.append(read_frame(source))
    assert [number_of(frame.image_bgr) for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    times = [frame.time_s for frame in frames]
    assert times[0] == 0.0
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    with pytest.raises(NoFrameYet):
        source.read()
    assert (source.num_decoded, source.num_overtaken, source.fps) == (5, 0, 25.0)
    assert (source.size_wh, source.is_live, source.state) == ((64, 48), True, SourceState.RUNNING)


def test_first_picture_grown_old_before_the_first_read_is_not_given(camera, open_it):
    source = open_it()
    camera.show(1, 2)
    wait_for(lambda: source._link.mail.num_overtaken == 1)
    frames = [read_frame(source)]
    camera.show(3)
    frames.append(read_frame(source))
    assert [(number_of(frame.image_bgr), frame.index) for frame in frames] == [(2, 2), (3, 3)]
    assert (source.num_decoded, source.num_overtaken) == (2, 2)


def test_slow_reader_gets_the_newest_picture_and_the_others_are_counted(camera, open_it):
    source = open_it()
    read_frame(source)
    camera.show(1, 2, 3, 4)
    wait_for(lambda: source._link.mail.num_overtaken == 3)
    frame = read_frame(source)
    assert number_of(frame.image_bgr) == 4
    assert (frame.index, source.num_decoded, source.num_overtaken) == (4, 2, 3)


def test_lost_camera_comes_back_with_rising_indices_and_says_so(camera, open_it, caplog):
    caplog.set_level(logging.INFO)
    source = open_it()
    frames = [read_frame(source)]
    camera.is_there = False
    camera.show("lost")
    with pytest.raises(NoFrameYet):
        source.read()
    assert source.state is SourceState.RECONNECTING
    wait_for(lambda: camera.num_calls >= 3)
    camera.is_there = True
    camera.show((1, (32, 24)))
    frames.append(read_frame(source))
    assert [frame.index for frame in frames] == [0, 1]
    assert frames[1].image_bgr.shape == (24, 32, 3)
    assert source.num_reconnects == 1
    assert [state for state, _ in source.states] == ["reconnecting", "running"]
    assert source.states[0][1] == "the cable was pulled"
    assert source.states[1][1].startswith("after ")
    assert "fake: reconnecting (the cable was pulled)" in caplog.text
    assert "fake: pictures are 32x24 now" in caplog.text


def test_camera_lost_again_and_again_leaves_no_thread_and_no_connection(camera, open_it):
    source = open_it()
    read_frame(source)
    before = threading.active_count()
    for number in range(1, 7):
        camera.show("lost", number)
        assert number_of(read_frame(source).image_bgr) == number
        assert threading.active_count() == before
        assert camera.num_open == 1
    assert source.num_reconnects == 6


def test_states_are_told_on_the_readers_thread(camera, open_it):
    source = open_it()
    read_frame(source)
    threads = []
    source.on_state = lambda *_: threads.append(threading.current_thread())
    camera.show("lost", 1)
    read_frame(source)
    assert threads == [threading.current_thread()] * 2


def test_camera_that_is_quiet_is_stalled_and_runs_again_without_a_new_connection(camera, open_it):
    source = open_it()
    read_frame(source)
    while source.state is not SourceState.STALLED:
        with pytest.raises(NoFrameYet):
            source.read()
    camera.show(1)
    assert number_of(read_frame(source).image_bgr) == 1
    assert [state for state, _ in source.states] == ["stalled", "running"]
    assert (camera.num_opened, source.num_reconnects) == (1, 0)


def test_camera_that_is_quiet_for_too_long_is_opened_anew(camera, open_it):
    source = open_it(QUICK)
    read_frame(source)
    wait_for(lambda: camera.num_opened >= 2)
    camera.show(1)
    assert number_of(read_frame(source).image_bgr) == 1
    assert source.num_reconnects == 1
    assert camera.num_open == 1


def test_call_that_hangs_is_left_behind_and_what_it_gives_later_is_not_used(camera, open_it):
    source = open_it(QUICK)
    read_frame(source)
    camera.show("hang")
    while camera.num_opened < 2:
        with pytest.raises(NoFrameYet):
            source.read()
    camera.show(1)
    frames = [read_frame(source)]
    assert "no answer" in dict(source.states)["reconnecting"]
    camera.let_go.set()  # the driver returns, with picture 999
    wait_for(lambda: camera.num_open == 1)
    camera.show(2)
    frames.append(read_frame(source))
    assert [(number_of(frame.image_bgr), frame.index) for frame in frames] == [(1, 1), (2, 2)]


def test_device_that_hangs_is_not_opened_again_before_it_answers(camera, open_it):
    source = open_it(QUICK, most_hung=0)
    read_frame(source)
    camera.show("hang")
    while source.state is not SourceState.RECONNECTING:
        with pytest.raises(NoFrameYet):
            source.read()
    with pytest.raises(NoFrameYet):
        source.read()
    assert camera.num_opened == 1
    camera.let_go.set()
    camera.show(1)
    assert number_of(read_frame(source).image_bgr) == 1
    assert camera.num_opened >= 2


def test_threads_left_behind_in_a_driver_are_few(camera, open_it):
    source = open_it(QUICK, most_hung=2)
    read_frame(source)
    camera.opening_hangs = True
    camera.show("lost")
    before = threading.active_count()
    while len(source._hung) < 3:
        with pytest.raises(NoFrameYet):
            source.read()
    with pytest.raises(NoFrameYet):
        source.read()
    assert (
        threading.active_count() == before + 2
    )  # three, and the one that was there is one of them
    camera.opening_hangs = False
    camera.let_go.set()
    camera.show(1)
    assert number_of(read_frame(source).image_bgr) == 1
    wait_for(lambda: threading.active_count() == before)


@pytest.mark.parametrize("where", ["reading", "opening"])
def test_closing_does_not_wait_for_a_driver_that_hangs(camera, open_it, where):
    source = open_it()
    read_frame(source)
    camera.opening_hangs = where == "opening"
    camera.show("hang" if where == "reading" else "lost")
    wait_for(lambda: camera.num_calls == 2 if where == "opening" else camera.wishes.empty())
    begun = time.monotonic()
    source.close()
    assert time.monotonic() - begun < LONG_S / 2
    assert source.read() is None


def test_closing_lets_go_of_the_camera_and_twice_is_harmless(camera, open_it):
    source = open_it()
    source.close()
    source.close()
    assert camera.num_open == 0
    source = open_it()
    source.close()
    assert [number_of(frame.image_bgr) for frame in source] == [0]  # read when it was opened


# --- at the start


def test_source_that_is_not_there_is_an_error_at_once(camera, open_it):
    camera.is_there = False
    with pytest.raises(SourceError, match="cannot be opened: nobody is there. Look.") as error:
        open_it(advice="Look.")
    assert "\n" not in str(error.value)
    assert camera.num_calls == 1


@pytest.mark.parametrize("what", ["gives no picture", "hangs"])
def test_source_that_stays_dark_is_an_error_in_its_time(camera, what):
    camera.opening_hangs = what == "hangs"
    with pytest.raises(SourceError, match="cannot be opened: no"):
        ReconnectingSource("fake", camera.connect, QUICK)


def test_source_is_waited_for_when_asked(camera, open_it, caplog):
    caplog.set_level(logging.INFO)
    camera.is_there = False
    threading.Thread(
        target=lambda: (
            wait_for(lambda: camera.num_calls >= 3),
            setattr(camera, "is_there", True),
        )
    ).start()
    source = open_it(LiveOptions(wait_s=LONG_S))
    assert number_of(read_frame(source).image_bgr) == 0
    assert source.num_reconnects == 0  # it was not lost, it came late
    assert caplog.text.count("waiting for it (nobody is there)") == 1


def test_source_is_waited_for_no_longer_than_asked(camera, open_it):
    camera.is_there = False
    with pytest.raises(SourceError, match=r"did not come in 0\.2 s: nobody is there"):
        open_it(LiveOptions(wait_s=0.2))


def test_source_with_company_joins_when_it_comes(camera, open_it, caplog):
    caplog.set_level(logging.INFO)
    camera.is_there = False
    with joining_later():
        source = open_it(LiveOptions(wait_s=LONG_S))
    assert source.state is SourceState.RECONNECTING
    assert source.size_wh == (0, 0)
    with pytest.raises(NoFrameYet):
        source.read()
    camera.is_there = True
    assert number_of(read_frame(source).image_bgr) == 0
    assert source.state is SourceState.RUNNING
    assert source.size_wh == (64, 48)
    assert source.num_reconnects == 1
    assert caplog.text.count("reconnecting (nobody is there; it joins the others when it") == 1


def test_source_with_company_that_hangs_holds_nobody_up(camera, open_it, monkeypatch):
    monkeypatch.setattr(reconnecting, "HOLDS_UP_S", 0.1)
    camera.opening_hangs = True
    with joining_later():
        source = open_it(LiveOptions(wait_s=LONG_S, open_timeout_s=LONG_S))
    assert source.state is SourceState.RECONNECTING
    camera.let_go.set()
    assert number_of(read_frame(source).image_bgr) == 0


def test_source_with_company_fails_once_it_was_waited_for(camera, open_it):
    camera.is_there = False
    with joining_later():
        source = open_it(LiveOptions(wait_s=0.3))
    with pytest.raises(SourceError, match=r"did not come in 0\.3 s: nobody is there"):
        read_frame(source)
    assert source.state is SourceState.FAILED


def test_source_with_company_that_is_not_to_be_waited_for_is_an_error_at_once(camera, open_it):
    camera.is_there = False
    with joining_later(), pytest.raises(SourceError, match="cannot be opened: nobody is there"):
        open_it()


# --- the end


def test_source_that_shall_not_reconnect_ends_with_its_loss(camera, open_it):
    source = open_it(LiveOptions(reconnects=False))
    read_frame(source)
    camera.show("lost")
    with pytest.raises(SourceError, match="lost after 1 frames: the cable was pulled"):
        read_frame(source)
    assert source.state is SourceState.FAILED
    assert source.read() is None


def test_loss_on_the_way_comes_with_advice_of_its_own(camera, open_it):
    source = open_it(
        LiveOptions(reconnects=False), advice="Wait for it.", advice_when_lost="Look at it."
    )
    read_frame(source)
    camera.show("lost")
    with pytest.raises(SourceError, match=r"the cable was pulled\. Look at it\.$"):
        read_frame(source)


@pytest.mark.parametrize("open_source", [RtspSource, HttpSource])
def test_network_source_that_is_lost_is_not_told_to_be_waited_for(open_source, monkeypatch):
    given = {}
    monkeypatch.setattr(
        ReconnectingSource, "__init__", lambda self, *_, **options: given.update(options)
    )
    open_source("127.0.0.1/live")
    assert "#wait=60" in given["advice"]
    assert "wait" not in given["advice_when_lost"]


def test_bug_in_a_connection_is_raised_to_the_reader(camera, open_it):
    source = open_it()
    read_frame(source)
    camera.show("bug")
    with pytest.raises(RuntimeError, match="a bug of ours"):
        list(source)
    assert source.state is SourceState.FAILED
    assert source.read() is None


def test_video_with_an_end_gives_every_frame_of_it():
    film = FakeCamera(has_end=True)
    film.show(*range(20), "end")
    with ReconnectingSource("film", film.connect, PATIENT) as source:
        assert not source.is_live
        wait_for(lambda: len(source._link.mail._news) == 3)  # it does not run ahead
        frames = list(source)
        assert source.state is SourceState.ENDED
    assert [number_of(frame.image_bgr) for frame in frames] == list(range(20))
    assert [frame.time_s for frame in frames] == pytest.approx([n / 25.0 for n in range(20)])
    assert (source.num_overtaken, film.num_opened) == (0, 1)


def test_video_waits_for_a_reader_that_takes_its_time():
    film = FakeCamera(has_end=True)
    film.show(*range(8))
    with ReconnectingSource("film", film.connect, QUICK) as source:
        found = [number_of(source.read().image_bgr)]
        time.sleep(3 * QUICK.stall_timeout_s)
        for _ in range(7):
            found.append(number_of(read_frame(source).image_bgr))
    assert found == list(range(8))
    assert film.num_opened == 1


def test_video_that_breaks_off_is_an_error_and_does_not_start_again():
    film = FakeCamera(has_end=True)
    film.show(0, 1, "lost")
    with (
        ReconnectingSource("film", film.connect, PATIENT) as source,
        pytest.raises(SourceError, match="lost after 2 frames"),
    ):
        list(source)
    assert film.num_opened == 1


def test_last_picture_before_a_loss_is_not_given_if_it_may_be_cut_off(camera, open_it, monkeypatch):
    monkeypatch.setattr(link, "DOUBT_S", 1.0)
    source = open_it()
    read_frame(source)
    camera.show("cut 1", "cut 2", "lost", 3)
    found = [number_of(read_frame(source).image_bgr)]
    while found[-1] != 3:
        found.append(number_of(read_frame(source).image_bgr))
    assert 2 not in found
    assert source.num_corrupt == 1
    monkeypatch.setattr(link, "DOUBT_S", 0.002)
    camera.show("cut 4")  # nothing follows, and it is not held back
    assert number_of(read_frame(source).image_bgr) == 4


def test_broken_pictures_are_counted_and_not_handed_out(camera, open_it):
    source = open_it()
    read_frame(source)
    camera.show("broken", "broken", 1)
    assert number_of(read_frame(source).image_bgr) == 1
    camera.show("lost", "broken", 2)
    assert number_of(read_frame(source).image_bgr) == 2
    assert source.num_corrupt == 3


# --- its parts


def test_pauses_double_up_to_half_a_second_and_half_of_each_is_chance():
    series = [list(itertools.islice(pauses_s(random.Random(seed)), 8)) for seed in range(50)]
    for place, longest in enumerate((0.1, 0.2, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5)):
        column = [pauses[place] for pauses in series]
        assert longest / 2 <= min(column) < longest * 0.6
        assert longest * 0.9 < max(column) <= longest


def test_mailbox_of_a_reader_that_never_comes_stays_small():
    mail = Mailbox()
    for _ in range(1000):
        mail.put("news")
        mail.put(Picture(None, 0.0, 0.0))
    assert len(mail._news) <= 64
