"""CenterNet: targets, losses, decode of planted objects and joints, and that it learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_models import frames_of
from tiny_points import STRIDE, planted, point_network, two_people

from training.errors import TrainingError
from training.layers.joint_snapping import SNAP_SHARE
from training.layers.light_decoder import LightDecoder
from training.layers.point_heads import PRIOR
from training.models.base import Targets
from training.models.detection.centernet import CenterNetRaw
from training.tasks.detection import select_rows

ANY_SIZE = [(64, 96), (90, 150), (67, 99)]
LEARNT = 0.5  # share of the first losses that is left after overfitting, at most


def rows_of(model, raw):
    """The boxes, scores and cells that a raw output comes to, of the first image."""
    return next(iter(select_rows(model, model.candidates(raw), 0.3, None)))


@pytest.fixture(scope="module")
def pose():
    """As it was published: centres' own cells alone point to joints."""
    return point_network("centernet_pose", way_reach=0, place_weight=0.0).eval()


# ------------------------------------------------------------------------------------------ network


@pytest.mark.parametrize("size_hw", ANY_SIZE, ids=str)
@pytest.mark.parametrize("variant", ["small", "hourglass"])
def test_maps_have_stride_4_at_any_size(variant, size_hw):
    model = point_network("centernet_pose", variant).eval()
    with torch.no_grad():
        raw = model(torch.zeros(1, 3, *size_hw))
    height, width = raw.stacks[0]["heatmap"].shape[2:]
    assert abs(height - size_hw[0] / STRIDE) < 1
    assert abs(width - size_hw[1] / STRIDE) < 1
    assert len(raw.stacks) == dict(model.spec.backbone_args).get("num_stacks", 1)
    for maps in raw.stacks:
        assert {name: m.shape[1] for name, m in maps.items()} == model.map_widths()
        assert all(m.shape[2:] == (height, width) for m in maps.values())


def test_fresh_network_scores_every_cell_by_the_prior():
    model = point_network("centernet", classes=("a", "b"), category_ids=(1, 2)).eval()
    with torch.no_grad():
        scores = model(model.prepare(frames_of(1))).stacks[0]["heatmap"].sigmoid()
    torch.testing.assert_close(scores, torch.full_like(scores, PRIOR), atol=0.02, rtol=0)


def test_heads_of_their_own_see_more_than_one_shared_one():
    shared, own = (point_network("centernet", has_shared_head=s).heads[0] for s in (True, False))
    assert (len(shared.convs), len(own.convs)) == (1, 3)


def test_decoder_refuses_what_engines_do_not_have():
    with pytest.raises(TrainingError, match="'bicubic'.*nearest, bilinear"):
        LightDecoder([8, 8, 8, 8], (8, 8, 8, 8), "bicubic")
    with pytest.raises(TrainingError, match="expected 4 numbers"):
        LightDecoder([8, 8, 8, 8], (8, 8))


def test_pose_network_without_joints_is_refused():
    with pytest.raises(TrainingError, match="names no joints"):
        point_network("centernet_pose", joints=())


# ------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("name", ["centernet", "centernet_pose"])
@pytest.mark.parametrize("variant", ["small", "hourglass"])
def test_losses_and_gradients_are_finite_and_reach_every_weight(name, variant):
    model = point_network(name, variant).train()
    targets = two_people(17)
    losses = model.loss(model(model.prepare(frames_of(2))), targets)
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    gradients = {key: p.grad for key, p in model.named_parameters()}
    assert [key for key, grad in gradients.items() if grad is None] == []
    assert all(grad.isfinite().all() for grad in gradients.values())


@pytest.mark.parametrize("name", ["centernet", "centernet_pose"])
def test_picture_without_objects_has_finite_losses(name):
    model = point_network(name).train()
    none = torch.zeros(2, 0, dtype=torch.int64)
    targets = Targets(torch.zeros(2, 0, 4), none, none.bool(), None, torch.zeros(2, 0, 17, 3))
    losses = model.loss(model(model.prepare(frames_of(2))), targets)
    assert losses["heatmap"] > 0
    assert all(loss.isfinite() for loss in losses.values())


