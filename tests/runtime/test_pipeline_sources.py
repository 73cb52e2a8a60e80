from __future__ import annotations

import time

import cv2
import numpy as np
import pytest
from pipeline_fakes import (
    BOOK,
    CAR,
    NO_CLIPS,
    decode_with_pyav,
    number_of,
    picture,
    results_of,
)

from runtime.contract.errors import SourceError
from runtime.pipeline.sinks.video_file import VideoFileSink
from runtime.pipeline.sources import SOURCES, Frame, Source, open_source, scheme_of
from runtime.pipeline.sources.images import find_images
from runtime.pipeline.sources.looping import LoopingSource

SECONDS_APART = 1e-3  # OpenCV gives milliseconds, PyAV fractions
needs_clips = pytest.mark.skipif(not CAR.exists(), reason=NO_CLIPS)


def write_video(path, num_frames=40, fps=25.0):
    sink = VideoFileSink(path, size_wh=(64, 48), fps=fps)
    for result in results_of(num_frames, fps=fps):
        sink.write(result)
    sink.close()
    return path


def is_one_line(error):
    return "\n" not in str(error.value) and len(str(error.value)) > 20


# --- video files


@needs_clips
@pytest.mark.parametrize(("clip", "promised"), [(CAR, 377), (BOOK, 110)], ids=["car", "book"])
def test_file_delivers_every_frame_that_decodes_at_its_time(clip, promised):
    with open_source(str(clip)) as source:
        times = [frame.time_s for frame in source]
    count, expected = decode_with_pyav(clip)
    assert source.num_decoded == len(times) == count
    from_first = np.array(expected) - expected[0]  # book.mkv begins at 0.033 s
    assert np.allclose(times, from_first, atol=SECONDS_APART)
    assert source.num_promised == promised  # book.mkv's header promises one that is not there
    assert source.num_corrupt == 0


def test_file_tells_its_size_rate_and_indices(tmp_path):
    with open_source(str(write_video(tmp_path / "a.mp4", 20, fps=12.5))) as source:
        frames = list(source)
    assert source.size_wh == (64, 48)
    assert source.fps == 12.5
    assert not source.is_live
    assert [frame.index for frame in frames] == list(range(20))
    assert np.allclose([frame.time_s for frame in frames], np.arange(20) / 12.5, atol=SECONDS_APART)


@needs_clips
@pytest.mark.parametrize("share_damaged", [0.01, 0.5], ids=["one percent", "half"])
def test_corrupt_frames_in_the_middle_are_survived_and_counted(tmp_path, share_damaged):
    data = bytearray(CAR.read_bytes())
    start, size = len(data) // 3, int(len(data) * share_damaged)
    data[start : start + size] = np.random.default_rng(0).bytes(size)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    with open_source(str(damaged)) as source:
        times = [frame.time_s for frame in source]
    count, expected = decode_with_pyav(damaged)
    assert len(times) == count < 377
    assert times[-1] == pytest.approx(expected[-1], abs=SECONDS_APART)  # the end was reached
    assert source.num_corrupt == 377 - count > 0
    assert all(later > earlier for earlier, later in zip(times, times[1:], strict=False))


