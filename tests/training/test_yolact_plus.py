"""YOLACT++: its deformable trunk, its anchors, the re-scoring of masks, and published tensors."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_yolact import network, pictures
from tiny_models import lively, shrunk, tiny_spec
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import deform_conv2d

from training.data import open_data
from training.data.coco_names import CATEGORY_IDS, CLASSES
from training.data.sample import Sample
from training.errors import CheckpointError, TrainingError
from training.layers.anchors import level_sizes, make_anchors
from training.layers.backbone import make_backbone
from training.layers.deformable import DeformableConv
from training.layers.prototypes import assemble_masks
from training.layers.rescoring import MaskRescoring
from training.loop.trainer import RunOptions, Trainer
from training.losses.masks import LEAST_AREA, judge_masks
from training.metrics.detection import GroundTruth, detections_to_coco, score_boxes
from training.metrics.instance import score_masks
from training.models import build_model, model_variant
from training.models.base import Model, Recipe
from training.models.instance.yolact import STRIDES
from training.published import import_published, load_published, our_name, recognise_variant
from training.tasks.instance import detect

KEYS: dict[str, dict[str, list[int]]] = json.loads(
    gzip.decompress((Path(__file__).parent / "published/keys.json.gz").read_bytes())
)
SAME = 1e-5
NARROW = (("layers", (1, 2, 1, 1)), ("channels", (8, 8, 12, 16)))
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
RESCORING = ((8, 1), (16, 8), (32, 16), (64, 32), (128, 64))  # published channels, out and in
STEPS = 12


def trunk(every: int | None, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    extra = () if every is None else (("deform_every", every),)
    return make_backbone("resnet50", NARROW + extra).eval()


def plus(**changes: object) -> Model:
    """The published form, small."""
    torch.manual_seed(0)
    spec = shrunk(model_variant("yolact", "plus_resnet50").spec, **{"matching": "atss"} | changes)
    return build_model("yolact", spec)


def deformables(module: nn.Module) -> dict[str, DeformableConv]:
    return {n: m for n, m in module.named_modules() if isinstance(m, DeformableConv)}


# ------------------------------------------------------------------------------------------- trunk


@pytest.mark.parametrize(
    ("variant", "count"), [("plus_resnet50", 13), ("plus_resnet101", 11)], ids=["50", "101"]
)
def test_published_plus_variant_deforms_the_published_convolutions(variant, count):
    spec = model_variant("yolact", variant).spec
    every = {"plus_resnet50": 1, "plus_resnet101": 3}[variant]
    with torch.device("meta"):
        found = set(deformables(make_backbone(spec.backbone, spec.backbone_args)))
    wanted = {
        f"layer{stage + 1}.{block}.conv2"
        for stage, blocks in enumerate(BLOCKS[spec.backbone])
        for block in range(blocks)
        if stage > 0 and block % every == 0
    }
    assert found == wanted
    assert len(found) == count


@torch.no_grad()
def test_deformable_trunk_begins_as_the_plain_one_of_the_same_weights():
    plain, deformed = trunk(None), trunk(1)  # drawn by one seed; a fetched trunk's are kept so too
    assert len(deformables(deformed)) == 4
    images = torch.randn(2, 3, 65, 97)
    for ours, theirs in zip(deformed(images), plain(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=SAME * float(theirs.abs().max()))


def torchvisions(layer: DeformableConv, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    taps = layer.kernel**2
    offsets, strength = layer.conv_offset_mask(inputs[0]).split((2 * taps, taps), 1)
    return deform_conv2d(
        inputs[0], offsets, layer.weight, layer.bias, stride=layer.stride,
        padding=layer.kernel // 2, mask=strength.sigmoid(),
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("size_hw", [(65, 97), (32, 32), (70, 33)])
def test_wandering_trunk_gives_what_torchvisions_operator_gives(size_hw):
    ours, theirs = trunk(1), trunk(1)
    for name, layer in deformables(ours).items():
        layer.conv_offset_mask.weight.normal_(0, 0.1)
        layer.conv_offset_mask.bias.normal_(0, 1)
        other = theirs.get_submodule(name)
        other.load_state_dict(layer.state_dict())
        other.register_forward_hook(torchvisions)
    images = torch.randn(2, 3, *size_hw)
    for found, expected in zip(ours(images), theirs(images), strict=True):
        limit = SAME * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=limit)


def test_backbone_without_stages_is_refused():
    with pytest.raises(TrainingError, match=r"no layer2.*expected a ResNet"):
        make_backbone("mobilenetv2_100", (("deform_every", 1),))


# ----------------------------------------------------------------------------------------- anchors


def test_published_plus_variant_has_three_sizes_of_true_rectangles():
    spec = model_variant("yolact", "plus_resnet50").spec
    anchors = make_anchors(
        level_sizes(spec.size_hw, STRIDES),
        STRIDES,
        base_scale=spec.anchor_scale,
        octaves=spec.octaves,
        ratios=spec.ratios,
        is_square=spec.has_square_anchors,
        spread_hw=spec.size_hw,
    )
    expected = []  # as published: a ratio is width over height
    for cells, side in zip((69, 35, 18, 9, 5), (24, 48, 96, 192, 384), strict=True):
        shapes = [
            (side * 2 ** (third / 3) * ratio**0.5, side * 2 ** (third / 3) / ratio**0.5)
            for third in range(3)
            for ratio in (1, 1 / 2, 2)
        ]
        for row in range(cells):
            for column in range(cells):
                centre = (column + 0.5) * 550 / cells, (row + 0.5) * 550 / cells
                expected.extend((*centre, *shape) for shape in shapes)
    sides = (anchors[:, 2:] - anchors[:, :2]).double()
    centres = (anchors[:, 2:] + anchors[:, :2]).double() / 2
    assert len(anchors) == 57_744
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(torch.cat((centres, sides), 1), expected, rtol=0, atol=1e-3)


# --------------------------------------------------------------------------------------- rescoring


@torch.no_grad()
@pytest.mark.parametrize("size_hw", [(138, 138), (63, 95)])
def test_rescoring_is_a_chain_of_convolutions_and_a_global_maximum(size_hw):
    torch.manual_seed(0)
    network = MaskRescoring((8, 16, 32, 64, 128), 5)
    layers = [layer for c in (*network.convs, network.predict) for layer in (c, nn.ReLU())]
    chain = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
    masks = torch.rand(3, *size_hw)
    torch.testing.assert_close(network(masks), chain(masks[:, None]), rtol=0, atol=SAME)


def test_masks_too_small_to_be_rescored_are_refused():
    with pytest.raises(TrainingError, match=r"24x16 pixels.*needs 63 on either side"):
        plus(size_hw=(64, 96), rescore_convs=(8, 16, 32, 64, 128))


def scene() -> tuple[Tensor, ...]:
    """Coefficients, prototypes, match, boxes and masks; the second object is small."""
    draw = torch.Generator().manual_seed(0)
    masks = torch.zeros(3, 20, 28)
    masks[0, 3:14, 2:12], masks[1, 16:18, 20:24], masks[2, 5:19, 12:27] = 1, 1, 1
    boxes = torch.tensor([[4.0, 6, 24, 28], [40, 32, 48, 36], [24, 10, 54, 38]])
    match = torch.tensor([2, 0, 1, 2, 0, 1, 2])
    coefficients = torch.randn(7, 6, generator=draw).requires_grad_()
    return coefficients, torch.randn(6, 20, 28, generator=draw), match, boxes, masks


def test_masks_are_judged_by_their_overlap_with_objects_that_are_large_enough():
    coefficients, prototypes, match, boxes, masks = scene()
    soft, ious, objects = judge_masks(coefficients, prototypes, match, boxes, masks, (40, 56))
    assert masks[1].sum() < LEAST_AREA
    assert objects.tolist() == [2, 0, 2, 0, 2]
    assert not soft.requires_grad
    rows = [0, 1, 3, 4, 6]
    made = assemble_masks(coefficients[rows], prototypes, boxes[objects], (40, 56))
    torch.testing.assert_close(soft, made.detach(), rtol=0, atol=0)
    for mask, iou, thing in zip(soft, ious, objects, strict=True):
        found = {tuple(place) for place in (mask > 0.5).nonzero().tolist()}
        truth = {tuple(place) for place in masks[thing].nonzero().tolist()}
        assert float(iou) == pytest.approx(len(found & truth) / len(found | truth), abs=1e-6)


def test_at_most_so_many_masks_of_an_image_are_judged():
    *rest, boxes, masks = scene()
    soft, ious, objects = judge_masks(*rest, boxes, masks, (40, 56), most=3)
    assert len(soft) == len(ious) == len(objects) == 3


def test_rescoring_learns_the_overlap_of_the_true_class_alone():
    model = plus().train()
    images, targets = pictures()
    nn.init.constant_(model.rescoring.predict.bias, 3.0)  # no ReLU that hides a gradient
    loss = model.loss(model(model.prepare(images)), targets)["rescoring"]
    loss.backward()
    taught = model.rescoring.predict.bias.grad
    assert (taught != 0).tolist() == [True, False, True]  # the pictures show no second class
    others = [k for k, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    assert {name.split(".")[0] for name in others} == {"rescoring"}


@torch.no_grad()
def test_rescore_gives_each_row_the_guess_of_its_class_up_to_one():
    model = plus().eval()
    nn.init.normal_(model.rescoring.predict.bias, 0.5, 0.4)
    found = model.candidates(model(model.prepare(pictures()[0])))
    masks, classes = torch.rand(2, 4, 16, 24), torch.tensor([[0, 2, 1, -1], [2, 2, 0, -1]])
    factors = found.rescore(masks, classes)
    assert factors.shape == (2, 4)
    assert float(factors.min()) >= 0
    assert float(factors.max()) <= 1
    for image in range(2):
        for row in range(3):
            guess = model.rescoring(masks[image, row][None])[0, classes[image, row]]
            assert float(factors[image, row]) == pytest.approx(min(1, float(guess)), abs=SAME)


def test_variants_without_rescoring_have_none():
    model = network("resnet50").eval()
    with torch.no_grad():
        found = model.candidates(model(torch.zeros(1, 3, 64, 96)))
    assert found.rescore is None
    assert model.optional_outputs == ()
    assert plus().optional_outputs == ("mask_scores",)


def test_masks_are_ranked_by_their_own_score_and_boxes_by_theirs():
    image = np.zeros((2, 96, 128), np.uint8)
    image[0, 10:50, 20:60], image[1, 60:90, 70:120] = 1, 1
    boxes = np.float32([[20, 10, 60, 50], [70, 60, 120, 90]])
    truth = GroundTruth(("thing",), (1,))
    truth.add(
        Sample(
            image=np.zeros((96, 128, 3), np.uint8), boxes_xyxy=boxes[:1], classes=np.zeros(1, int),
            is_crowd=np.zeros(1, bool), image_id=1, file_name="1", masks=image[:1],
        )
    )  # fmt: skip
    rows = (1, boxes, np.array([0.9, 0.5]), np.zeros(2, int), (1,))
    told = detections_to_coco(*rows, masks=image, mask_scores=np.array([0.1, 0.4]))
    untold = detections_to_coco(*rows, masks=image)
    coco = truth.as_coco()
    assert score_boxes(coco, told)["AP"] == score_boxes(coco, untold)["AP"] == 1
    assert score_masks(coco, untold)["mask_AP"] == 1
    assert score_masks(coco, told)["mask_AP"] == pytest.approx(0.5)  # a wrong one comes first


def test_found_instances_have_the_scores_of_their_masks():
    model = lively(plus())
    images = pictures()[0]
    for found in detect(model, images, score_threshold=0.2):
        assert len(found.boxes.scores) > 0
        soft = torch.from_numpy(found.masks)
        with torch.no_grad():
            guesses = model.rescoring(soft).numpy()[range(len(soft)), found.boxes.classes]
        expected = found.boxes.scores * guesses.clip(max=1)
        np.testing.assert_allclose(found.mask_scores, expected, atol=SAME)


# ---------------------------------------------------------------------------------------- learning


def test_gradients_reach_every_weight_and_move_the_taps():
    model = plus().train()
    for name, value in model.backbone.named_parameters():
        if name.endswith("bn3.weight"):  # residual blocks begin closed, and learn to open
            nn.init.ones_(value)
    images, targets = pictures()
    losses = model.loss(model(model.prepare(images)), targets)
    assert set(losses) == {"scores", "boxes", "masks", "semantic", "rescoring"}
    torch.stack(list(losses.values())).sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    layers = deformables(model.backbone)
    assert layers
    for layer in layers.values():
        assert layer.conv_offset_mask.weight.grad.abs().amax((1, 2, 3)).min() > 0


def test_pictures_without_objects_leave_rescoring_with_gradients_of_zero():
    model = plus().train()
    images, targets = pictures()
    nothing = dataclasses.replace(
        targets,
        boxes_xyxy=targets.boxes_xyxy[:, :0],
        classes=targets.classes[:, :0],
        is_crowd=targets.is_crowd[:, :0],
        masks=targets.masks[:, :0],
    )
    losses = model.loss(model(model.prepare(images)), nothing)
    sum(losses.values()).backward()
    assert losses["rescoring"].item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.rescoring.parameters())


@pytest.mark.parametrize(("freeze", "is_kept"), [(3, True), (2, False)])
def test_batches_that_are_too_small_leave_batch_statistics_alone(freeze, is_kept, discs, tmp_path):
    model = build_model("retinanet", tiny_spec(size_hw=(96, 128)))
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    recipe = Recipe(steps=1, batch=2, freeze_batch_norm=freeze)
    options = RunOptions(name="retinanet", out=tmp_path, precision="no", workers=0)
    trainer = Trainer(model, recipe, open_data(str(discs), "train"), None, options, {})
    assert trainer.run()
    after = trainer.plain_model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items()) is is_kept


def test_few_steps_lower_the_loss():
    model = plus(norm="group").train()
    images, targets = pictures()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals, rescoring = [], []
    for _ in range(STEPS):
        losses = model.loss(model(model.prepare(images)), targets)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
        rescoring.append(float(losses["rescoring"].detach()))
    assert totals[-1] < 0.7 * totals[0]
    assert rescoring[-1] < rescoring[0]


# --------------------------------------------------------------------------------------- published


def plus_tensors(published: str, every: int) -> dict[str, Tensor]:
    """A plus checkpoint's tensors: those of its plain kin and the names and shapes that differ."""
    shapes = {k: list(shape) for k, shape in KEYS[published].items()}
    for key in KEYS[published]:
        parts = key.split(".")
        is_conv2 = key.startswith("backbone.layers.") and key.endswith(".conv2.weight")
        if is_conv2 and parts[2] != "0" and int(parts[3]) % every == 0:
            stem, width = key.removesuffix("weight"), shapes[key][1]
            shapes[stem + "bias"] = [shapes[key][0]]
            shapes[stem + "conv_offset_mask.weight"] = [27, width, 3, 3]
            shapes[stem + "conv_offset_mask.bias"] = [27]
        if key.startswith("prediction_layers.0.") and "upfeature" not in key:
            shapes[key][0] *= 3
    for number, (width, width_in) in enumerate(RESCORING):
        shapes[f"maskiou_net.maskiou_net.{2 * number}.weight"] = [width, width_in, 3, 3]
        shapes[f"maskiou_net.maskiou_net.{2 * number}.bias"] = [width]
    shapes["maskiou_net.maskiou_net.10.weight"] = [80, 128, 1, 1]
    shapes["maskiou_net.maskiou_net.10.bias"] = [80]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