def test_what_the_targets_say_has_no_loss_but_for_the_heatmaps_and_rough_ways(pose):
    targets = two_people(17)
    losses = pose.loss(planted(pose, targets, (64, 96)), targets)
    for name in ("size", "offset", "joint_offset"):
        torch.testing.assert_close(losses[name], torch.zeros(()), atol=1e-5, rtol=0)
    torch.testing.assert_close(losses["displacement"], torch.tensor(0.3), atol=1e-5, rtol=0)
    blank = planted(pose, dataclasses.replace(targets, classes=targets.classes * 0 - 1), (64, 96))
    worse = pose.loss(blank, targets)
    assert losses["heatmap"] < 0.2 * worse["heatmap"]
    assert losses["joint_heatmap"] < 0.2 * worse["joint_heatmap"]


def test_nothing_is_learnt_inside_a_crowd_but_at_centres(pose):
    targets = two_people(17)
    targets.classes[0, 1], targets.is_crowd[0, 1] = 0, True
    targets.boxes_xyxy[0, 1] = torch.tensor([20.0, 20, 90, 60])
    wanted = pose.centre_targets(targets, 0, (1, 16, 24))
    assert (wanted.weights[0, 5:15, 5:22] == 0).sum() == 10 * 17 - 1
    assert wanted.weights[0, 8, 6] == 1  # the centre of a person inside the crowd
    assert wanted.weights[0, :5].all()
    assert len(wanted.cells) == 1


def test_joints_of_an_object_without_labels_are_neither_there_nor_absent(pose):
    wanted = pose.joint_targets(two_people(17), 1, (16, 24))
    assert not wanted.weights[:, 3:12, 17:23].any()
    assert wanted.weights[:, :, 2:14].all()
    assert len(wanted.owners) == 17


def test_joint_outside_of_the_frame_has_a_way_but_no_peak(pose):
    targets = two_people(17)
    targets.keypoints[0, 0, 3] = torch.tensor([-9.0, 20.0, 2.0])
    wanted = pose.joint_targets(targets, 0, (16, 24))
    assert (len(wanted.owners), len(wanted.cells)) == (16, 15)
    assert not wanted.heatmap[3].any()