@needs_clips
def test_file_that_breaks_off_gives_the_frames_that_are_there(tmp_path):
    data = CAR.read_bytes()
    (tmp_path / "short.mp4").write_bytes(data[: len(data) // 2])
    with open_source(str(tmp_path / "short.mp4")) as source:
        count = sum(1 for _ in source)
    assert count == decode_with_pyav(tmp_path / "short.mp4")[0] > 0
    assert source.num_promised == 377


def test_missing_file_is_an_error_of_one_line(tmp_path):
    with pytest.raises(SourceError, match="does not exist") as error:
        open_source(str(tmp_path / "none.mp4"))
    assert is_one_line(error)


@pytest.mark.parametrize(
    "content", [b"", b"no video\n" * 500, bytes(5000)], ids=["empty", "text", "0"]
)
@pytest.mark.parametrize("name", ["film.mp4", "notes_001.txt", "noname"])
def test_file_that_is_no_video_is_an_error_of_one_line(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match="video") as error:
        open_source(str(tmp_path / name))
    assert is_one_line(error)


def test_recycled_frames_memory_is_used_again(tmp_path):
    with open_source(str(write_video(tmp_path / "a.mp4", 10))) as source:
        places = set()
        for frame in source:
            places.add(frame.image_bgr.ctypes.data)
            source.recycle(frame)
    assert len(places) == 1


def test_frames_that_are_kept_keep_their_picture(tmp_path):
    with open_source(str(write_video(tmp_path / "a.mp4", 10))) as source:
        frames = list(source)
    assert len({frame.image_bgr.ctypes.data for frame in frames}) == 10


def test_closing_twice_is_harmless_and_ends_the_frames(tmp_path):
    source = open_source(str(write_video(tmp_path / "a.mp4", 5)))
    source.read()
    source.close()
    source.close()
    assert source.read() is None


# --- again from the start


class Missing(Source):
    """Five frames of six that its header promises."""

    def __init__(self):
        super().__init__("short", fps=10.0, is_live=False)
        self.num_promised = 6

    def read(self):
        if self.num_decoded == 5:
            return None
        index, self.num_decoded = self.num_decoded, self.num_decoded + 1
        return Frame(np.zeros((2, 2, 3), np.uint8), index, index / 10, 0.0, 0.0, self.name)

    def close(self):
        pass


def test_looped_source_ends_after_its_rounds_and_misses_a_frame_only_once():
    source = LoopingSource(Missing, 4)
    assert source.num_promised == 24
    frames = list(source)
    assert [frame.index for frame in frames] == list(range(20))
    assert np.allclose([frame.time_s for frame in frames], np.arange(20) / 10)
    assert source.num_promised - source.num_decoded == 1
    assert source.read() is None


# --- images


def write_images(folder, names):
    for number, name in enumerate(names):
        cv2.imwrite(str(folder / name), picture(number))
    return folder


def test_images_come_in_the_order_of_their_numbers(tmp_path):
    write_images(tmp_path, ["img10.png", "img2.png", "img1.png"])
    with open_source(str(tmp_path)) as source:
        assert [number_of(frame.image_bgr) for frame in source] == [2, 1, 0]


def test_image_that_does_not_decode_is_passed_over_and_counted(tmp_path):
    write_images(tmp_path, ["a.png", "c.png"])
    (tmp_path / "b.png").write_bytes(b"no image")
    with open_source(str(tmp_path)) as source:
        frames = list(source)
    assert [frame.index for frame in frames] == [0, 1]
    assert (source.num_corrupt, source.num_promised) == (1, 3)


@pytest.mark.parametrize("what", ["pattern", "file"])
def test_images_of_a_pattern_or_a_single_file_are_found(tmp_path, what):
    write_images(tmp_path, ["a.png", "b.jpg"])
    uri = {"pattern": str(tmp_path / "*.png"), "file": str(tmp_path / "a.png")}[what]
    assert find_images(uri) == [tmp_path / "a.png"]
    with open_source(uri) as source:
        assert len(list(source)) == 1


@pytest.mark.parametrize("what", ["empty folder", "pattern", "broken file"])
def test_source_without_an_image_is_an_error_of_one_line(tmp_path, what):
    (tmp_path / "broken.png").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    uri = {"empty folder": "empty", "pattern": "*.jpg", "broken file": "broken.png"}[what]
    with pytest.raises(SourceError, match="images") as error:
        open_source(str(tmp_path / uri))
    assert is_one_line(error)


# --- choosing


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("0", "camera"),
        ("/dev/video2", "camera"),
        ("street.mp4", "video"),
        ("video:street.jpg", "video"),
        ("photo.JPG", "images"),
        ("photos/*.png", "images"),
        ("C:\\clips\\street.mp4", "video"),
    ],
)
def test_scheme_is_found_by_the_uri(uri, scheme):
    assert scheme_of(uri)[0] == scheme


def test_unknown_scheme_is_an_error_that_names_the_nearest():
    with pytest.raises(SourceError, match="Did you mean camera:"):
        open_source("camra:0")


@pytest.mark.parametrize("scheme", SOURCES)
def test_every_scheme_of_the_registry_has_its_class(scheme):
    with pytest.raises(SourceError):
        open_source(f"{scheme}:nothing/here")


@pytest.mark.parametrize("kind", ["video", "image"])
def test_first_frame_has_both_its_times_from_when_it_is_asked_for(tmp_path, monkeypatch, kind):
    if kind == "video":
        path = write_video(tmp_path / "a.mp4", 3)
    else:
        write_images(tmp_path, ["a.png"])
        path = tmp_path / "a.png"
    with open_source(str(path)) as source:
        now_s, wall_s = time.perf_counter() + 100.0, time.time() + 100.0  # bundles loaded meanwhile
        monkeypatch.setattr(time, "perf_counter", lambda: now_s)
        monkeypatch.setattr(time, "time", lambda: wall_s)
        frame = source.read()
    read_at_s = frame.capture_ms / 1e3
    assert frame.captured_at == pytest.approx(now_s - read_at_s, abs=1e-6)
    assert frame.wall_time_s == pytest.approx(wall_s - read_at_s, abs=1e-5)


class CorruptAtTheEnd(Missing):
    """Finds at the end of each round that a frame was corrupt."""

    def read(self):
        frame = super().read()
        if frame is None:
            self.num_corrupt = 1
        return frame


def test_looped_source_counts_what_is_corrupt_at_the_end_of_each_round():
    source = LoopingSource(CorruptAtTheEnd, 3)
    num_frames = len(list(source))
    assert source.num_corrupt == 3
    assert source.num_decoded == num_frames
