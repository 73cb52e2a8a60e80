"""RetinaFace: anchors, coding, losses, decoded landmarks, and that it learns."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from training.errors import TrainingError
from training.layers.box_coding import encode_boxes
from training.layers.context import ContextModule, FacePyramid
from training.layers.face_trunks import QuarterMobileNet, SlimTrunk
from training.layers.point_coding import decode_points, encode_points
from training.models import build_model, model_variant
from training.models.base import Targets
from training.models.keypoints.retinaface import RetinaFace, RetinaFaceRaw

SIZE_HW = (64, 96)
SAME_PX = 1e-3  # float32 against float64 at coordinates of some hundred pixels
SMALL = {"backbone_args": (("channels", (16, 16, 24, 32)),), "fpn_channels": 16}


def network(variant: str = "mobilenet025", **changes) -> RetinaFace:
    torch.manual_seed(0)
    spec = model_variant("retinaface", variant).spec
    data = {"size_hw": SIZE_HW, "classes": ("face",), "category_ids": (1,)}
    small = SMALL if variant in ("small", "resnet50") else {}
    return build_model("retinaface", dataclasses.replace(spec, **data | small | changes)).eval()


def targets_of(boxes, keypoints, *, crowd=False) -> Targets:
    boxes = torch.tensor([boxes])
    classes = torch.zeros(boxes.shape[:2], dtype=torch.long)
    is_crowd = torch.full(boxes.shape[:2], crowd)
    return Targets(boxes, classes, is_crowd, keypoints=torch.tensor([keypoints]))


def marked(box, visible=2.0):
    """Five landmarks inside a box, as a face has them."""
    x1, y1, x2, y2 = box
    shares = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
    return [[x1 + (x2 - x1) * u, y1 + (y2 - y1) * v, visible] for u, v in shares]


def raw_of(model: RetinaFace, seed: int = 0, batch: int = 1) -> RetinaFaceRaw:
    """A raw output of noise, whose gradient can be asked for."""
    with torch.no_grad():
        raw = model(torch.zeros(batch, 3, *SIZE_HW))
    draw = torch.Generator().manual_seed(seed)
    noise = [torch.randn(t.shape, generator=draw).requires_grad_() for t in raw[:3]]
    return raw._replace(logits=noise[0], deltas=noise[1], landmarks=noise[2])


# ------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("variant", ["small", "mobilenet025", "slim", "rfb", "resnet50"])
@pytest.mark.parametrize("size_hw", [(64, 96), (70, 101)], ids=["even", "odd"])
def test_rows_of_all_heads_are_those_of_the_anchors(variant, size_hw):
    model = network(variant)
    with torch.no_grad():
        raw = model(torch.zeros(2, 3, *size_hw))
    count = len(raw.anchors)
    assert raw.logits.shape == (2, count, 1 if variant == "small" else 2)
    assert raw.deltas.shape == (2, count, 4)
    assert raw.landmarks.shape == (2, count, 10)
    assert sum(raw.level_counts) == count


@pytest.mark.parametrize("variant", ["mobilenet025", "slim", "small"])
def test_anchors_are_squares_in_the_middle_of_their_cells(variant):
    model = network(variant)
    with torch.no_grad():
        anchors = model(torch.zeros(1, 3, 70, 101)).anchors.numpy()
    wanted = []
    for stride, sides in zip(model.spec.strides, model.spec.sides, strict=True):
        rows, columns = -(-70 // stride), -(-101 // stride)
        for row, column, side in itertools.product(range(rows), range(columns), sides):
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            wanted.append((x - side / 2, y - side / 2, x + side / 2, y + side / 2))
    np.testing.assert_allclose(anchors, np.array(wanted), atol=SAME_PX)


def test_trunks_have_the_strides_that_they_promise():
    image = torch.zeros(1, 3, 65, 130)
    for trunk, levels in ((QuarterMobileNet(0.1), 3), (SlimTrunk(has_receptive_field=True), 4)):
        found = [tuple(f.shape[1:]) for f in trunk(image)]
        strides = (8, 16, 32, 64)[:levels]
        sizes = [(-(-65 // s), -(-130 // s)) for s in strides]
        assert found == [(c, *hw) for c, hw in zip(trunk.channels, sizes, strict=True)]


def test_pyramid_hands_what_is_coarse_to_what_is_fine_and_not_back():
    torch.manual_seed(0)
    pyramid = FacePyramid([4, 6, 8], 16, 0.1).eval()
    levels = [torch.rand(1, c, s, s) for c, s in ((4, 8), (6, 4), (8, 2))]
    before = pyramid(levels)
    coarse = pyramid([*levels[:2], levels[2] + 1])
    fine = pyramid([levels[0] + 1, *levels[1:]])
    assert all(not torch.allclose(a, b) for a, b in zip(before, coarse, strict=True))
    assert [torch.allclose(a, b) for a, b in zip(before, fine, strict=True)] == [False, True, True]


def test_context_module_sees_seven_cells_on_its_last_quarter():
    torch.manual_seed(0)
    module = ContextModule(16, 0.1).eval()
    feature = torch.rand(1, 16, 15, 15, requires_grad=True)
    for part, side in ((slice(0, 8), 3), (slice(8, 12), 5), (slice(12, 16), 7)):
        (grad,) = torch.autograd.grad(module(feature)[0, part, 7, 7].sum(), feature)
        seen = (grad[0].abs().sum(0) > 0).nonzero()
        assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [side, side]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"joints": ()}, "0 landmarks"),
        ({"sides": ((16, 32),)}, "anchors of 1 levels"),
        ({"strides": (8, 16, 64)}, r"strides \(8, 16, 32\); the spec has \(8, 16, 64\)"),
    ],
    ids=["no-landmarks", "levels", "strides"],
)
def test_spec_that_cannot_be_is_refused(changes, says):
    with pytest.raises(TrainingError, match=says):
        network(**changes)


# -------------------------------------------------------------------------------------- coding


def test_points_survive_coding():
    draw = torch.Generator().manual_seed(0)
    low = torch.rand(7, 2, generator=draw, dtype=torch.float64) * 90
    size = 10 + 80 * torch.rand(7, 2, generator=draw, dtype=torch.float64)
    anchors = torch.cat((low, low + size), 1)
    points = torch.rand(7, 5, 2, generator=draw, dtype=torch.float64) * 200 - 50
    coded = encode_points(points, anchors, 0.1)
    torch.testing.assert_close(decode_points(coded, anchors, 0.1), points)


@pytest.mark.parametrize("variant", ["mobilenet025", "small"])
def test_rows_are_decoded_by_the_published_formula(variant):
    model = network(variant, has_clipped_boxes=False)
    raw = raw_of(model, batch=2)
    found = model.candidates(raw)
    indices = torch.tensor([[5, 0, 77], [3, 3, 100]])
    boxes = found.decode(indices).detach().numpy()
    points = found.decode_keypoints(indices).detach().numpy()
    shift, scale = model.spec.variances
    for image, row in itertools.product(range(2), range(3)):
        index = int(indices[image, row])
        x1, y1, x2, y2 = raw.anchors[index].double().numpy()
        w, h, x, y = x2 - x1, y2 - y1, (x1 + x2) / 2, (y1 + y2) / 2
        dx, dy, dw, dh = raw.deltas[image, index].detach().double().numpy()
        cx, cy = x + dx * shift * w, y + dy * shift * h
        half = w * np.exp(dw * scale) / 2, h * np.exp(dh * scale) / 2
        wanted = [cx - half[0], cy - half[1], cx + half[0], cy + half[1]]
        np.testing.assert_allclose(boxes[image, row], wanted, atol=SAME_PX)
        coded = raw.landmarks[image, index].detach().double().numpy().reshape(5, 2)
        wanted = np.array([x, y]) + coded * shift * np.array([w, h])
        np.testing.assert_allclose(points[image, row, :, :2], wanted, atol=SAME_PX)
        logits = raw.logits[image, index].detach().double().numpy()
        score = 1 / (1 + np.exp(-logits[0]))
        if variant == "mobilenet025":
            score = np.exp(logits[1]) / np.exp(logits).sum()
        np.testing.assert_allclose(points[image, row, :, 2], score, atol=1e-6)


def test_softmax_gives_the_share_of_the_face_and_not_of_the_background():
    model = network()
    raw = raw_of(model)
    scores = model.candidates(raw).logits
    torch.testing.assert_close(scores, functional.softmax(raw.logits, -1)[..., 1:])
    assert model.candidates(raw).activation == "none"


# ---------------------------------------------------------------------------------------- losses

BOX = [20.0, 10.0, 50.0, 44.0]


@pytest.mark.parametrize("variant", ["mobilenet025", "small"])
def test_losses_are_nothing_where_boxes_and_landmarks_are_true(variant):
    model = network(variant)
    raw = raw_of(model)
    targets = targets_of([BOX], [marked(BOX)])
    anchors = raw.anchors
    with torch.no_grad():
        shift, scale = model.spec.variances
        coded = encode_boxes(torch.tensor(BOX).expand(len(anchors), 4), anchors)
        raw.deltas[0] = coded / torch.tensor([shift, shift, scale, scale])
        truth = targets.keypoints[0, 0, :, :2].expand(len(anchors), 5, 2)
        raw.landmarks[0] = encode_points(truth, anchors, shift).flatten(1)
    losses = model.loss(raw, targets)
    assert float(losses["boxes"].detach()) == pytest.approx(0, abs=1e-4)
    assert float(losses["landmarks"].detach()) == pytest.approx(0, abs=1e-4)
    assert float(losses["scores"].detach()) > 0.1


def test_landmark_loss_is_smooth_l1_of_the_published_coding():
    model = network()
    raw = raw_of(model)
    box = [18.0, 8.0, 52.0, 42.0]
    targets = targets_of([box], [marked(box)])
    match, _ = model._match(raw, targets, 0)
    rows = (match >= 0).nonzero()[:, 0]
    assert len(rows) > 1
    total = 0.0
    for row in rows.tolist():
        x1, y1, x2, y2 = raw.anchors[row].tolist()
        for joint, (x, y, _) in enumerate(marked(box)):
            wanted = ((x - (x1 + x2) / 2) / (x2 - x1) / 0.1, (y - (y1 + y2) / 2) / (y2 - y1) / 0.1)
            for axis in range(2):
                gap = abs(float(raw.landmarks[0, row, 2 * joint + axis]) - wanted[axis])
                total += 0.5 * gap**2 if gap < 1 else gap - 0.5
    assert float(model.loss(raw, targets)["landmarks"]) == pytest.approx(
        total / len(rows), rel=1e-4
    )


def test_landmarks_that_are_not_labelled_teach_nothing():
    model = network()
    raw = raw_of(model)
    unlabelled = [[0.0, 0.0, 0.0]] * 5
    losses = model.loss(raw, targets_of([BOX], [unlabelled]))
    assert float(losses["landmarks"]) == 0
    assert float(losses["boxes"]) > 0
    half = [[*point[:2], 2.0 * (number < 2)] for number, point in enumerate(marked(BOX))]
    model.loss(raw, targets_of([BOX], [half]))["landmarks"].backward()
    taught = raw.landmarks.grad[0].abs().sum(0)
    assert (taught[:4] > 0).all()
    assert (taught[4:] == 0).all()


@pytest.mark.parametrize("variant", ["mobilenet025", "small"])
def test_a_crowd_is_neither_a_face_nor_background(variant):
    model = network(variant)
    raw = raw_of(model)
    everywhere = [-1000.0, -1000.0, 1000.0, 1000.0]
    losses = model.loss(raw, targets_of([everywhere], [marked(everywhere)], crowd=True))
    assert all(float(loss) == 0 for loss in losses.values())


@pytest.mark.parametrize("variant", ["mobilenet025", "small"])
def test_losses_of_images_without_faces_are_finite(variant):
    model = network(variant)
    raw = raw_of(model)
    targets = Targets(
        torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.long),
        torch.zeros(1, 0, dtype=torch.bool), keypoints=torch.zeros(1, 0, 5, 3),
    )  # fmt: skip
    losses = model.loss(raw, targets)
    torch.stack(list(losses.values())).sum().backward()
    assert raw.logits.grad.isfinite().all()
    assert (float(losses["scores"]) > 0) == (variant == "small")


def test_targets_without_landmarks_are_refused():
    targets = targets_of([BOX], [marked(BOX)])
    targets.keypoints = None
    model = network()
    with pytest.raises(TrainingError, match="carry no landmarks"):
        model.loss(raw_of(model), targets)


def test_network_learns_two_faces_and_their_landmarks():
    model = network("small").train()
    boxes = [[12.0, 14.0, 36.0, 42.0], [58.0, 20.0, 82.0, 50.0]]
    keypoints = [marked(box) for box in boxes]
    image = torch.zeros(1, 3, *SIZE_HW)
    for x1, y1, x2, y2 in np.array(boxes, int):
        image[:, :, y1:y2, x1:x2] = torch.rand(3, y2 - y1, x2 - x1) + 1
    targets = targets_of(boxes, keypoints)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        losses = model.loss(model(image), targets)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        found = model.candidates(model(image))  # batch statistics: there is one image
        for box, truth in zip(boxes, keypoints, strict=True):
            near = found.decode(torch.arange(found.logits.shape[1])[None])[0] - torch.tensor(box)
            best = found.logits[0, :, 0].where(near.abs().amax(1) < 6, torch.tensor(-1e9)).argmax()
            assert torch.sigmoid(found.logits[0, best, 0]) > 0.5
            points = found.decode_keypoints(best.reshape(1, 1))[0, 0, :, :2]
            assert (points - torch.tensor(truth)[:, :2]).norm(dim=1).mean() < 2
