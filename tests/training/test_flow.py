"""Flow: its sign and units, warping against an oracle in float64, and the join taken apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from training.layers.flow import (
    FLOW_SCALE,
    FeatFlowNet,
    mean_motion,
    resize_flow,
    warp,
    warp_whole,
)

SAME = 1e-4


def warp_slowly(feature: NDArray, flow: NDArray, padding: str) -> NDArray:
    """`warp` cell by cell in float64, as its docstring says."""
    channels, height, width = feature.shape
    out = np.zeros((channels, height, width))
    for row in range(height):
        for column in range(width):
            x, y = column + flow[0, row, column], row + flow[1, row, column]
            if padding == "border":
                x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
            x0, y0 = int(np.floor(x)), int(np.floor(y))
            for dy in (0, 1):
                for dx in (0, 1):
                    share = (1 - abs(x - x0 - dx)) * (1 - abs(y - y0 - dy))
                    if 0 <= x0 + dx < width and 0 <= y0 + dy < height:
                        out[:, row, column] += share * feature[:, y0 + dy, x0 + dx]
    return out


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("size_hw", [(9, 14), (7, 5), (1, 6)], ids=str)
def test_warp_is_bilinear_and_knows_its_edges(padding, size_hw):
    rng = np.random.default_rng(0)
    feature = rng.standard_normal((2, 3, *size_hw)).astype(np.float32)
    flow = rng.uniform(-4, 4, (2, 2, *size_hw)).astype(np.float32)
    if size_hw[0] == 1:
        flow[:, 1] = 0  # a single row lies between no others
    found = warp(torch.from_numpy(feature), torch.from_numpy(flow), padding=padding).numpy()
    for row in range(2):
        wanted = warp_slowly(feature[row].astype(float), flow[row].astype(float), padding)
        np.testing.assert_allclose(found[row], wanted, rtol=0, atol=SAME)


def test_warp_by_whole_cells_fetches_from_where_the_flow_points():
    feature = torch.arange(5 * 8.0).reshape(1, 1, 5, 8)
    flow = torch.tensor([-3.0, 1.0]).reshape(1, 2, 1, 1).expand(1, 2, 5, 8)
    found = warp(feature, flow)
    torch.testing.assert_close(found[..., :-1, 3:], feature[..., 1:, :-3], rtol=0, atol=SAME)


def test_whole_cells_and_what_is_left_of_the_flow():
    draw = torch.Generator().manual_seed(2)
    feature = torch.randn(2, 3, 9, 14, generator=draw)
    flow = torch.rand(2, 2, 9, 14, generator=draw) * 8 - 4
    found, rest = warp_whole(feature, flow)
    assert rest.abs().max() <= 0.5
    for image in range(2):
        for row in range(9):
            for column in range(14):
                x = min(max(column + float(flow[image, 0, row, column]), 0), 13)
                y = min(max(row + float(flow[image, 1, row, column]), 0), 8)
                wanted = feature[image, :, round(y), round(x)]
                assert torch.equal(found[image, :, row, column], wanted)
                left = torch.tensor([x - round(x), y - round(y)], dtype=torch.float32)
                torch.testing.assert_close(rest[image, :, row, column], left, rtol=0, atol=SAME)


def test_no_flow_changes_nothing():
    feature = torch.randn(2, 3, 18, 32)
    found = warp(feature, torch.zeros(2, 2, 18, 32))
    torch.testing.assert_close(found, feature, rtol=0, atol=SAME)


def test_warp_keeps_the_features_type_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert warp(torch.ones(1, 1, 4, 4).bfloat16(), torch.zeros(1, 2, 4, 4)).dtype == (
            torch.bfloat16
        )


@pytest.mark.parametrize("size_hw", [(36, 64), (9, 16), (5, 7)], ids=str)
def test_resized_flow_points_to_the_same_place(size_hw):
    flow = torch.tensor([3.0, -2.0]).reshape(1, 2, 1, 1).expand(1, 2, 18, 32)
    found = resize_flow(flow, size_hw)
    assert found.shape == (1, 2, *size_hw)
    wanted = torch.tensor([3 * size_hw[1] / 32, -2 * size_hw[0] / 18]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(found, wanted.expand_as(found))


def test_mean_motion_is_in_pixels_of_the_image():
    flow = torch.zeros(2, 2, 6, 10)
    flow[1, 0], flow[1, 1] = 3.0, 4.0
    torch.testing.assert_close(mean_motion(flow, (48, 80)), torch.tensor([0.0, 40.0]))
    torch.testing.assert_close(mean_motion(flow, (48, 160)), torch.tensor([0.0, 3328**0.5]))


@torch.no_grad()
def test_flow_of_a_join_is_the_flow_of_its_two_halves():
    torch.manual_seed(0)
    network = FeatFlowNet(12, reduced=6)
    now, key = torch.randn(2, 1, 12, 13, 9).unbind()
    joined = torch.nn.Conv2d(12, 6, 3, padding=1)
    joined.weight.copy_(torch.cat((network.first_now.weight, network.first_key.weight), 1))
    joined.bias.copy_(network.first_now.bias)
    reduced = [functional.leaky_relu(network.reduce(lateral), 0.1) for lateral in (now, key)]
    whole = joined(torch.cat(reduced, 1))
    halves = network.first_now(reduced[0]) + network.source(key)
    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-6)


@torch.no_grad()
def test_published_units_are_eighths_of_normalised_coordinates():
    torch.manual_seed(0)
    network = FeatFlowNet(12, reduced=6)
    lateral = torch.randn(1, 12, 13, 9)
    raw = []
    network.coarse.flow.register_forward_hook(lambda *args: raw.append(args[-1]))
    (fine, scale, bias), (coarse, _, _) = network(lateral, network.source(lateral))
    assert (fine.shape, coarse.shape) == ((1, 2, 7, 5), (1, 2, 4, 3))
    assert scale.shape == bias.shape == (1, 12, 7, 5)
    steps = torch.tensor([2 / (3 - 1), 2 / (4 - 1)]).reshape(1, 2, 1, 1)  # of a cell, normalised
    torch.testing.assert_close(coarse * steps, raw[0] / FLOW_SCALE)