def test_cells_around_a_centre_point_to_its_joints_from_where_they_are():
    targets = two_people(17)
    alone, near = (
        point_network("centernet_pose", way_reach=reach).joint_targets(targets, 1, (16, 24))
        for reach in (0, 1)
    )
    assert len(near.owners) == 9 * len(alone.owners)
    places = near.ways_xy + torch.stack((near.owners % 24, near.owners // 24), 1)
    for joint in range(17):
        own = (
            alone.ways_xy[alone.joints == joint]
            + torch.stack((alone.owners % 24, alone.owners // 24), 1)[alone.joints == joint]
        )
        torch.testing.assert_close(places[near.joints == joint], own.expand(9, 2))


def test_cells_beyond_the_border_point_nowhere():
    targets = two_people(17)
    targets.boxes_xyxy[0, 0] = torch.tensor([-20.0, -20, 22, 22])  # its centre in the corner cell
    wanted = point_network("centernet_pose", way_reach=1).joint_targets(targets, 0, (16, 24))
    assert set(wanted.owners.tolist()) == {0, 1, 24, 25}


def test_where_a_joint_is_among_its_persons_cells_is_learnt_only_there():
    pose = point_network("centernet_pose", place_weight=1.0).train()
    targets = two_people(17)
    maps = {
        name: torch.zeros(2, width, 16, 24, requires_grad=True)
        for name, width in pose.map_widths().items()
    }
    losses = pose.loss(CenterNetRaw([maps], (64, 96)), targets)
    losses["joint_place"].backward()
    slopes = maps["joint_heatmap"].grad
    assert (slopes[0, 1, 2:15, 2:11] != 0).all()  # the box reaches from (2.5, 2) to (10.25, 15)
    assert (slopes[0, 1, :, 14:] == 0).all()
    assert (slopes[0, 0] == 0).all()  # not labelled
    x, y = (targets.keypoints[0, 0, 1, :2] / STRIDE).long()
    assert slopes[0, 1].argmin() == y * 24 + x  # what most is to grow


@pytest.mark.parametrize("name", ["centernet", "centernet_pose"])
def test_network_learns_two_pictures(name):
    model = point_network(name).train()
    targets, images = two_people(17), model.prepare(frames_of(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    totals = []
    for _ in range(40):
        total = torch.stack(list(model.loss(model(images), targets).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert np.mean(totals[-3:]) < LEARNT * np.mean(totals[:3])


# ------------------------------------------------------------------------------------------- decode


@pytest.mark.parametrize("size_hw", ANY_SIZE, ids=str)
def test_planted_boxes_are_found_exactly(size_hw):
    model = point_network("centernet", classes=("a", "b"), category_ids=(1, 2)).eval()
    targets = dataclasses.replace(two_people(0), keypoints=None)
    targets.classes[1, 1] = 1
    found = list(select_rows(model, model.candidates(planted(model, targets, size_hw)), 0.3, None))
    for image, rows in enumerate(found):
        is_real = targets.classes[image] >= 0
        assert torch.equal(rows.classes, targets.classes[image][is_real])
        torch.testing.assert_close(rows.boxes_xyxy, targets.boxes_xyxy[image][is_real])


@pytest.mark.parametrize("size_hw", ANY_SIZE, ids=str)
def test_planted_joints_are_found_exactly_where_they_have_peaks(pose, size_hw):
    targets = two_people(17)
    raw = planted(pose, targets, size_hw)
    found = pose.candidates(raw)
    rows = list(select_rows(pose, found, 0.3, None))
    joints = found.decode_keypoints(torch.stack([rows[0].anchors[:1], rows[1].anchors[:1]]))
    is_labelled = targets.keypoints[:, 0, :, 2] > 0
    torch.testing.assert_close(
        joints[:, 0, :, :2][is_labelled], targets.keypoints[:, 0, :, :2][is_labelled]
    )
    torch.testing.assert_close(joints[:, 0, :, 2][is_labelled], torch.full((33,), 2.0).sigmoid())
    assert (joints[0, 0, 0, 2] < 0.01).all()  # no peak: where it points to, without confidence


def snapped(pose, peak_xy, way_xy=(0.0, 0.0), logit=2.0):
    """Joint 0 of a box of 20 x 30 cells around (12.5, 15.5), with one peak, in cells."""
    names = pose.map_widths()
    maps = {name: torch.zeros(1, width, 32, 40) for name, width in names.items()}
    maps["joint_heatmap"] -= 8
    maps["size"][:] = torch.tensor([20.0, 30.0]).reshape(1, 2, 1, 1)
    maps["offset"] += 0.5
    maps["joint_heatmap"][0, 0, peak_xy[1], peak_xy[0]] = logit
    maps["displacement"][0, :2, 15, 12] = torch.tensor(way_xy)
    raw = CenterNetRaw([maps], (128, 160))
    return pose.candidates(raw).decode_keypoints(torch.tensor([[15 * 40 + 12]]))[0, 0, 0] / STRIDE


def test_joint_moves_to_a_peak_that_is_near_enough(pose):
    reach = SNAP_SHARE * 30
    near, far = int(reach), int(reach) + 1
    assert snapped(pose, (12, 15 + near))[:2].tolist() == [12, 15 + near]
    assert snapped(pose, (12, 15 + far))[:2].tolist() == [12, 15]


def test_joint_does_not_move_out_of_its_box_nor_to_a_weak_peak(pose):
    assert snapped(pose, (23, 15), (8.0, 0.0))[:2].tolist() == [20, 15]  # the box ends at 22.5
    assert snapped(pose, (22, 15), (8.0, 0.0))[:2].tolist() == [22, 15]
    assert snapped(pose, (12, 18), logit=-2.3)[:2].tolist() == [12, 15]  # 0.091
    assert snapped(pose, (12, 18), logit=-2.1)[:2].tolist() == [12, 18]  # 0.109


def test_confidence_of_a_joint_without_a_peak_is_that_of_its_cell(pose):
    found = snapped(pose, (30, 20), (18.0, 5.0), logit=1.0)
    assert found[:2].tolist() == [30, 20]
    torch.testing.assert_close(found[2] * STRIDE, torch.tensor(1.0).sigmoid())


@pytest.mark.parametrize("name", ["heatmap", "size", "offset"])
def test_cell_with_nan_is_never_kept(name):
    model = point_network("centernet").eval()
    raw = planted(model, two_people(0), (64, 96))
    kept = rows_of(model, raw)
    assert len(kept.scores) == 1
    raw.stacks[0][name].flatten(2)[0, 0, kept.anchors[0]] = torch.nan
    assert len(rows_of(model, raw).scores) == 0
    assert not model.candidates(raw).logits.isnan().any()


def test_joints_are_finite_whatever_the_maps_say(pose):
    raw = planted(pose, two_people(17), (64, 96))
    for name in ("displacement", "joint_heatmap", "joint_offset"):
        raw.stacks[0][name][..., ::2] = torch.nan
        raw.stacks[0][name][..., 1::3] = torch.inf
    found = pose.candidates(raw)
    assert found.decode_keypoints(torch.arange(384).expand(2, -1)).isfinite().all()
