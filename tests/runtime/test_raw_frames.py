"""Raw frames from pipes and files, in every pixel format."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
from pipeline_fakes import number_of, picture

from runtime.contract.errors import SourceError
from runtime.pipeline.sources import open_source
from runtime.pipeline.sources import raw_frames as module
from runtime.pipeline.sources.base import NoFrameYet, SourceState
from runtime.pipeline.sources.options import read_fps, read_size, split_options
from runtime.pipeline.sources.raw_frames import PIXEL_FORMATS

SIZE = "size=64x48"
FRAME_BYTES = 64 * 48 * 3
CHROMA_ERROR = 3.0  # levels in the mean: FFmpeg interpolates chroma, OpenCV repeats it


def frames_of(*numbers):
    return b"".join(picture(number).tobytes() for number in numbers)


def write(path, data):
    path.write_bytes(data)
    return str(path)


def pixels(height=48, width=64):
    cells = np.random.default_rng(0).integers(0, 255, (3, 4, 3), np.uint8)
    return cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)


def read_with_patience(source):
    while True:
        try:
            return source.read()
        except NoFrameYet:
            continue


# --- files


def test_file_gives_its_frames_at_the_rate_that_was_told(tmp_path):
    path = write(tmp_path / "a.bgr", frames_of(0, 1, 2))
    with open_source(f"raw:{path}?{SIZE}&rate=12.5") as source:
        frames = list(source)
    assert [number_of(frame.image_bgr) for frame in frames] == [0, 1, 2]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert np.allclose([frame.time_s for frame in frames], [0.0, 0.08, 0.16])
    assert (source.num_promised, source.num_corrupt, source.is_live) == (3, 0, False)


def test_last_frame_that_is_broken_off_is_counted_and_not_delivered(tmp_path, caplog):
    path = write(tmp_path / "a.bgr", frames_of(0, 1, 2)[:-1])
    with open_source(f"raw:{path}?{SIZE}") as source:
        assert len(list(source)) == 2
        assert source.read() is None
    assert (source.num_decoded, source.num_corrupt, source.num_promised) == (2, 1, 3)
    assert f"broken off after {FRAME_BYTES - 1} of {FRAME_BYTES} bytes" in caplog.text


@pytest.mark.parametrize("num_bytes", [0, 100])
def test_less_than_a_frame_is_an_error_that_says_how_much_came(tmp_path, num_bytes):
    path = write(tmp_path / "a.bgr", bytes(num_bytes))
    with pytest.raises(SourceError, match=f"after {num_bytes} of the {FRAME_BYTES} bytes"):
        open_source(f"raw:{path}?{SIZE}")


@pytest.mark.parametrize("name", PIXEL_FORMATS)
def test_pixel_format_is_read_as_ffmpeg_writes_it(tmp_path, name):
    av = pytest.importorskip("av")
    stored = av.VideoFrame.from_ndarray(pixels(), format="bgr24").reformat(format=name)
    data = stored.to_ndarray().tobytes()
    with open_source(f"raw:{write(tmp_path / 'a', data * 2)}?{SIZE}&format={name}") as source:
        first, second = list(source)
    expected = stored.to_ndarray(format="bgr24")
    tolerance = CHROMA_ERROR if PIXEL_FORMATS[name].is_subsampled else 0
    assert np.abs(first.image_bgr.astype(int) - expected).mean() <= tolerance
    assert np.array_equal(first.image_bgr, second.image_bgr)


def test_frames_that_are_kept_keep_their_picture_and_given_back_ones_are_used_again(tmp_path):
    path = write(tmp_path / "a.rgb", frames_of(0, 1, 2))
    with open_source(f"raw:{path}?{SIZE}&format=rgb24") as source:
        first = source.read()
        kept = first.image_bgr.copy()
        second = source.read()
        assert np.array_equal(first.image_bgr, kept)
        place = second.image_bgr.ctypes.data
        source.recycle(second)
        assert source.read().image_bgr.ctypes.data == place


# --- pipes


@pytest.fixture
def pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_pipe_is_waited_for_and_frames_may_come_in_pieces(pipe):
    def produce():
        data = frames_of(*range(5)) + b"rest"
        with pipe.open("wb", buffering=0) as file:
            for start in range(0, len(data), 5000):
                file.write(data[start : start + 5000])

    writer = threading.Thread(target=produce)
    writer.start()
    with open_source(f"raw:{pipe}?{SIZE}") as source:
        numbers = []
        while (frame := read_with_patience(source)) is not None:
            numbers.append(number_of(frame.image_bgr))
    writer.join()
    assert numbers == [0, 1, 2, 3, 4]
    assert (source.num_corrupt, source.num_promised) == (1, None)


def test_live_pipe_that_falls_silent_says_so_and_loses_nothing(pipe, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(module, "STALLED_S", 0.1)
    monkeypatch.setattr(module, "STALLED_FRAMES", 0)
    states = []
    descriptor = os.open(pipe, os.O_RDWR)  # both ends, so that opening waits for nobody
    try:
        os.write(descriptor, frames_of(7)[:FRAME_BYTES])
        source = open_source(f"raw:{pipe}?{SIZE}&live=yes")
        source.on_state = lambda _, state, reason: states.append(state)
        assert source.is_live
        assert number_of(source.read().image_bgr) == 7
        os.write(descriptor, frames_of(8)[:1000])
        while not states:
            with pytest.raises(NoFrameYet):
                source.read()
        os.write(descriptor, frames_of(8)[1000:])
        assert number_of(read_with_patience(source).image_bgr) == 8
        source.close()
    finally:
        os.close(descriptor)
    assert states == [SourceState.STALLED, SourceState.RUNNING]


@pytest.mark.parametrize("uri", ["raw:-?", "stdin:?"])
def test_standard_input_is_read(uri):
    code = (
        "import sys; from runtime.pipeline.sources import open_source;"
        f"s = open_source({uri + SIZE!r}); print(len(list(s)), s.num_corrupt, s.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=frames_of(0, 1, 2) + b"x", capture_output=True
    )
    assert done.stdout.split(maxsplit=2) == [b"3", b"1", b"standard input\n"], done.stderr


def test_standard_input_that_is_closed_is_an_error():
    code = (
        "import os; os.close(0); from runtime.pipeline.sources import open_source;"
        f"open_source('raw:-?{SIZE}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "SourceError: source raw:- reads standard input, which is closed" in done.stderr


# --- options


@pytest.mark.parametrize(
    ("uri", "match"),
    [
        ("raw:-", "has no size"),
        ("raw:-?size=640", "expected WIDTHxHEIGHT"),
        ("raw:-?size=0x48", "expected WIDTHxHEIGHT"),
        ("raw:-?size=64x48&rate=0", "expected frames a second"),
        ("raw:-?size=64x48&rate=1/0", "expected frames a second"),
        ("raw:-?size=64x48&format=bgr23", "Did you mean bgr24"),
        ("raw:-?size=65x48&format=nv12", "its sides are even"),
        ("raw:-?size=60000x60000", "expected at most 50 million"),
        ("raw:-?sise=64x48", "Did you mean size"),
        ("raw:-?size=64x48&size=64x48", "twice"),
        ("raw:-?size", "expected key=value, such as"),
        ("raw:-?size=64x48&live=true", "expected yes, no"),
        ("raw:/nothing/here?size=64x48", "cannot be opened: No such file"),
        ("raw:/tmp?size=64x48", "is a folder"),
        ("stdin:file?size=64x48", "names a file"),
    ],
)
def test_option_that_makes_no_sense_is_an_error_of_one_line(uri, match):
    with pytest.raises(SourceError, match=match) as error:
        open_source(uri)
    assert "\n" not in str(error.value)


def test_options_are_read_from_behind_the_address():
    assert split_options("-?a=1&b=2", ("a", "b")) == ("-", {"a": "1", "b": "2"})
    assert split_options("x", ()) == ("x", {})
    assert read_size("640x480", "it") == (640, 480)
    assert read_fps("30000/1001", "it") == pytest.approx(29.97, abs=1e-3)
