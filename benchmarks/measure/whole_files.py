"""Small whole files of every codec at hand, from which damaged ones are made."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE_WH = (96, 64)
OTHER_SIZE_WH = (64, 96)  # of the second half where the size changes in mid-stream
NUM_FRAMES = 8

# name -> suffix, options of cv2.imencode (by name), form of the picture
_IMAGES: dict[str, tuple[str, dict[str, int], str]] = {
    "jpeg": (".jpg", {}, "colour"),
    "jpeg progressive": (".jpg", {"IMWRITE_JPEG_PROGRESSIVE": 1}, "colour"),
    "jpeg grey": (".jpg", {}, "grey"),
    "png": (".png", {}, "colour"),
    "png 16 bit": (".png", {}, "deep"),
    "png alpha": (".png", {}, "alpha"),
    "webp": (".webp", {"IMWRITE_WEBP_QUALITY": 80}, "colour"),
    "webp lossless": (".webp", {"IMWRITE_WEBP_QUALITY": 101}, "alpha"),
    "bmp": (".bmp", {}, "colour"),
    "tiff": (".tif", {"IMWRITE_TIFF_COMPRESSION": 1}, "colour"),
    "tiff lzw": (".tif", {"IMWRITE_TIFF_COMPRESSION": 5}, "deep"),
    "tiff deflate": (".tif", {"IMWRITE_TIFF_COMPRESSION": 8}, "alpha"),
}
# name -> suffix, container, codec, pixel format
_VIDEOS = {
    "h264 mp4": (".mp4", "mp4", "libx264", "yuv420p"),
    "h264 mkv": (".mkv", "matroska", "libx264", "yuv420p"),
    "h264 ts": (".ts", "mpegts", "libx264", "yuv420p"),
    "mpeg4 avi": (".avi", "avi", "mpeg4", "yuv420p"),
    "mjpeg avi": (".avi", "avi", "mjpeg", "yuvj420p"),
    "vp8 webm": (".webm", "webm", "libvpx", "yuv420p"),
    "vp9 webm": (".webm", "webm", "libvpx-vp9", "yuv420p"),
    "hevc mp4": (".mp4", "mp4", "libx265", "yuv420p"),
}
_JOINED = {"h264 of two sizes": (".h264", "h264", "libx264", "yuv420p")}


@dataclass(frozen=True)
class WholeFile:
    """A file that is whole.

    Attributes:
        form: codec and container, such as "h264 mp4".
        suffix: with its dot.
        data: the bytes.
        num_frames: that it holds.
    """

    form: str
    suffix: str
    data: bytes
    num_frames: int


def make_whole_files() -> list[WholeFile]:
    """One small file of each form whose encoder is here; videos need PyAV."""
    files = [_make_image(form) for form in _IMAGES] + _make_by_pillow()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "part"
        for form, (suffix, *how) in _VIDEOS.items():
            data = _encode_video(place, *how, SIZE_WH)
            files += [WholeFile(form, suffix, data, NUM_FRAMES)] if data else []
        for form, (suffix, *how) in _JOINED.items():
            halves = [_encode_video(place, *how, size) for size in (SIZE_WH, OTHER_SIZE_WH)]
            if all(halves):
                files.append(WholeFile(form, suffix, b"".join(halves), 2 * NUM_FRAMES))
    return files


def _picture(size_wh: tuple[int, int], number: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: a soft pattern that moves with the number."""
    import cv2

    cells = np.random.default_rng(7).integers(0, 255, (12, 16, 3), np.uint8)
    width, height = size_wh
    large = cv2.resize(cells, (2 * width, 2 * height), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(large[2 * number :, 3 * number :][:height, :width])


def _make_image(form: str) -> WholeFile:
    import cv2

    suffix, named, what = _IMAGES[form]
    picture: NDArray[Any] = _picture(SIZE_WH)
    if what == "grey":
        picture = picture[:, :, 0]
    elif what == "alpha":
        picture = np.dstack([picture, picture[:, ::-1, 0]])
    elif what == "deep":
        picture = picture.astype(np.uint16) * 257
    options = [part for name, value in named.items() for part in (getattr(cv2, name), value)]
    is_encoded, data = cv2.imencode(suffix, picture, options)
    assert is_encoded
    return WholeFile(form, suffix, data.tobytes(), 1)


def _make_by_pillow() -> list[WholeFile]:
    """What OpenCV does not write: CMYK and EXIF. Pillow comes with matplotlib."""
    from PIL import Image

    rgb = Image.fromarray(_picture(SIZE_WH))
    exif = Image.Exif()
    exif[0x112] = 6
    files = []
    for form, kind, suffix, image, options in (
        ("jpeg cmyk", "JPEG", ".jpg", rgb.convert("CMYK"), {}),
        ("jpeg exif", "JPEG", ".jpg", rgb, {"exif": exif}),
        ("png palette", "PNG", ".png", rgb.convert("P"), {}),
    ):
        file = io.BytesIO()
        image.save(file, kind, **options)
        files.append(WholeFile(form, suffix, file.getvalue(), 1))
    return files


def _encode_video(
    place: Path, container: str, codec: str, pixel_format: str, size_wh: tuple[int, int]
) -> bytes:
    """The file's bytes; nothing where PyAV or the encoder is not here."""
    try:
        import av

        with av.open(str(place), "w", format=container) as file:
            options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
            stream: Any = file.add_stream(codec, rate=25, options=options)
            stream.width, stream.height = size_wh
            stream.pix_fmt = pixel_format
            stream.codec_context.gop_size = 4
            stream.codec_context.thread_count = 1
            for number in range(NUM_FRAMES):
                picture = _picture(size_wh, number)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
            file.mux(stream.encode(None))
    except (ImportError, av.error.FFmpegError, ValueError):
        return b""
    return place.read_bytes()
