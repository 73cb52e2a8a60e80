"""Stacked hourglass: its shapes, its supervision, its loss, and that it learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from training.data.joints import JointSet
from training.errors import TrainingError
from training.layers.hourglass import Hourglass, StackedHourglass
from training.models import build_model, model_variant
from training.models.base import Targets
from training.models.pose_crop.hourglass import HourglassRaw, StackedHourglassPose

THREE = JointSet.of_names(("head", "left_hand", "right_hand"))
SIZE_HW = (40, 32)


def network(**changes) -> StackedHourglassPose:
    torch.manual_seed(0)
    small = {"size_hw": SIZE_HW, "channels": 16, "depth": 2}
    data = {"classes": ("person",), "category_ids": (1,)} | THREE.fields()
    spec = model_variant("hourglass").spec
    return build_model("hourglass", dataclasses.replace(spec, **small | data | changes))


def targets_of(keypoints: torch.Tensor) -> Targets:
    count = len(keypoints)
    box = torch.tensor([[0.0, 0, *SIZE_HW[::-1]]]).expand(count, 1, 4)
    zeros = torch.zeros(count, 1, dtype=torch.long)
    return Targets(box, zeros, zeros.bool(), keypoints=keypoints[:, None])


@pytest.mark.parametrize("size_hw", [(8, 8), (9, 14), (33, 7)], ids=["even", "odd", "thin"])
def test_hourglass_keeps_the_size_that_it_is_given(size_hw):
    feature = torch.rand(2, 8, *size_hw)
    assert Hourglass(8, 2)(feature).shape == feature.shape


def test_hourglass_sees_the_whole_map():
    torch.manual_seed(0)
    module = Hourglass(8, 3).eval()
    feature = torch.zeros(1, 8, 32, 32, requires_grad=True)
    module(feature)[0, :, 16, 16].sum().backward()
    seen = (feature.grad[0].abs().sum(0) > 0).nonzero()
    assert seen.min() <= 3
    assert seen.max() >= 28


@pytest.mark.parametrize("num_maps", [0, 5])
def test_every_stack_gives_features_and_predicts_where_it_is_to(num_maps):
    features, maps = StackedHourglass(16, 3, 2, num_maps)(torch.rand(2, 3, 48, 64))
    assert [tuple(f.shape) for f in features] == [(2, 16, 12, 16)] * 3
    assert [tuple(m.shape) for m in maps] == [(2, num_maps, 12, 16)] * (3 if num_maps else 0)


def test_what_a_stack_predicts_reaches_the_next():
    torch.manual_seed(0)
    module = StackedHourglass(16, 2, 2, 5).eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        before = module(image)[1]
        module.predict[0].bias += 1
        after = module(image)[1]
    assert not torch.allclose(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


@pytest.mark.parametrize(
    "numbers", [(15, 1, 2), (16, 0, 2), (16, 1, 0)], ids=["odd", "no-stack", "no-depth"]
)
def test_impossible_hourglasses_are_refused(numbers):
    with pytest.raises(TrainingError, match="expected one or more, an even number of channels"):
        StackedHourglass(*numbers)


def test_published_variant_has_the_parameters_of_the_paper_s_network():
    """6.7 million of two stacks: 3.5 of one, 3.2 of each further one, as widely reported."""
    spec = model_variant("hourglass", "hg8").spec
    changes = {"classes": ("person",), "category_ids": (1,), "num_stacks": 2}
    with torch.device("meta"):
        model = build_model("hourglass", dataclasses.replace(spec, **changes))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert 6.4 < millions < 7.0


@pytest.mark.parametrize(
    "changes", [{"joints": ()}, {"size_hw": (64, 24)}], ids=["no-joints", "too-narrow"]
)
def test_spec_that_cannot_be_is_refused(changes):
    with pytest.raises(TrainingError, match="expected at least one joint and sides of 28 pixels"):
        network(**changes)


def test_loss_is_the_squared_error_of_labelled_joints_at_every_stack():
    model = network(num_stacks=2)
    keypoints = torch.tensor([[[9.0, 14.5, 2], [20.0, 30.0, 1], [0, 0, 0]]])
    draw = torch.Generator().manual_seed(3)
    maps = [torch.rand(1, 3, 10, 8, generator=draw) for _ in range(2)]
    losses = model.loss(HourglassRaw(maps), targets_of(keypoints))
    assert list(losses) == ["stack_1", "stack_2"]
    ys, xs = np.mgrid[0:10, 0:8] + 0.5
    for found, loss in zip(maps, losses.values(), strict=True):
        errors = []
        for joint in range(2):
            x, y = keypoints[0, joint, :2].numpy() / 4
            wanted = np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * model.spec.sigma**2))
            errors.append(((found[0, joint].numpy() - wanted) ** 2).sum())
        assert float(loss) == pytest.approx(np.mean(errors), rel=1e-5)


def test_crop_without_a_labelled_joint_teaches_nothing():
    model = network()
    raw = model(torch.rand(2, 3, *SIZE_HW))
    losses = model.loss(raw, targets_of(torch.zeros(2, 3, 3)))
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert float(total.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_targets_without_joints_are_refused():
    targets = targets_of(torch.zeros(1, 3, 3))
    targets.keypoints = None
    model = network()
    with pytest.raises(TrainingError, match="carry no joints"):
        model.loss(model(torch.rand(1, 3, *SIZE_HW)), targets)


def test_joints_are_in_pixels_of_the_crop():
    model = network()
    points = torch.tensor([[9.3, 14.5], [24.0, 30.6], [16.0, 20.0]])
    cells = torch.arange(10)[:, None] + 0.5, torch.arange(8)[None] + 0.5
    maps = torch.stack(
        [torch.exp(-((cells[1] - x) ** 2 + (cells[0] - y) ** 2) / 4.5) for x, y in points / 4]
    )[None]
    found = model.candidates(HourglassRaw([torch.zeros_like(maps), maps]))
    torch.testing.assert_close(found[0, :, :2], points, rtol=0, atol=0.2)


def test_network_learns_where_the_blobs_are():
    model = network(num_stacks=1, channels=32).train()
    rng = np.random.default_rng(0)
    colours = torch.eye(3) * 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    ys, xs = torch.meshgrid(*(torch.arange(s) + 0.5 for s in SIZE_HW), indexing="ij")
    for step in range(61):
        points = torch.from_numpy(rng.uniform(4, 28, (8, 3, 2)).astype(np.float32))
        gaps = (xs - points[..., :1, None]) ** 2 + (ys - points[..., 1:, None]) ** 2
        images = torch.einsum("bjhw,jc->bchw", torch.exp(-gaps / 18), colours)
        if step == 60:
            break
        keypoints = torch.cat((points, torch.full((8, 3, 1), 2.0)), -1)
        losses = model.loss(model(images), targets_of(keypoints))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    for module in model.modules():  # statistics of the last batches are too few to use
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    with torch.no_grad():
        found = model.eval().candidates(model(images))
    assert (found[..., :2] - points).norm(dim=-1).median() < 2
