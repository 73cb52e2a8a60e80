"""Images of every form, held against Pillow; damaged ones are a reason, never a picture."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps

from runtime.contract.errors import SourceError
from runtime.pipeline.sources import image_decoding, open_source
from runtime.pipeline.sources.image_decoding import LARGEST_FRAME_PIXELS, decode_image, read_image
from runtime.pipeline.sources.image_headers import ImageError, read_header

CMYK_ROUNDING = 1  # two ways from CMYK to RGB in whole numbers
JPEG_SCALING = 12  # libjpeg averages coefficients, not pixels
KINDS = {
    "jpeg": (".jpg", []),
    "progressive": (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    "png": (".png", []),
    "bmp": (".bmp", []),
    "webp": (".webp", []),
    "lossless webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
    "tiff": (".tiff", []),
}


def picture(height=48, width=64):
    """(H, W, 3) uint8 without symmetry."""
    cells = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(suffix, image=None, options=()):
    return cv2.imencode(suffix, picture() if image is None else image, list(options))[1]


def by_pillow(data):
    upright = ImageOps.exif_transpose(Pillow.open(io.BytesIO(bytes(data))))
    return np.asarray(upright.convert("RGB"))[:, :, ::-1]


def saved_by_pillow(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return np.frombuffer(file.getvalue(), np.uint8)


def furthest(left, right):
    assert left.shape == right.shape
    return int(np.abs(left.astype(int) - right).max())


# --- forms


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_picture_is_turned_upright_as_its_exif_says(kind, orientation):
    exif = Pillow.Exif()
    exif[0x112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = saved_by_pillow(Pillow.fromarray(picture()[:, :, ::-1]), kind, exif=exif, **options)
    image = decode_image(data)
    assert image.shape == ((48, 64, 3) if orientation < 5 else (64, 48, 3))
    assert furthest(image, by_pillow(data)) == 0


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_are_scaled_so_that_white_stays_white(suffix, channels):
    rng = np.random.default_rng(1)
    deep = rng.integers(0, 65536, (48, 64, channels), dtype=np.uint16).squeeze()
    deep[0, 0], deep[0, 1] = 0, 65535
    image = decode_image(encoded(suffix, deep))
    expected = np.rint(deep.astype(np.float64) / 257).reshape(48, 64, channels)[:, :, :3]
    assert image.dtype == np.uint8
    assert furthest(image, np.broadcast_to(expected, (48, 64, 3))) == 0


def test_floating_point_is_taken_as_0_to_1_and_clipped():
    values = np.float32([[0.0, 0.5, 1.0, 7.0, -1.0, np.nan]])
    image = decode_image(encoded(".tiff", np.dstack([values] * 3)))
    assert image[0, :, 0].tolist() == [0, 128, 255, 255, 0, 0]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_alpha_is_dropped_and_the_colours_below_it_kept(suffix):
    alpha = np.random.default_rng(2).integers(0, 255, (48, 64), np.uint8)
    data = encoded(suffix, np.dstack([picture(), alpha]))
    assert furthest(decode_image(data), by_pillow(data)) == 0
    assert furthest(decode_image(data), picture()) == 0


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1"])
def test_grey_palette_and_black_and_white_become_bgr(mode):
    data = saved_by_pillow(Pillow.fromarray(picture()[:, :, ::-1]).convert(mode), "PNG")
    assert furthest(decode_image(data), by_pillow(data)) == 0


def test_cmyk_jpeg_has_its_true_colours():
    data = saved_by_pillow(Pillow.fromarray(picture()[:, :, ::-1]).convert("CMYK"), "JPEG")
    assert furthest(decode_image(data), by_pillow(data)) <= CMYK_ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_pixel_is_a_picture(kind):
    suffix, options = KINDS[kind]
    image = decode_image(encoded(suffix, np.full((1, 1, 3), 200, np.uint8), options))
    assert image.shape == (1, 1, 3)
    assert furthest(image, np.full((1, 1, 3), 200)) <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_header_tells_kind_and_size(kind):
    suffix, options = KINDS[kind]
    header = read_header(encoded(suffix, picture(37, 53), options).tobytes())
    assert (header.width, header.height) == (53, 37)
    assert header.kind.lower().startswith(suffix[1:3])


def test_suffix_that_is_wrong_does_not_matter(tmp_path):
    (tmp_path / "really.png").write_bytes(encoded(".jpg").tobytes())
    with open_source(str(tmp_path / "really.png")) as source:
        assert source.size_wh == (64, 48)


# --- size


def test_large_jpeg_is_decoded_at_a_fraction_of_its_sides(caplog):
    large = picture(1200, 1600)
    image = decode_image(encoded(".jpg", large), largest_pixels=500_000, name="large.jpg")
    assert image.shape == (600, 800, 3)
    halved = cv2.resize(large, (800, 600), interpolation=cv2.INTER_AREA)
    assert furthest(image, halved) <= JPEG_SCALING
    assert "large.jpg of 1600x1200 pixels is read at 1/2" in caplog.text


def test_large_picture_of_another_kind_is_shrunk_as_well():
    image = decode_image(encoded(".png", picture(301, 401)), largest_pixels=10_000)
    assert image.shape == (76, 101, 3)


@pytest.mark.slow
def test_twelve_thousand_by_nine_thousand_fits_a_frame():
    image = decode_image(encoded(".jpg", np.zeros((9000, 12000, 3), np.uint8)))
    assert image.shape == (4500, 6000, 3)
    assert image.shape[0] * image.shape[1] <= LARGEST_FRAME_PIXELS


def png_chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def claims_of_60000():
    """Small files whose headers ask for 60000 x 60000 pixels."""
    jpeg = bytearray(encoded(".jpg").tobytes())
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = struct.pack(">HH", 60000, 60000)
    ihdr = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + ihdr + png_chunk(b"IDAT", zlib.compress(b"0"))
    bmp = bytearray(encoded(".bmp").tobytes())
    bmp[18:26] = struct.pack("<ii", 60000, -60000)
    webp = bytearray(encoded(".webp", picture(), KINDS["lossless webp"][1]).tobytes())
    tiff = bytearray(encoded(".tiff").tobytes())
    place = struct.unpack_from("<I", tiff, 4)[0] + 2
    for entry in range(place, place + 24, 12):
        if struct.unpack_from("<H", tiff, entry)[0] in (256, 257):
            tiff[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, 60000)
    vp8x = struct.pack("<I", 10) + bytes(4) + (59999).to_bytes(3, "little") * 2
    webp[12:] = b"VP8X" + vp8x + webp[12:]
    webp[4:8] = struct.pack("<I", len(webp) - 8)
    return {"jpeg": jpeg, "png": png + png_chunk(b"IEND", b""), "bmp": bmp, "tiff": tiff} | {
        "webp": webp
    }


@pytest.mark.parametrize("kind", claims_of_60000())
def test_size_beyond_the_limit_is_refused_before_memory_is_asked_for(kind, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("the decoder was asked"))
    expected = "holds a small part" if kind == "jpeg" else "expected at most 200 million"
    with pytest.raises(ImageError, match=f"60000x60000 pixels.* {expected}"):
        decode_image(np.frombuffer(bytes(claims_of_60000()[kind]), np.uint8))


# --- damage


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("kind", KINDS)
def test_image_that_is_broken_off_is_a_reason_and_no_half_picture(kind, share):
    suffix, options = KINDS[kind]
    data = encoded(suffix, picture(120, 160), options)
    with pytest.raises(ImageError, match=r"^is "):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["jpeg", "progressive"])
def test_jpeg_that_codes_a_small_part_of_its_pixels_is_no_grey_picture(kind):
    data = bytearray(encoded(".jpg", picture(), KINDS[kind][1]).tobytes())
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    data[frame : frame + 4] = struct.pack(">HH", 7000, 7000)
    with pytest.raises(ImageError, match="7000x7000 pixels that holds a small part"):
        decode_image(np.frombuffer(bytes(data), np.uint8))


@pytest.mark.parametrize("kind", ["jpeg", "progressive"])
@pytest.mark.parametrize("optimised", [0, 1])
def test_jpeg_of_one_colour_is_whole_however_few_its_bytes(kind, optimised):
    flat = np.full((1500, 2000, 3), 128, np.uint8)
    options = [*KINDS[kind][1], cv2.IMWRITE_JPEG_OPTIMIZE, optimised, cv2.IMWRITE_JPEG_QUALITY, 1]
    assert furthest(decode_image(encoded(".jpg", flat, options)), flat) == 0


def test_jpeg_with_something_behind_its_end_is_whole():
    data = encoded(".jpg")
    more = np.frombuffer(b"\0\xff\xda film of a phone", np.uint8)
    assert furthest(decode_image(np.append(data, more)), by_pillow(data)) == 0


def test_jpeg_of_countless_scans_is_refused():
    data = encoded(".jpg", picture(), KINDS["progressive"][1]).tobytes()
    scan = data.index(b"\xff\xda")
    crafted = data[:scan] + data[scan : scan + 10] * 200 + data[scan:]
    with pytest.raises(ImageError, match="scans; expected at most"):
        decode_image(np.frombuffer(crafted, np.uint8))


def test_png_with_a_flipped_bit_is_a_reason():
    data = encoded(".png").copy()
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="checksum of b'IDAT'"):
        decode_image(data)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"GIF89a" + bytes(50), b"BM", b"RIFF\0\0\0\0WEBP"]
)
def test_file_that_is_no_image_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(SourceError, match=r"a\.jpg is ") as error:
        read_image(tmp_path / "a.jpg")
    assert "\n" not in str(error.value)


def test_file_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(image_decoding, "LARGEST_FILE_BYTES", 10)
    (tmp_path / "a.png").write_bytes(encoded(".png").tobytes())
    with pytest.raises(SourceError, match="bytes; expected at most 10"):
        read_image(tmp_path / "a.png")


def test_folder_names_each_image_that_it_passes_over_and_why(tmp_path, caplog):
    (tmp_path / "1.png").write_bytes(encoded(".png").tobytes())
    (tmp_path / "2.jpg").write_bytes(b"")
    (tmp_path / "3.jpg").write_bytes(encoded(".jpg", picture(30, 20)).tobytes())
    with open_source(str(tmp_path)) as source:
        sizes = [frame.image_bgr.shape[:2] for frame in source]
    assert sizes == [(48, 64), (30, 20)]
    assert source.num_corrupt == 1
    assert "2.jpg is empty (0 bytes); passed over" in caplog.text
