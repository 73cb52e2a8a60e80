"""RetinaNet: shapes, initial scores, what its loss counts, that it learns, and its decode."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_models import tiny_model, tiny_spec

from training.data.sample import Sample
from training.errors import TrainingError
from training.layers.anchors import level_sizes
from training.layers.towers import to_rows
from training.models import build_model
from training.models.base import Targets
from training.models.detection.retinanet import PRIOR, STRIDES
from training.tasks.detection import collate

SAME = 1e-5  # float32 sums in another order
LEARNT = 0.5  # share of the first losses that is left after overfitting, at most
STEPS = 60


def network(**changes):
    torch.manual_seed(0)
    return build_model("retinanet", tiny_spec(**changes))


def pictures(count=2, size_hw=(64, 96)) -> tuple[torch.Tensor, Targets]:
    """Frames with a bright and a dark rectangle each."""
    rng = torch.Generator().manual_seed(3)
    samples = []
    for index in range(count):
        image = torch.randint(90, 110, (*size_hw, 3), generator=rng).to(torch.uint8)
        boxes = torch.tensor([[8.0 + 6 * index, 10, 34 + 6 * index, 40], [50, 20, 82, 52]])
        for box, colour in zip(boxes.int().tolist(), (230, 10), strict=True):
            image[box[1] : box[3], box[0] : box[2]] = colour
        samples.append(
            Sample(
                image=image.numpy(),
                boxes_xyxy=boxes.numpy(),
                classes=torch.tensor([0, 2]).numpy(),
                is_crowd=torch.tensor([False, False]).numpy(),
                image_id=index,
                file_name=str(index),
            )
        )
    return collate(samples)


# ------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("size_hw", [(64, 96), (90, 150), (33, 65)], ids=str)
def test_raw_output_has_a_row_for_every_anchor_at_any_size(size_hw):
    model = network(ratios=(0.5, 1.0)).eval()
    with torch.no_grad():
        raw = model(torch.zeros(2, 3, *size_hw))
    counts = [2 * h * w for h, w in level_sizes(size_hw, STRIDES)]
    assert raw.level_counts == counts
    assert raw.logits.shape == (2, sum(counts), 3)
    assert raw.deltas.shape == (2, sum(counts), 4)
    assert raw.anchors.shape == (sum(counts), 4)
    assert raw.size_hw == size_hw


def test_rows_of_the_output_stand_in_the_order_of_the_anchors():
    model = network(ratios=(0.5, 1.0), norm="none", head_convs=0).eval()
    with torch.no_grad():
        # The score's last convolution reads one cell: only the lit cell's rows answer.
        model.scores.predict.weight.zero_()
        model.scores.predict.weight[:, :, 1, 1] = 1.0
        model.scores.predict.bias.zero_()
        feature = torch.zeros(1, 16, 8, 12)
        feature[0, :, 5, 7] = 1.0
        rows = to_rows(model.scores(feature, 0), 3)[0]
        anchors = model(torch.zeros(1, 3, 64, 96)).anchors
    lit = rows.abs().sum(1).nonzero()[:, 0]
    centres = (anchors[lit, :2] + anchors[lit, 2:]) / 2
    assert len(lit) == 2
    assert (centres == torch.tensor([7.5 * 8, 5.5 * 8])).all()


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_untrained_scores_are_the_prior_in_the_mean(norm):
    model = network(norm=norm)
    images, _ = pictures()
    with torch.no_grad():
        scores = model(model.prepare(images)).logits.sigmoid()
    assert abs(float(scores.mean()) - PRIOR) < 0.2 * PRIOR


@pytest.mark.parametrize(
    "backbone", ["resnet18", "mobilenetv3_small_050", "regnetx_002", "convnext_atto"]
)
def test_any_backbone_of_timm_with_the_right_strides_runs(backbone):
    model = network(backbone=backbone, backbone_args=()).eval()
    with torch.no_grad():
        raw = model(torch.zeros(1, 3, 96, 160))
    assert raw.logits.shape[1] == len(raw.anchors)


def test_unknown_backbone_is_refused_by_name():
    with pytest.raises(TrainingError, match=r"'resnet1'.*timm.list_models"):
        network(backbone="resnet1", backbone_args=())


def test_backbone_without_the_strides_is_refused_with_those_it_has():
    with pytest.raises(TrainingError, match=r"strides \(16, 16, 16\); expected \(8, 16, 32\)"):
        network(backbone="vit_tiny_patch16_224", backbone_args=())


def test_backbone_argument_that_timm_does_not_know_is_refused():
    with pytest.raises(TrainingError, match="chanels"):
        network(backbone_args=(("chanels", (16, 16, 24, 32)),))


def test_spec_without_classes_is_refused():
    with pytest.raises(TrainingError, match="0 classes"):
        network(classes=(), category_ids=())


def test_network_gives_float32_under_bf16_autocast():
    model = network().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        raw = model(torch.zeros(1, 3, 64, 96))
    assert (raw.logits.dtype, raw.deltas.dtype) == (torch.float32, torch.float32)


# ---------------------------------------------------------------------------------------- loss


def losses_of(model, targets: Targets) -> dict[str, float]:
    images, _ = pictures()
    model.train()
    with torch.no_grad():
        return {k: float(v) for k, v in model.loss(model(model.prepare(images)), targets).items()}


@pytest.mark.parametrize("matching", ["iou", "atss"])
def test_loss_of_pictures_without_objects_is_finite_and_without_boxes(matching):
    images, _ = pictures()
    nothing = Targets(
        torch.zeros(2, 0, 4), torch.zeros(2, 0).long(), torch.zeros(2, 0, dtype=torch.bool)
    )
    model = network(matching=matching)
    losses = model.loss(model(model.prepare(images)), nothing)
    sum(losses.values()).backward()
    assert losses["boxes"].item() == 0
    assert 0 < losses["scores"].item() < torch.inf
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("matching", ["iou", "atss"])
def test_padding_of_the_targets_changes_no_loss(matching):
    _, targets = pictures()
    padded = Targets(
        torch.cat((targets.boxes_xyxy, torch.full((2, 3, 4), 30.0)), 1),
        torch.cat((targets.classes, torch.full((2, 3), -1)), 1),
        torch.cat((targets.is_crowd, torch.ones(2, 3, dtype=torch.bool)), 1),
    )
    model = network(matching=matching)
    assert losses_of(model, padded) == pytest.approx(losses_of(model, targets), rel=SAME)


def test_loss_of_a_batch_is_that_of_its_pictures_weighted_by_their_positives():
    model = network(norm="group", matching="iou").eval()
    images, targets = pictures()
    with torch.no_grad():
        whole = model.loss(model(model.prepare(images)), targets)
        sums, positives = {"scores": 0.0, "boxes": 0.0}, 0
        for row in range(2):
            raw = model(model.prepare(images[row : row + 1]))
            part = Targets(
                targets.boxes_xyxy[row : row + 1],
                targets.classes[row : row + 1],
                targets.is_crowd[row : row + 1],
            )
            count = int((model._match(raw, part, 0)[0] >= 0).sum())
            positives += count
            sums = {k: sums[k] + float(v) * count for k, v in model.loss(raw, part).items()}
    for key, value in whole.items():
        assert float(value) == pytest.approx(sums[key] / positives, rel=1e-4)


def test_crowd_is_neither_learnt_nor_held_against_the_network():
    model = network(matching="iou").eval()
    images, targets = pictures()
    crowd = dataclasses.replace(targets, is_crowd=torch.tensor([[False, True]] * 2))
    with torch.no_grad():
        raw = model(model.prepare(images))
        calm = model.loss(raw, crowd)
        centres = (raw.anchors[:, :2] + raw.anchors[:, 2:]) / 2
        low, high = torch.tensor([60.0, 30.0]), torch.tensor([72.0, 42.0])
        in_crowd = ((centres > low) & (centres < high)).all(1)
        small = (raw.anchors[:, 2] - raw.anchors[:, 0]) < 30
        loud = raw._replace(logits=raw.logits.clone())
        loud.logits[:, in_crowd & small] = 9.0
        assert (in_crowd & small).any()
        assert float(model.loss(loud, crowd)["scores"]) == float(calm["scores"])
        assert float(model.loss(loud, targets)["scores"]) > float(
            model.loss(raw, targets)["scores"]
        )


def test_object_smaller_than_a_cell_is_learnt():
    _, targets = pictures()
    tiny = dataclasses.replace(
        targets,
        boxes_xyxy=torch.tensor([[[40.0, 30, 42, 32]]] * 2),
        classes=torch.zeros(2, 1).long(),
        is_crowd=torch.zeros(2, 1, dtype=torch.bool),
    )
    for matching in ("iou", "atss"):
        assert losses_of(network(matching=matching), tiny)["boxes"] > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"matching": "atss", "box_loss": "giou", "has_soft_labels": True, "norm": "batch"},
        {"matching": "iou", "box_loss": "smooth_l1", "has_soft_labels": False, "norm": "none"},
        {"matching": "iou", "box_loss": "giou", "has_soft_labels": True, "norm": "group"},
        {"matching": "atss", "box_loss": "smooth_l1", "has_soft_labels": False, "norm": "group"},
    ],
    ids=["atss-giou-soft-batch", "iou-l1-hard-none", "iou-giou-soft-group", "atss-l1-hard-group"],
)
def test_loss_falls_when_two_pictures_are_learnt_by_heart(changes):
    history = overfit(network(**changes), *pictures())
    assert sum(history[-5:]) < LEARNT * sum(history[:5])


def test_network_of_one_class_learns():
    images, targets = pictures()
    targets.classes.clamp_(max=0)
    history = overfit(network(classes=("thing",), category_ids=(1,)), images, targets)
    assert sum(history[-5:]) < LEARNT * sum(history[:5])


def overfit(model, images: torch.Tensor, targets: Targets) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    prepared, history = model.prepare(images), []
    for _ in range(STEPS):
        total = sum(model.loss(model(prepared), targets).values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        history.append(float(total.detach()))
    return history


# -------------------------------------------------------------------------------------- decode


def decoded(indices: torch.Tensor, *, spoil: bool = False) -> torch.Tensor:
    model = tiny_model()
    with torch.no_grad():
        raw = model(model.prepare(pictures()[0]))
        if spoil:  # every row that was not asked for
            kept = torch.zeros(raw.deltas.shape[:2], dtype=torch.bool).scatter(1, indices, True)
            raw = raw._replace(deltas=raw.deltas.where(kept[..., None], torch.nan))
        return model.candidates(raw).decode(indices)


def test_decode_of_selected_rows_is_a_part_of_decoding_all():
    count = 8 * 12 + 4 * 6 + 2 * 3 + 2 + 1
    every = decoded(torch.arange(count).expand(2, -1))
    some = torch.tensor([[5, 0, 128, 5, 77], [1, 2, 3, 100, 4]])
    assert torch.equal(decoded(some), every.gather(1, some[..., None].expand(-1, -1, 4)))


def test_decode_reads_only_the_selected_rows():
    some = torch.tensor([[5, 0, 128, 5, 77], [1, 2, 3, 100, 4]])
    assert torch.equal(decoded(some, spoil=True), decoded(some))


def test_decoded_boxes_lie_in_the_picture():
    boxes = decoded(torch.arange(129).expand(2, -1))
    assert (boxes[..., :2] >= 0).all()
    assert (boxes[..., 2:] <= torch.tensor([96.0, 64.0])).all()
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
