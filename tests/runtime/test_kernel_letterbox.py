"""The letterbox kernel's source, run on the CPU, against what runtime/preprocess.py defines."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from kernel_emulation import emulate

from runtime.contract.manifest import InputGeometry
from runtime.engines.kernels.letterbox import (
    _ROW,
    BLOCK,
    PlacedFrame,
    can_letterbox,
    grid_for,
    pack_rows,
)
from runtime.engines.kernels.shipped import LETTERBOX_ROWS
from runtime.preprocess import Letterbox

LEVELS = 1  # OpenCV's weights have 11 bits or fewer, the kernel's are float32
SAME_SHARE = 0.999  # of pixels that must be within LEVELS
HALF_LEVEL = 0.5 + 1e-3  # the kernel rounds the exact value: float32 errs by 1e-4 of a level

SOURCES = {
    "wide": (432, 768),
    "tall": (640, 361),
    "odd": (333, 517),
    "twice": (576, 1024),
    "same size": (288, 512),
    "smaller than the input": (37, 53),
    "a line": (1, 500),
    "a column": (500, 1),
    "one pixel": (1, 1),
}
GEOMETRIES = {
    "16:9": InputGeometry(288, 512),
    "square, top left": InputGeometry(320, 320, alignment="top_left", pad_value=0),
    "no whole words": InputGeometry(61, 97, pad_value=7),
    "stretch": InputGeometry(96, 160, resize="stretch"),
}


def random_frame(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Noise: neighbours have nothing in common, so a wrong tap shows."""
    random = np.random.default_rng(height * 10_000 + width)
    return random.integers(0, 256, (height, width, channels), np.uint8)


def run_kernel(
    frames: list[np.ndarray], geometry: InputGeometry, **how: object
) -> tuple[np.ndarray, list[Letterbox]]:
    """Letterbox frames into a batch by the kernel."""
    letterboxes = [Letterbox.fit(frame.shape[:2], geometry) for frame in frames]
    placed = [
        PlacedFrame(frame.ctypes.data, frame.strides[0], frame.shape[2], letterbox)
        for frame, letterbox in zip(frames, letterboxes, strict=True)
    ]
    images = np.full((len(frames), geometry.height, geometry.width, 3), 201, np.uint8)
    emulate("letterbox.cu").launch(
        "kestrel_letterbox",
        grid_for(images.shape[1:3], len(frames)),
        BLOCK,
        [pack_rows(placed), images, geometry.height, geometry.width],
        guarded=True,
        **how,
    )
    return images, letterboxes


