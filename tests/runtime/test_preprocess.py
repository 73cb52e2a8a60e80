import numpy as np
import pytest

from runtime.contract.errors import SourceError
from runtime.contract.manifest import InputGeometry
from runtime.preprocess import Letterbox

LEVELS = 1  # OpenCV's fixed-point weights against float64: they may round to the neighbour
PIXELS = 1e-3  # float32 coordinates up to some thousands, there and back

SOURCES = {
    "wide": (432, 768),
    "tall": (640, 361),
    "square": (100, 100),
    "odd": (333, 517),
    "smaller than the input": (37, 53),
    "a line": (1, 500),
    "one pixel": (1, 1),
}
GEOMETRIES = {
    "16:9": InputGeometry(288, 512),
    "square, top left": InputGeometry(320, 320, alignment="top_left", pad_value=0),
    "tall": InputGeometry(160, 96),
    "stretch": InputGeometry(96, 160, resize="stretch"),
}


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES)
def geometry(request):
    return request.param


@pytest.fixture(params=SOURCES.values(), ids=SOURCES)
def source_hw(request):
    return request.param


def random_frame(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Noise upon a gradient, so that every pixel differs from its neighbours."""
    random = np.random.default_rng(height * 10_000 + width)
    noise = random.integers(0, 128, (height, width, channels))
    return (noise + np.linspace(0, 127, width)[None, :, None]).astype(np.uint8)


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with half-pixel centres and clamped edges, in float64."""

    def places(new: int, old: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(centre).astype(int)
        return low, np.minimum(low + 1, old - 1), centre - low

    y0, y1, fy = places(height, image.shape[0])
    x0, x1, fx = places(width, image.shape[1])
    image = image.astype(np.float64)
    fy, fx = fy[:, None, None], fx[None, :, None]
    upper = image[y0][:, x0] * (1 - fx) + image[y0][:, x1] * fx
    lower = image[y1][:, x0] * (1 - fx) + image[y1][:, x1] * fx
    return upper * (1 - fy) + lower * fy


def reference_letterbox(frame: np.ndarray, geometry: InputGeometry) -> np.ndarray:
    """The letterbox from its words in ARCHITECTURE.md, written a second time."""
    height, width = frame.shape[:2]
    new_h, new_w = geometry.height, geometry.width
    top = left = 0
    if geometry.resize == "letterbox":
        scale = min(geometry.width / width, geometry.height / height)
        new_h, new_w = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
        if geometry.alignment == "centre":
            top, left = (geometry.height - new_h) // 2, (geometry.width - new_w) // 2
    out = np.full((geometry.height, geometry.width, 3), float(geometry.pad_value))
    out[top : top + new_h, left : left + new_w] = resize_bilinear(frame, new_h, new_w)
    return out


def test_letterbox_agrees_with_the_numpy_reference(source_hw, geometry):
    frame = random_frame(*source_hw)
    got = Letterbox.fit(source_hw, geometry).apply(frame)
    difference = np.abs(got - reference_letterbox(frame, geometry))
    assert difference.max() <= LEVELS


def test_letterbox_content_lies_inside_the_input(source_hw, geometry):
    letterbox = Letterbox.fit(source_hw, geometry)
    assert letterbox.top + letterbox.content_hw[0] <= geometry.height
    assert letterbox.left + letterbox.content_hw[1] <= geometry.width
    assert min(letterbox.content_hw) >= 1


def test_letterbox_maps_boxes_back_to_the_source_frame(source_hw, geometry):
    letterbox = Letterbox.fit(source_hw, geometry)
    height, width = source_hw
    boxes = np.float32([[0, 0, width, height], [width / 4, height / 3, width / 2, height / 1.5]])
    there = letterbox.to_network(boxes)
    np.testing.assert_allclose(letterbox.to_source(there), boxes, atol=PIXELS)


def test_letterbox_clips_boxes_to_the_frame():
    letterbox = Letterbox.fit((100, 200), InputGeometry(64, 64))
    boxes = letterbox.to_source(np.float32([[-50, -50, 500, 500]]))
    np.testing.assert_array_equal(boxes, [[0, 0, 200, 100]])


def test_letterbox_maps_no_boxes_to_no_boxes():
    letterbox = Letterbox.fit((100, 200), InputGeometry(64, 64))
    assert letterbox.to_source(np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_letterbox_copies_a_frame_of_the_input_size_unchanged():
    frame = random_frame(64, 96)
    got = Letterbox.fit((64, 96), InputGeometry(64, 96)).apply(frame)
    np.testing.assert_array_equal(got, frame)


def test_letterbox_writes_into_the_buffer_it_is_given():
    geometry = InputGeometry(64, 64)
    frame = random_frame(50, 90)
    batch = np.zeros((2, 64, 64, 3), np.uint8)
    letterbox = Letterbox.fit((50, 90), geometry)
    assert letterbox.apply(frame, batch[1]).base is batch
    np.testing.assert_array_equal(batch[1], letterbox.apply(frame))
    assert not batch[0].any()


def test_letterbox_leaves_a_border_alone_that_it_filled_before():
    letterbox = Letterbox.fit((50, 90), InputGeometry(64, 64))
    out = letterbox.apply(random_frame(50, 90))
    out[0] = 7  # a row of the border
    letterbox.apply(random_frame(50, 90), out, fill_border=False)
    assert (out[0] == 7).all()


@pytest.mark.parametrize(
    "view",
    [
        lambda frame: frame[::2, ::2],
        lambda frame: frame[:, ::-1],
        lambda frame: frame[::-1],
        lambda frame: frame[..., ::-1],
        lambda frame: frame[5:40, 7:60],
        lambda frame: np.asfortranarray(frame),
        lambda frame: frame.transpose(1, 0, 2),
    ],
    ids=["strided", "mirrored", "upside down", "rgb", "cropped", "fortran", "turned"],
)
def test_letterbox_accepts_frames_of_any_strides(view):
    frame = view(random_frame(64, 96))
    letterbox = Letterbox.fit(frame.shape[:2], InputGeometry(48, 48))
    np.testing.assert_array_equal(letterbox.apply(frame), letterbox.apply(frame.copy(order="C")))


def test_letterbox_leaves_the_frame_as_it_was():
    frame = random_frame(50, 90)
    frame.flags.writeable = False
    before = frame.copy()
    Letterbox.fit((50, 90), InputGeometry(64, 64)).apply(frame)
    np.testing.assert_array_equal(frame, before)


def test_letterbox_takes_grey_as_equal_channels():
    grey = random_frame(50, 90)[..., 0]
    letterbox = Letterbox.fit((50, 90), InputGeometry(64, 64))
    np.testing.assert_array_equal(
        letterbox.apply(grey), letterbox.apply(np.stack([grey] * 3, axis=2))
    )


def test_letterbox_leaves_out_the_alpha_of_bgra():
    bgra = random_frame(50, 90, channels=4)
    letterbox = Letterbox.fit((50, 90), InputGeometry(64, 64))
    np.testing.assert_array_equal(letterbox.apply(bgra), letterbox.apply(bgra[..., :3]))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((50, 90, 3), np.float32), "float32"),
        (np.zeros((50, 90, 2), np.uint8), r"\(50, 90, 2\)"),
        (np.zeros((90, 50, 3), np.uint8), "90x50"),
        (np.zeros((1, 50, 90, 3), np.uint8), r"\(1, 50, 90, 3\)"),
        (None, "NoneType"),
    ],
    ids=["float", "two channels", "another size", "a batch", "no frame"],
)
def test_letterbox_refuses_what_is_no_frame(frame, message):
    letterbox = Letterbox.fit((50, 90), InputGeometry(64, 64))
    with pytest.raises(SourceError, match=message):
        letterbox.apply(frame)


def test_letterbox_refuses_a_frame_without_pixels():
    with pytest.raises(SourceError, match="0x5"):
        Letterbox.fit((5, 0), InputGeometry(64, 64))
