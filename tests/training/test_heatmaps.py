"""Heatmaps of points: their targets against NumPy in float64, their peaks against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from training.layers.heatmaps import (
    LOWEST,
    cells_at,
    draw_gaussians,
    gaussian_radius,
    is_inside,
    keep_peaks,
    rows_of_batch,
)
from training.losses.heatmaps import absolute_error, penalty_reduced_focal_loss, place_entropy

SIZES = torch.tensor([[10.0, 10.0], [40.0, 7.0], [3.0, 90.0], [1.5, 1.0]])


def gaussians_in_numpy(cells, radii, channels, shape) -> np.ndarray:
    """The largest Gaussian at every cell, cell by cell, in float64."""
    result = np.zeros(shape)
    for (column, row), radius, channel in zip(cells, radii, channels, strict=True):
        reach = int(radius)
        sigma = (2 * reach + 1) / 6
        for y in range(max(0, row - reach), min(shape[1], row + reach + 1)):
            for x in range(max(0, column - reach), min(shape[2], column + reach + 1)):
                value = np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * sigma**2))
                result[channel, y, x] = max(result[channel, y, x], value)
    return result


def peaks_in_numpy(logits: np.ndarray) -> np.ndarray:
    """Of every image and channel the cells that no neighbour exceeds; of equal ones the first."""
    highest = np.full(logits.shape, False)
    for place in np.ndindex(logits.shape):
        highest[place] = all(logits[place] >= logits[p] for p in neighbours(place, logits.shape))
    result = np.full(logits.shape, LOWEST, np.float32)
    for place in zip(*np.nonzero(highest), strict=True):
        if not any(highest[p] and p < place for p in neighbours(place, logits.shape)):
            result[place] = logits[place]
    return result


def neighbours(place, shape):
    rows = range(max(0, place[2] - 1), min(shape[2], place[2] + 2))
    columns = range(max(0, place[3] - 1), min(shape[3], place[3] + 2))
    return [(*place[:2], y, x) for y in rows for x in columns if (y, x) != place[2:]]


# ------------------------------------------------------------------------------------------ targets


@pytest.mark.parametrize("overlap", [0.3, 0.7, 0.95])
def test_box_whose_corners_move_by_the_radius_overlaps_as_asked_in_the_worst_case(overlap):
    radii = gaussian_radius(SIZES.double(), overlap)
    worst = []
    for size, radius in zip(SIZES.double(), radii, strict=True):
        box = torch.cat((torch.zeros(2), size)).double()[None]
        moves = radius * torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1], [-1, -1, 1, 1]]).double()
        worst.append(box_iou(box, box + moves).min())
    torch.testing.assert_close(torch.stack(worst), torch.full((4,), overlap).double())


def test_box_without_an_area_has_radius_0():
    sizes = torch.tensor([[0.0, 0.0], [0.0, 8.0]])
    torch.testing.assert_close(gaussian_radius(sizes), torch.zeros(2))


def test_gaussians_are_those_of_float64_and_1_at_their_cells():
    rng = np.random.default_rng(0)
    cells = rng.integers(0, (23, 17), (30, 2))
    radii, channels = rng.uniform(0, 6, 30), rng.integers(0, 3, 30)
    shape = (4, 17, 23)
    found = draw_gaussians(
        torch.from_numpy(cells), torch.from_numpy(radii).float(), torch.from_numpy(channels), shape
    )
    np.testing.assert_allclose(
        found.numpy(), gaussians_in_numpy(cells, radii, channels, shape), atol=1e-6
    )
    assert (found[channels, cells[:, 1], cells[:, 0]] == 1).all()
    assert not found[3].any()


def test_no_points_draw_nothing():
    none = torch.zeros(0, dtype=torch.int64)
    heatmap = draw_gaussians(none.reshape(0, 2), torch.zeros(0), none, (2, 5, 7))
    assert heatmap.shape == (2, 5, 7)
    assert not heatmap.any()


def test_cell_of_a_point_is_its_whole_part_inside_the_map():
    points = torch.tensor([[0.0, 0.99], [3.5, 2.0], [-2.0, 1.0], [99.0, 99.0]])
    assert cells_at(points, (5, 4)).tolist() == [[0, 0], [3, 2], [0, 1], [3, 4]]


def test_cells_inside_a_box_are_those_with_their_middle_in_it():
    inside = is_inside(torch.tensor([0.6, 1.0, 2.6, 2.4]), (4, 5))
    assert inside.nonzero().tolist() == [[1, 1], [1, 2]]


# -------------------------------------------------------------------------------------------- peaks


@pytest.mark.parametrize("size_hw", [(9, 13), (1, 5), (1, 1)], ids=str)
def test_peaks_are_those_of_a_plain_loop_also_on_plateaus(size_hw):
    rng = np.random.default_rng(1)
    logits = rng.integers(0, 4, (2, 3, *size_hw)).astype(np.float32)  # ties everywhere
    found = keep_peaks(torch.from_numpy(logits)).numpy()
    np.testing.assert_array_equal(found, peaks_in_numpy(logits))
    assert (found > LOWEST).any()


def test_plateau_is_one_peak_at_its_first_cell():
    logits = torch.zeros(1, 1, 5, 6)
    logits[0, 0, 2, 1:5] = 3.0
    peaks = keep_peaks(logits)[0, 0]
    assert (peaks == 3).nonzero().tolist() == [[2, 1]]


def test_nan_is_no_peak_and_hides_none():
    logits = torch.zeros(1, 1, 5, 5)
    logits[0, 0, 2, 2], logits[0, 0, 2, 3] = 4.0, torch.nan
    peaks = keep_peaks(logits)
    assert not peaks.isnan().any()
    assert peaks[0, 0, 2, 2] == 4
    assert peaks[0, 0, 2, 3] == LOWEST


# ------------------------------------------------------------------------------------------- losses


def test_focal_loss_is_the_papers_formula_in_float64():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 6, 7, generator=draw) * 3
    heatmap = torch.rand(2, 3, 6, 7, generator=draw)
    heatmap.view(-1)[::11] = 1.0
    weights = (torch.rand(2, 3, 6, 7, generator=draw) > 0.2).float()
    p, y = logits.double().sigmoid(), heatmap.double()
    centre = (1 - p) ** 2 * p.log()
    other = (1 - y) ** 4 * p**2 * (1 - p).log()
    wanted = -(torch.where(y == 1, centre, other) * weights).sum()
    found = penalty_reduced_focal_loss(logits, heatmap, weights)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)


def test_focal_loss_stays_finite_at_wild_logits():
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    loss = penalty_reduced_focal_loss(logits, torch.tensor([1.0, 1.0, 0.0, 0.5]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_error_is_taken_at_the_cells_of_each_image():
    maps = torch.arange(2 * 2 * 3 * 4.0).reshape(2, 2, 3, 4)
    rows, places = rows_of_batch([torch.tensor([5]), torch.tensor([0, 11])], (3, 4))
    assert places.tolist() == [[1, 1], [0, 0], [3, 2]]
    wanted = torch.stack((maps[0, :, 1, 1], maps[1, :, 0, 0], maps[1, :, 2, 3]))
    assert absolute_error(maps, rows, wanted) == 0
    assert absolute_error(maps, rows, wanted + 0.5) == 3


def test_place_entropy_against_float64():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(4, 9, 13))
    places = rng.uniform((2, 2), (9, 7), (4, 2))
    regions = np.concatenate((places - rng.uniform(1, 3, (4, 2)), places + 3.2), 1)
    total = 0.0
    for image, (x, y), (x1, y1, x2, y2) in zip(logits, places, regions, strict=True):
        cells = [
            (row, column)
            for row in range(9)
            for column in range(13)
            if y1 <= row + 0.5 < y2 and x1 <= column + 0.5 < x2
        ]
        values = np.array([image[cell] for cell in cells])
        shares = values - np.log(np.exp(values).sum())
        squares = np.array([(r + 0.5 - y) ** 2 + (c + 0.5 - x) ** 2 for r, c in cells])
        bell = np.exp(-squares / (2 * 0.75**2))
        total -= (bell / bell.sum() * shares).sum()
    found = place_entropy(*(torch.from_numpy(each) for each in (logits, places, regions)))
    assert float(found) == pytest.approx(total, rel=1e-9)