def resize_exactly(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with half-pixel centres and clamped edges in float64."""

    def places(new: int, old: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(centre).astype(int)
        return low, np.minimum(low + 1, old - 1), centre - low

    y0, y1, fy = places(height, frame.shape[0])
    x0, x1, fx = places(width, frame.shape[1])
    fy, fx = fy[:, None, None], fx[None, :, None]
    whole = frame.astype(np.float64)
    upper = whole[y0][:, x0] * (1 - fx) + whole[y0][:, x1] * fx
    lower = whole[y1][:, x0] * (1 - fx) + whole[y1][:, x1] * fx
    return upper * (1 - fy) + lower * fy


def share_within(got: np.ndarray, wanted: np.ndarray, levels: int) -> float:
    """The share of pixels whose every channel is as near as that."""
    difference = np.abs(got.astype(np.int16) - wanted.astype(np.int16)).max(axis=-1)
    return float((difference <= levels).mean())


def assert_border_is_exact(image: np.ndarray, letterbox: Letterbox) -> None:
    is_border = np.ones(image.shape[:2], bool)
    letterbox.content_of(is_border[..., None])[...] = False
    assert (image[is_border] == letterbox.pad_value).all()


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("source_hw", SOURCES.values(), ids=SOURCES)
def test_kernel_agrees_with_opencv_and_rounds_the_exact_value(source_hw, geometry):
    frame = random_frame(*source_hw)
    (got,), (letterbox,) = run_kernel([frame], geometry)
    assert_border_is_exact(got, letterbox)
    assert share_within(got, letterbox.apply(frame), LEVELS) >= SAME_SHARE
    exact = resize_exactly(frame, *letterbox.content_hw)
    assert np.abs(letterbox.content_of(got) - exact).max() <= HALF_LEVEL


def test_kernel_agrees_with_opencv_on_many_random_sizes():
    random = np.random.default_rng(5)
    for _ in range(60):
        source_hw = tuple(int(side) for side in random.integers(1, 300, 2))
        geometry = InputGeometry(*(int(side) for side in random.integers(1, 200, 2)))
        frame = random_frame(*source_hw)
        (got,), (letterbox,) = run_kernel([frame], geometry)
        assert_border_is_exact(got, letterbox)
        wanted = letterbox.apply(frame)
        assert share_within(got, wanted, LEVELS) >= SAME_SHARE, (source_hw, geometry)


def test_kernel_agrees_with_opencv_on_a_4k_frame():
    frame = random_frame(2160, 3840)
    (got,), (letterbox,) = run_kernel([frame], InputGeometry(360, 640))
    assert share_within(got, letterbox.apply(frame), LEVELS) >= SAME_SHARE


def test_kernel_averages_four_pixels_when_the_frame_is_twice_the_input():
    frame = random_frame(576, 1024)
    (got,), _ = run_kernel([frame], GEOMETRIES["16:9"])
    fours = frame.reshape(288, 2, 512, 2, 3).astype(int).sum(axis=(1, 3))
    np.testing.assert_array_equal(got, (fours + 2) // 4)


def test_kernel_copies_a_frame_of_the_inputs_size():
    frame = random_frame(288, 512)
    (got,), _ = run_kernel([frame], GEOMETRIES["16:9"])
    np.testing.assert_array_equal(got, frame)


@pytest.mark.parametrize("channels", [1, 4])
def test_kernel_reads_grey_and_bgra_as_bgr(channels):
    frame = random_frame(90, 150, channels)
    bgr = cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR) if channels == 1 else frame[..., :3]
    geometry = GEOMETRIES["stretch"]
    got, _ = run_kernel([frame], geometry)
    wanted, _ = run_kernel([np.ascontiguousarray(bgr)], geometry)
    np.testing.assert_array_equal(got, wanted)


def test_kernel_reads_lines_that_lie_apart():
    whole = random_frame(100, 200)
    part = whole[7:77, 30:171]
    got, _ = run_kernel([part], GEOMETRIES["16:9"])
    wanted, _ = run_kernel([part.copy()], GEOMETRIES["16:9"])
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("order", [1, 2])
def test_kernel_fills_each_row_of_a_batch_from_its_own_frame(order):
    frames = [
        random_frame(40 + 9 * i, 120 - 5 * i, (3, 4, 1)[i % 3]) for i in range(LETTERBOX_ROWS)
    ]
    geometry = GEOMETRIES["no whole words"]
    got, _ = run_kernel(frames, geometry, order=order)
    for row, frame in zip(got, frames, strict=True):
        np.testing.assert_array_equal(row, run_kernel([frame], geometry)[0][0])


def test_boxes_find_back_to_where_the_kernel_took_the_pixels_from():
    frame = np.zeros((400, 700, 3), np.uint8)
    frame[160:240, 280:420] = 255
    (got,), (letterbox,) = run_kernel([frame], GEOMETRIES["16:9"])
    ys, xs = np.nonzero(letterbox.content_of(got)[..., 0] > 127)
    corners = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], np.float32)
    corners += [letterbox.left, letterbox.top] * 2
    pixel = 700 / letterbox.content_hw[1]  # of the input, in pixels of the frame
    np.testing.assert_allclose(letterbox.to_source(corners)[0], [280, 160, 420, 240], atol=pixel)


def test_row_in_numpy_is_the_row_of_the_source():
    (rows, *_rest) = emulate("letterbox.cu").sizes_of_parameters("kestrel_letterbox")
    assert rows == LETTERBOX_ROWS * _ROW.itemsize


def test_sizes_that_32_bits_do_not_hold_are_left_to_the_cpu():
    assert can_letterbox(Letterbox.fit((65_535, 65_535), InputGeometry(8192, 8192)))
    assert not can_letterbox(Letterbox.fit((1, 1_000_000), InputGeometry(640, 2048)))