every_plus = pytest.mark.parametrize(
    ("published", "variant", "every"),
    [("yolact_resnet50", "plus_resnet50", 1), ("yolact_base", "plus_resnet101", 3)],
    ids=["50", "101"],
)


@every_plus
def test_every_published_plus_tensor_has_one_place_and_every_place_a_tensor(
    published, variant, every
):
    tensors = plus_tensors(published, every)
    spec = model_variant("yolact", variant).spec
    spec = dataclasses.replace(spec, classes=CLASSES, category_ids=CATEGORY_IDS)
    with torch.device("meta"):
        model = build_model("yolact", spec)
    places = {key: our_name(key) for key in tensors}
    assert sorted(places.values()) == sorted(model.state_dict())
    load_published(model, tensors)
    assert recognise_variant(tensors) == variant


@every_plus
def test_plus_checkpoint_is_imported_as_the_variant_that_it_is_of(published, variant, every):
    with torch.device("meta"):
        model = import_published(plus_tensors(published, every))
    assert model.spec.variant == variant
    assert model.spec.classes == CLASSES
    with pytest.raises(TrainingError, match="2 classes for a checkpoint of 80"):
        import_published(plus_tensors(published, every), classes=("cat", "dog"))


def test_plus_checkpoint_of_other_deformed_blocks_is_refused():
    tensors = plus_tensors("yolact_base", 1)
    with pytest.raises(CheckpointError, match="conv_offset_mask"):
        import_published(tensors)


def test_rescoring_takes_the_published_numbers_in_their_order():
    tensors = {
        f"maskiou_net.maskiou_net.{2 * number}.{kind}": torch.randn(shape)
        for number, (width, width_in) in enumerate((*RESCORING, (80, 128)))
        for kind, shape in (
            ("weight", (width, width_in, *((3, 3) if number < 5 else (1, 1)))),
            ("bias", (width,)),
        )
    }
    ours = MaskRescoring((8, 16, 32, 64, 128), 80)
    ours.load_state_dict({our_name(k).removeprefix("rescoring."): v for k, v in tensors.items()})
    feature = masks = torch.rand(2, 138, 138)
    feature = masks[:, None]
    for number in range(6):
        stem = f"maskiou_net.maskiou_net.{2 * number}."
        stride = 2 if number < 5 else 1
        feature = functional.conv2d(
            feature, tensors[stem + "weight"], tensors[stem + "bias"], stride
        ).relu()
    expected = functional.max_pool2d(feature, feature.shape[2:])[:, :, 0, 0]
    torch.testing.assert_close(ours(masks), expected, rtol=1e-5, atol=1e-5)
