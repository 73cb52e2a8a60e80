"""Videos that change, turn or break: frames of their own size, a count, or one line."""

from __future__ import annotations

import struct

import numpy as np
import pytest

av = pytest.importorskip("av")

from pipeline_fakes import decode_with_pyav  # noqa: E402

from runtime.contract.errors import SourceError  # noqa: E402
from runtime.pipeline.sources import open_source, video_decoders  # noqa: E402
from runtime.pipeline.sources.video_decoders import OpencvDecoder, PyavDecoder  # noqa: E402

SIZES_WH = ((96, 64), (160, 120), (64, 96))
JPEG_ERROR = 12  # of a lossy codec, in levels of a flat colour
FORMS = {
    "h264": ("h264", "libx264", "yuv420p"),
    "ts": ("mpegts", "libx264", "yuv420p"),
    "mjpeg": ("mjpeg", "mjpeg", "yuvj420p"),
}


def colour_of(number):
    return np.array([(40 * number) % 256, 20, 200], np.uint8)


def encode(path, form, size_wh=(96, 64), num_frames=6, *, rotation=0, first=0):
    container, codec, pixel_format = form
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height = size_wh
        stream.pix_fmt = pixel_format
        stream.codec_context.gop_size = 3
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(first, first + num_frames):
            picture = np.full((size_wh[1], size_wh[0], 3), colour_of(number), np.uint8)
            picture[: size_wh[1] // 2, : size_wh[0] // 2] = 255 - picture[0, 0]
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        file.mux(stream.encode(None))
    return path.read_bytes()


def mp4(path, **options):
    encode(path, ("mp4", "libx264", "yuv420p"), **options)
    return path


# --- size


@pytest.mark.parametrize("form", FORMS)
def test_frames_have_their_own_size_when_it_changes_in_mid_stream(tmp_path, form):
    data = [encode(tmp_path / "part", FORMS[form], size, 4, first=4 * place)
            for place, size in enumerate(SIZES_WH)]  # fmt: skip
    path = tmp_path / f"joined.{form}"
    path.write_bytes(b"".join(data))
    with open_source(str(path)) as source:
        frames = [(frame.image_bgr.shape[1::-1], frame.image_bgr[-5, -5].astype(int))
                  for frame in source]  # fmt: skip
    assert [size for size, _ in frames] == [size for size in SIZES_WH for _ in range(4)]
    for number, (_, colour) in enumerate(frames):
        assert np.abs(colour - colour_of(number)).max() <= JPEG_ERROR
    assert (source.size_wh, source.num_corrupt) == (SIZES_WH[0], 0)


def test_buffers_of_another_size_are_not_written_into(tmp_path):
    data = [encode(tmp_path / "part", FORMS["h264"], size, 3) for size in SIZES_WH]
    path = tmp_path / "joined.h264"
    path.write_bytes(b"".join(data))
    shapes = []
    with open_source(str(path)) as source:
        for frame in source:
            shapes.append(frame.image_bgr.shape[1::-1])
            source.recycle(frame)
    assert shapes == [size for size in SIZES_WH for _ in range(3)]


@pytest.mark.parametrize("decoder", [PyavDecoder, OpencvDecoder])
def test_video_of_frames_that_are_too_large_is_refused(tmp_path, monkeypatch, decoder):
    path = mp4(tmp_path / "a.mp4")
    monkeypatch.setattr(video_decoders, "LARGEST_FRAME_PIXELS", 96 * 64 - 1)
    with pytest.raises(SourceError, match="a.mp4 (claims frames of 96x64|is no video)"):
        decoder(path)


def test_frames_that_grow_beyond_the_limit_are_skipped_and_counted(tmp_path, monkeypatch):
    data = [encode(tmp_path / "part", FORMS["mjpeg"], size, 3) for size in SIZES_WH]
    path = tmp_path / "joined.mjpeg"
    path.write_bytes(b"".join(data))
    monkeypatch.setattr(video_decoders, "LARGEST_FRAME_PIXELS", 160 * 120 - 1)
    with open_source(str(path)) as source:
        sizes = [frame.image_bgr.shape[1::-1] for frame in source]
    assert sizes == [SIZES_WH[0]] * 3 + [SIZES_WH[2]] * 3
    assert source.num_corrupt == 3


# --- both decoders


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_both_decoders_give_the_same_pictures_turned_upright(tmp_path, rotation):
    path = mp4(tmp_path / "a.mp4", rotation=rotation)
    pictures = []
    for decoder in (PyavDecoder(path), OpencvDecoder(path)):
        found = []
        while (frame := decoder.decode(0, None)) is not None:
            found.append(frame)
        pictures.append(found)
        assert (decoder.fps, decoder.num_promised) == (25.0, 6)
        decoder.close()
        decoder.close()
        assert decoder.decode(0, None) is None
    ours, theirs = pictures
    assert len(ours) == len(theirs) == 6
    assert ours[0][0].shape == ((64, 96, 3) if rotation % 180 == 0 else (96, 64, 3))
    for (left, left_s), (right, right_s) in zip(ours, theirs, strict=True):
        assert np.array_equal(left, right)
        assert left_s == pytest.approx(right_s, abs=1e-3)


def test_opencv_reads_videos_where_pyav_is_missing(tmp_path, monkeypatch):
    path = mp4(tmp_path / "a.mp4")
    monkeypatch.setattr(video_decoders.importlib.util, "find_spec", lambda name: None)
    with open_source(str(path)) as source:
        assert isinstance(source._decoder, OpencvDecoder)
        assert len(list(source)) == 6


# --- damage


def test_video_without_its_index_is_an_error_of_one_line(tmp_path):
    path = mp4(tmp_path / "a.mp4")
    data = path.read_bytes()
    assert data.index(b"moov") > data.index(b"mdat")
    path.write_bytes(data[: data.index(b"moov") - 4])
    with pytest.raises(SourceError, match="is no video that can be read") as error:
        open_source(str(path))
    assert "\n" not in str(error.value)


def test_empty_video_is_an_error_that_says_so(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(SourceError, match="is empty"):
        open_source(str(tmp_path / "a.mp4"))


def test_video_without_a_frame_is_an_error(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        file.start_encoding()
    with pytest.raises(SourceError, match="a.mkv (holds no frame|is no video)"):
        open_source(str(path))


def test_packets_that_the_decoder_refuses_are_counted_where_nothing_was_promised(tmp_path):
    data = bytearray(encode(tmp_path / "a.mjpeg", FORMS["mjpeg"]))
    third = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xd8"][2]
    frame = data.index(b"\xff\xc0", third)
    data[frame + 5 : frame + 9] = struct.pack(">HH", 0, 0)
    (tmp_path / "a.mjpeg").write_bytes(data)
    with open_source(str(tmp_path / "a.mjpeg")) as source:
        assert len(list(source)) == decode_with_pyav(tmp_path / "a.mjpeg")[0] == 5
    assert (source.num_promised, source.num_corrupt) == (None, 1)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("decoder", [PyavDecoder, OpencvDecoder])
@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
        "ffconcat version 1.0\nfile a.ts\n",
    ],
    ids=["hls", "concat"],
)
def test_playlist_is_not_followed_to_other_addresses(tmp_path, decoder, text):
    encode(tmp_path / "a.ts", FORMS["ts"])
    (tmp_path / "list.m3u8").write_text(text)
    with pytest.raises(SourceError, match="is no video that can be read"):
        decoder(tmp_path / "list.m3u8")


def test_codec_that_is_unknown_is_an_error_of_one_line(tmp_path):
    path = mp4(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"avq1"))
    with pytest.raises(SourceError, match="is no video that can be read") as error:
        open_source(str(path))
    assert "\n" not in str(error.value)


def test_single_pixel_video_is_read(tmp_path):
    path = tmp_path / "a.avi"
    encode(path, ("avi", "ffv1", "bgr0"), (1, 1), 2)
    with open_source(str(path)) as source:
        assert [frame.image_bgr.shape for frame in source] == [(1, 1, 3)] * 2
