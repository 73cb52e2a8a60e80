"""YOLACT: shapes at any size, published structure, its losses, its masks, and that it learns."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_models import frames_of, shrunk

from runtime.contract.manifest import InputGeometry
from runtime.masks import Masks
from runtime.preprocess import Letterbox
from training.data.sample import Sample
from training.errors import TrainingError
from training.layers.anchors import level_sizes, make_anchors
from training.loop.checkpoint import load_matching
from training.models import build_model, model_variant
from training.models.base import Targets
from training.models.instance.yolact import STRIDES
from training.tasks.detection import Boxes
from training.tasks.instance import Instances, collate, detect, masks_in_source

GOLDEN = Path(__file__).resolve().parents[3] / "shared/golden/yolact_resnet50.keys.json"
WEIGHTS = Path(__file__).resolve().parents[2] / "weights/retinanet_small.safetensors"
SAME = 1e-5
LEARNT_IOU = 0.7
STEPS = 150
SMALL_BACKBONE = {"backbone_args": (("channels", (16, 16, 24, 32)),)}


def network(variant="small", **changes):
    torch.manual_seed(0)
    base = {"backbone": "resnet18"} | SMALL_BACKBONE
    narrow = {"proto_coarse": (16, 16), "proto_fine": (16,), "num_prototypes": 8}
    spec = shrunk(model_variant("yolact", variant).spec, **base | narrow | changes)
    return build_model("yolact", spec)


def pictures(count=2, size_hw=(64, 96)) -> tuple[torch.Tensor, Targets]:
    """Frames with a bright disc and a dark rectangle each, and their masks."""
    rng = np.random.default_rng(3)
    samples = []
    for index in range(count):
        image = rng.integers(90, 110, (*size_hw, 3), np.uint8)
        masks = np.zeros((2, *size_hw), np.uint8)
        x = 22 + 6 * index
        cv2.circle(masks[0], (x, 26), 15, 1, -1)
        masks[1, 20:52, 50:82] = 1
        image[masks[0] > 0], image[masks[1] > 0] = 230, 10
        samples.append(
            Sample(
                image=image,
                boxes_xyxy=np.float32([[x - 15, 11, x + 16, 42], [50, 20, 82, 52]]),
                classes=np.array([0, 2]),
                is_crowd=np.zeros(2, bool),
                image_id=index,
                file_name=str(index),
                masks=masks,
            )
        )
    return collate(samples)


# ------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("variant", ["small", "resnet50"])
@pytest.mark.parametrize(
    ("size_hw", "batch", "num_classes"),
    [((64, 96), 4, 3), ((90, 150), 2, 1), ((33, 65), 1, 10), ((640, 384), 1, 2)],
    ids=["batch-4", "odd-one-class", "tiny-ten-classes", "upright"],
)
def test_raw_output_has_every_row_and_map_at_any_size(variant, size_hw, batch, num_classes):
    classes = tuple(f"c{i}" for i in range(num_classes))
    model = network(variant, classes=classes, category_ids=tuple(range(num_classes))).eval()
    with torch.no_grad():
        raw = model(torch.zeros(batch, 3, *size_hw))
        found = model.candidates(raw)
    shapes = 1 if variant == "small" else 3
    counts = [shapes * h * w for h, w in level_sizes(size_hw, STRIDES)]
    height, width = level_sizes(size_hw, STRIDES)[0]
    assert raw.level_counts == counts
    assert raw.deltas.shape == (batch, sum(counts), 4)
    assert raw.coefficients.shape == (batch, sum(counts), 8)
    assert raw.semantic.shape == (batch, num_classes, height, width)
    assert raw.anchors.shape == (sum(counts), 4)
    assert found.logits.shape == (batch, sum(counts), num_classes)
    assert found.maps["prototypes"].shape[:2] == (batch, 8)
    stride = 2 if variant == "small" else 4  # the small one has the detail branch
    wanted = [
        range(8 // stride * (side - 1) + 1, 8 // stride * side + 1) for side in (height, width)
    ]
    assert all(s in w for s, w in zip(found.maps["prototypes"].shape[2:], wanted, strict=True))


def test_published_variant_has_the_published_anchors():
    spec = model_variant("yolact", "resnet50").spec
    anchors = make_anchors(
        level_sizes(spec.size_hw, STRIDES),
        STRIDES,
        base_scale=spec.anchor_scale,
        octaves=spec.octaves,
        ratios=spec.ratios,
        is_square=spec.has_square_anchors,
        spread_hw=spec.size_hw,
    )
    expected = []  # yolact.py, PredictionModule.make_priors, as facts and not as code
    for cells, side in zip((69, 35, 18, 9, 5), (24, 48, 96, 192, 384), strict=True):
        for row in range(cells):
            for column in range(cells):
                for ratio in (1, 1 / 2, 2):
                    x, y = (column + 0.5) / cells, (row + 0.5) / cells
                    width = side * ratio**0.5 / 550
                    expected.append((x, y, width, width))
    expected = torch.tensor(expected, dtype=torch.float64) * 550
    sides = (anchors[:, 2:] - anchors[:, :2]).double()
    centres = (anchors[:, 2:] + anchors[:, :2]).double() / 2
    assert len(anchors) == 19_248
    torch.testing.assert_close(torch.cat((centres, sides), 1), expected, rtol=0, atol=1e-3)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the list of published tensors is not here")
def test_published_variant_has_a_place_for_every_published_tensor():
    spec = dataclasses.replace(
        model_variant("yolact", "resnet50").spec,
        classes=tuple(f"c{i}" for i in range(80)),
        category_ids=tuple(range(80)),
    )
    with torch.device("meta"):
        model = build_model("yolact", spec)
    listed = json.loads(GOLDEN.read_text())
    published = sorted(tuple(shape) for shape in dict(listed).values())
    ours = [t for k, t in model.state_dict().items()]
    assert sorted(tuple(t.shape) for t in ours) == published


def test_coefficients_lie_in_minus_one_to_one_and_prototypes_are_not_negative():
    model = network().eval()
    with torch.no_grad():
        raw = model(model.prepare(frames_of(2)) * 100)
    assert raw.coefficients.abs().max() <= 1
    assert raw.prototypes.min() >= 0


def test_softmax_candidates_are_scores_without_background():
    model = network("resnet50").eval()
    with torch.no_grad():
        raw = model(model.prepare(frames_of(2)))
        found = model.candidates(raw)
    background = raw.logits.softmax(-1)[..., 0]
    assert (found.activation, found.logits.shape[-1], raw.logits.shape[-1]) == ("none", 3, 4)
    torch.testing.assert_close(found.logits.sum(-1), 1 - background, rtol=0, atol=SAME)


def test_published_variances_scale_the_decoded_deltas_and_boxes_reach_outside():
    model = network("resnet50").eval()
    with torch.no_grad():
        raw = model(torch.zeros(1, 3, 64, 96))
        raw = raw._replace(deltas=torch.randn(raw.deltas.shape) * 0.5)
        boxes = model.candidates(raw).decode(torch.arange(len(raw.anchors))[None])[0]
    prior, delta = raw.anchors.double(), raw.deltas[0].double()
    side, centre = prior[:, 2:] - prior[:, :2], (prior[:, 2:] + prior[:, :2]) / 2
    centre = centre + 0.1 * delta[:, :2] * side
    side = side * (0.2 * delta[:, 2:]).exp()
    wanted = torch.cat((centre - side / 2, centre + side / 2), 1)
    torch.testing.assert_close(boxes.double(), wanted, rtol=0, atol=1e-3)


def test_network_gives_float32_under_bf16_autocast():
    model = network().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        raw = model(torch.zeros(1, 3, 64, 96))
    assert {t.dtype for t in raw if isinstance(t, torch.Tensor)} == {torch.float32}


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the RetinaNet weights are not here")
def test_small_variant_begins_with_every_tensor_of_the_retinanet():
    data = {"classes": tuple("abcde"), "category_ids": (1, 2, 3, 4, 5)}
    model = build_model("yolact", dataclasses.replace(model_variant("yolact").spec, **data))
    fresh = {name.split(".")[0] for name in load_matching(model, WEIGHTS)}
    assert fresh == {"prototypes", "coefficients", "semantic"}


# ---------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("variant", ["small", "resnet50"])
def test_every_weight_is_reached_by_the_loss(variant):
    model = network(variant, matching="atss").train()
    images, targets = pictures()
    losses = model.loss(model(model.prepare(images)), targets)
    torch.stack(list(losses.values())).sum().backward()
    assert set(losses) == {"scores", "boxes", "masks", "semantic"}
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    assert all(loss.ndim == 0 and loss > 0 and loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("variant", ["small", "resnet50"])
def test_loss_of_pictures_without_objects_is_finite(variant):
    model = network(variant).train()
    images, _ = pictures()
    nothing = Targets(
        torch.zeros(2, 0, 4),
        torch.zeros(2, 0).long(),
        torch.zeros(2, 0, dtype=torch.bool),
        torch.zeros(2, 0, 64, 96, dtype=torch.uint8),
    )
    losses = model.loss(model(model.prepare(images)), nothing)
    sum(losses.values()).backward()
    assert losses["masks"].item() == losses["boxes"].item() == 0
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("variant", ["small", "resnet50"])
def test_padding_and_crowds_of_the_targets_change_no_mask_loss(variant):
    model = network(variant).eval()
    images, targets = pictures()
    extra = torch.full((2, 2, 4), 5.0) + torch.tensor([0.0, 0, 9, 9])
    padded = Targets(
        torch.cat((targets.boxes_xyxy, extra), 1),
        torch.cat((targets.classes, torch.tensor([[1, -1]] * 2)), 1),
        torch.cat((targets.is_crowd, torch.tensor([[True, False]] * 2)), 1),
        torch.cat((targets.masks, torch.ones(2, 2, 64, 96, dtype=torch.uint8)), 1),
    )
    with torch.no_grad():
        raw = model(model.prepare(images))
        ours, theirs = model.loss(raw, targets), model.loss(raw, padded)
    for name in ("boxes", "masks", "semantic"):
        assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=SAME)


def test_targets_without_masks_are_refused():
    model = network()
    images, targets = pictures()
    bare = dataclasses.replace(targets, masks=None)
    with pytest.raises(TrainingError, match="no masks"):
        model.loss(model(model.prepare(images)), bare)


# --------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_masks_come_back_where_they_lay_in_the_source(resize):
    spec = dataclasses.replace(network().spec, resize=resize, size_hw=(128, 160))
    source_hw = (300, 420)
    scale = min(128 / 300, 160 / 420)
    factors = (scale, scale) if resize == "letterbox" else (160 / 420, 128 / 300)
    left, top = ((160 - round(420 * factors[0])) // 2, (128 - round(300 * factors[1])) // 2)
    truth = np.zeros(source_hw, np.uint8)
    cv2.ellipse(truth, (200, 140), (110, 70), 0, 0, 360, 1, -1)
    soft = cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 6.0)  # survives sparse sampling
    matrix = np.array(  # source pixels to prototype pixels, from centre to centre
        [
            [factors[0] / 4, 0, (left + factors[0] / 2) / 4 - 0.5],
            [0, factors[1] / 4, (top + factors[1] / 2) / 4 - 0.5],
        ]
    )
    small = cv2.warpAffine(soft, matrix, (40, 32))
    found = Instances(
        Boxes(np.zeros((2, 4), np.float32), np.ones(2, np.float32), np.zeros(2, np.int64)),
        np.stack((small, np.zeros_like(small))),
    )
    masks = masks_in_source(found, source_hw, spec)
    union = (masks[0] | truth).sum()
    assert (masks[0] & truth).sum() / union > 0.9
    assert masks[1].sum() == 0
    low, high = np.argwhere(masks[0]).min(0), np.argwhere(masks[0]).max(0)
    assert np.abs((low + high) / 2 - (140, 200)).max() < 2


def test_masks_are_those_of_an_enlargement_of_the_whole_map():
    spec = dataclasses.replace(network().spec, size_hw=(64, 96))
    rng = np.random.default_rng(0)
    maps = np.zeros((3, 16, 24), np.float32)
    maps[0, 3:9, 0:7], maps[1, 12:, 20:] = rng.random((6, 7)), rng.random((4, 4))
    found = Instances(
        Boxes(np.zeros((3, 4), np.float32), np.ones(3, np.float32), np.zeros(3, np.int64)), maps
    )
    masks = masks_in_source(found, (128, 192), spec)
    for ours, small in zip(masks, maps, strict=True):
        whole = cv2.resize(small, (192, 128), interpolation=cv2.INTER_LINEAR) > 0.5
        assert np.array_equal(ours > 0, whole)


@pytest.mark.parametrize("row", [0, 15], ids=["above", "below"])
def test_mask_in_the_padding_alone_is_empty(row):
    spec = dataclasses.replace(network().spec, size_hw=(64, 64))
    maps = np.zeros((1, 16, 16), np.float32)
    maps[0, row] = 1
    found = Instances(
        Boxes(np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64)), maps
    )
    assert not masks_in_source(found, (20, 128), spec).any()


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_masks_are_those_of_the_runtime(resize):
    """Both enlarge what the crop at prototype size has left, and cut nothing after that."""
    spec = dataclasses.replace(network().spec, resize=resize, size_hw=(64, 64))
    source_hw = (64, 128)
    soft = np.zeros((4, 16, 16), np.uint8)
    soft[0, 5:9, 3:12], soft[1, 4:12, 12:], soft[2, 6, 6] = 255, 255, 255
    soft[3] = np.random.default_rng(0).integers(0, 2, (16, 16)) * 255
    found = Instances(
        Boxes(np.zeros((4, 4), np.float32), np.ones(4, np.float32), np.zeros(4, np.int64)),
        soft.astype(np.float32) / 255,
    )
    ours = masks_in_source(found, source_hw, spec)
    letterbox = Letterbox.fit(source_hw, InputGeometry(64, 64, resize=resize))
    theirs = Masks(soft, letterbox).bitmaps()
    assert np.array_equal(ours > 0, theirs)
    assert ours[:3].any(axis=(1, 2)).all()


# -------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    ("variant", "changes"),
    [("small", {}), ("resnet50", {"matching": "atss", "norm": "group"})],
    ids=["sigmoid-giou", "softmax-l1"],
)
def test_two_pictures_are_learnt_by_heart_with_their_masks(variant, changes):
    model = network(variant, has_proto_skip=True, **changes).train()
    images, targets = pictures()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        losses = model.loss(model(model.prepare(images)), targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    ious = []
    for row, found in enumerate(detect(model.eval(), images, score_threshold=0.1)):
        masks = masks_in_source(found, (64, 96), model.spec)
        for thing in range(2):
            truth = targets.masks[row, thing].numpy()
            is_class = found.boxes.classes == int(targets.classes[row, thing])
            overlaps = [(m & truth).sum() / (m | truth).sum() for m in masks[is_class]]
            ious.append(max(overlaps, default=0.0))
    assert min(ious) > LEARNT_IOU
