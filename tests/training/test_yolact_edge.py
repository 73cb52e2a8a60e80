"""YolactEdge: key frames are YOLACT's, later frames lean on them; shapes, cost and what moves."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_models import frames_of, shrunk
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from training.errors import TrainingError
from training.layers.backbone import make_backbone, run_to_level
from training.models import build_model, model_variant
from training.models.base import Targets
from training.models.instance.yolact_edge import YolactEdge

SAME = 1e-5
SMALL_BACKBONE = {"backbone_args": (("channels", (16, 16, 24, 32)),)}
THIN = {
    "encoder": (8, 8, 8, 8), "flow_hidden": 8, "mending": 8, "correction": (8, 1), "detail": 8,
}  # fmt: skip
KEY_COST = 1.05  # of the plain image model's multiply-adds
NONKEY_COST = 0.35  # of the key frame's
COCO_CLASSES = 80
both_variants = pytest.mark.parametrize("variant", ["small", "resnet50"])


def network(variant: str = "small", **changes: object) -> YolactEdge:
    torch.manual_seed(0)
    small = {"backbone": "resnet18"} | SMALL_BACKBONE | THIN
    return build_model(
        "yolact_edge", shrunk(model_variant("yolact_edge", variant).spec, **small | changes)
    ).eval()


def stirred(model: YolactEdge, seed: int = 0) -> YolactEdge:
    """With no weight of zero, so that corrections correct and flows flow."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.video.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=draw) / fan_in**0.5
    return model


def targets_of(count: int, size_hw: tuple[int, int]) -> Targets:
    masks = torch.zeros(count, 1, *size_hw, dtype=torch.uint8)
    masks[:, :, 12:40, 20:60] = 1
    return Targets(
        torch.tensor([[[20.0, 12, 60, 40]]]).repeat(count, 1, 1),
        torch.zeros(count, 1).long(),
        torch.zeros(count, 1, dtype=torch.bool),
        masks,
    )


# ------------------------------------------------------------------------------------- shapes


@both_variants
@pytest.mark.parametrize(
    ("size_hw", "batch", "num_classes"),
    [((64, 96), 2, 3), ((90, 150), 1, 1), ((160, 96), 1, 2)],
    ids=["batch-2-three-classes", "odd-one-class", "upright"],
)
@torch.no_grad()
def test_later_frame_has_the_rows_and_maps_of_a_key_frame(variant, size_hw, batch, num_classes):
    classes = tuple(f"c{i}" for i in range(num_classes))
    model = network(variant, classes=classes, category_ids=tuple(range(num_classes)))
    images = torch.randn(batch, 3, *size_hw)
    key, state = model.key(images)
    made = model.nonkey_raw(images, state)
    assert tuple(state) == model.state_names
    assert all(value.shape[0] == batch and value.ndim == 4 for value in state.values())
    for ours, theirs in zip(made.raw, key, strict=True):
        if isinstance(ours, Tensor):
            assert ours.shape == theirs.shape
            assert ours.dtype == torch.float32
        else:
            assert ours == theirs
    assert all(flow.shape[:2] == (batch, 2) for flow in made.flows)
    assert made.flows[0].shape[-1] > made.flows[1].shape[-1]
    assert made.change.shape == (batch,)
    assert (made.change >= 0).all()


@both_variants
@torch.no_grad()
def test_frame_alone_is_a_key_frame(variant):
    model = network(variant)
    images = torch.randn(1, 3, 64, 96)
    for ours, theirs in zip(model(images), model.key(images)[0], strict=True):
        if isinstance(ours, Tensor):
            assert torch.equal(ours, theirs)


@both_variants
@torch.no_grad()
def test_key_frames_are_those_of_the_image_model_with_its_weights(variant):
    model = network(variant)
    image_spec = model_variant("yolact", variant).spec
    fields = {f.name: getattr(model.spec, f.name) for f in dataclasses.fields(image_spec)}
    plain = build_model("yolact", type(image_spec)(**fields)).eval()
    own = model.state_dict()
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    beside = {name.split(".")[0] for name in own if name not in plain.state_dict()}
    assert beside == set(model.video_modules)
    images = torch.randn(1, 3, 64, 96)
    for ours, theirs in zip(model(images), plain(images), strict=True):
        if isinstance(ours, Tensor):
            assert torch.equal(ours, theirs)


@both_variants
@torch.no_grad()
def test_answer_of_a_frame_does_not_depend_on_its_batch(variant):
    model = stirred(network(variant))
    keys, later = torch.randn(2, 2, 3, 64, 96).unbind()
    raw, change = model.nonkey(later, model.key(keys)[1])
    for row in range(2):
        one, changed = model.nonkey(later[row : row + 1], model.key(keys[row : row + 1])[1])
        torch.testing.assert_close(one.logits[0], raw.logits[row], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.prototypes[0], raw.prototypes[row], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(changed[0], change[row], rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------- motion


@torch.no_grad()
def test_fresh_small_network_copies_a_frame_that_did_not_move():
    model = network(has_proto_detail=False)
    model.video.flow.stiffness.data.fill_(100.0)  # untrained features are alike everywhere
    images = model.prepare(frames_of(1))
    key, state = model.key(images)
    later, change = model.nonkey(images, state)
    assert float(change) < SAME
    for name in ("logits", "deltas", "coefficients", "prototypes"):
        torch.testing.assert_close(getattr(later, name), getattr(key, name), rtol=0, atol=SAME)


@torch.no_grad()
def test_boxes_follow_the_flow_by_parts_of_a_cell_too():
    model = network(has_proto_detail=False)
    _, state = model.key(model.prepare(frames_of(1)))
    model.video.flow.forward = lambda now, key: (
        [functional.pad(torch.full((1, 1, 8, 12), -0.5), (0, 0, 0, 0, 0, 1))] * 2,
        torch.zeros(1, model.spec.flow_hidden, 8, 12),
    )  # all of it came from half a cell to the left: 4 pixels
    # one box, seen alike from every cell: its centre at (40, 30)
    key, _ = model.key(torch.zeros(1, 3, 64, 96))
    level = torch.zeros(1, 4, 8, 12)
    side = model.spec.anchor_scale * 8
    level[0, 0] = (40 - (torch.arange(12) + 0.5) * 8) / side
    level[0, 1] = ((30 - (torch.arange(8) + 0.5) * 8) / side)[:, None]
    state["outputs_p3"][:, model.widths[0] : model.widths[0] + 4] = level
    later, change = model.nonkey(torch.zeros(1, 3, 64, 96), state)
    cells = torch.arange(8 * 12).reshape(8, 12)[:, 1:]  # the first column came from outside
    boxes = model.candidates(later).decode(cells.reshape(1, -1))[0]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    wanted = torch.tensor([44.0, 30.0]).expand_as(centres)
    inside = (boxes > 0).all(1) & (boxes[:, 2] < 96) & (boxes[:, 3] < 64)
    assert inside.sum() > 20
    torch.testing.assert_close(centres[inside], wanted[inside], rtol=0, atol=1e-3)
    assert float(change) == pytest.approx(4.0)
    assert not torch.equal(later.deltas, key.deltas)


@torch.no_grad()
def test_object_of_one_cell_keeps_its_score_between_cells():
    model = network(correction=(0, 0), has_proto_detail=False)
    _, state = model.key(model.prepare(frames_of(1)))
    state["outputs_p3"][:, : model.widths[0]] = -9.0
    state["outputs_p3"][:, : model.widths[0], 4, 6] = 5.0
    flow = torch.full((1, 2, 8, 12), -0.4)
    model.video.flow.forward = lambda now, key: ([flow, flow], None)
    later, _ = model.nonkey(torch.zeros(1, 3, 64, 96), state)
    first_level = later.logits[0, : 8 * 12].amax(1)
    assert sorted(first_level.tolist())[-2:] == [-9.0, 5.0]
    assert int(first_level.argmax()) == 4 * 12 + 6


@both_variants
@torch.no_grad()
def test_flow_is_taken_for_zero_where_nothing_is_to_be_warped(variant):
    model = stirred(network(variant))
    keys, later = torch.randn(2, 1, 3, 64, 96).unbind()
    _, state = model.key(keys)
    moved = model.nonkey_raw(later, state)
    model.is_warping = False
    still = model.nonkey_raw(later, state)
    assert float(moved.change) > 0
    assert float(still.change) == 0
    assert all(not flow.any() for flow in still.flows)
    assert not torch.equal(moved.raw.logits, still.raw.logits)


@both_variants
@torch.no_grad()
def test_flows_alone_are_those_of_the_whole_network(variant):
    model = stirred(network(variant))
    keys, later = torch.randn(2, 1, 3, 64, 96).unbind()
    made = model.nonkey_raw(later, model.key(keys)[1])
    for ours, theirs in zip(model.find_flows(keys, later), made.flows, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_matching_finds_a_picture_that_moved_by_whole_cells():
    model = network(encoder=(16, 16, 16, 32), flow_hidden=0)
    torch.manual_seed(1)
    features = functional.normalize(torch.randn(1, 32, 10, 16), dim=1) * 40
    flow = model.video.flow
    for columns, rows in ((0, 0), (2, 0), (-3, 1)):
        now = torch.roll(features, (rows, columns), (2, 3))
        flows, _ = flow((torch.zeros(1, 16, 20, 32), now), (torch.zeros(1, 16, 20, 32), features))
        inner = flows[1][..., 2:-2, 4:-4]
        wanted = torch.tensor([-columns, -rows]).reshape(1, 2, 1, 1).expand_as(inner).float()
        torch.testing.assert_close(inner, wanted, rtol=0, atol=1e-3)
        fine = flows[0][..., 4:-4, 8:-8]
        torch.testing.assert_close(fine, 2 * wanted[..., :1, :1].expand_as(fine), rtol=0, atol=1e-2)


@torch.no_grad()
def test_blended_maps_and_whole_cells_agree_where_all_cells_say_the_same():
    blended, whole = (network(is_blended=b, correction=(0, 0)) for b in (True, False))
    _, state = whole.key(whole.prepare(frames_of(1)))
    for name in state:
        if name.startswith("outputs"):
            state[name][:] = torch.linspace(-1, 1, state[name].shape[1])[:, None, None]
    images = torch.zeros(1, 3, 64, 96)
    flow = torch.rand(1, 2, 8, 12) * 2 - 1
    for model in (blended, whole):
        model.video.flow.forward = lambda now, key: ([flow, flow], None)
    one, other = blended.nonkey(images, state)[0], whole.nonkey(images, state)[0]
    torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=SAME)
    torch.testing.assert_close(one.coefficients, other.coefficients, rtol=0, atol=SAME)
    rest = (other.deltas - one.deltas)[..., :2].abs()  # half a cell of 8 in sides of 24
    assert 0.05 < rest.max() <= 0.5 / 3 + SAME


def test_what_is_to_be_warped_is_one_of_two_things():
    with pytest.raises(TrainingError, match=r"warps 'heads'; expected one of: pyramid, outputs"):
        network(warped="heads")


# ------------------------------------------------------------------------------------ learning


@both_variants
def test_every_weight_for_video_is_reached_by_a_later_frames_loss(variant):
    model = network(variant, matching="atss").train()
    images = torch.randn(2, 3, 64, 96)
    made = model.nonkey_raw(images, model.key(images)[1])
    sum(model.loss(made.raw, targets_of(2, (64, 96))).values()).backward()
    names = {name for name, _ in model.video_parameters()}
    assert names == {name for name, _ in model.named_parameters() if name.startswith("video.")}
    assert [name for name, p in model.video_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"flow_hidden": 0},
        {"correction": (0, 0)},
        {"detail": 0},
        {"has_proto_detail": False},
        {"mending": 0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_parts_of_the_small_network_can_be_left_out(changes):
    model, whole = network(**changes).train(), network()
    images = torch.randn(2, 3, 64, 96)
    raw, _ = model.nonkey(images, model.key(images)[1])
    sum(model.loss(raw, targets_of(2, (64, 96))).values()).backward()
    assert [name for name, p in model.video_parameters() if p.grad is None] == []
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in whole.parameters())


# ---------------------------------------------------------------------------------------- cost


def count_macs(call) -> int:
    """Multiply-adds of the products in a call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("num_classes", [5, COCO_CLASSES])
def test_small_network_costs_what_it_may(num_classes):
    data = {
        "classes": tuple(f"c{i}" for i in range(num_classes)),
        "category_ids": tuple(range(num_classes)),
    }
    plain, model = (
        build_model(name, dataclasses.replace(model_variant(name, "small").spec, **data)).eval()
        for name in ("yolact", "yolact_edge")
    )
    images = torch.zeros(1, 3, *model.spec.size_hw)
    with torch.no_grad():
        state = model.key(images)[1]
    key_macs = count_macs(lambda: model.key(images))
    assert key_macs <= KEY_COST * count_macs(lambda: plain(images))
    assert count_macs(lambda: model.nonkey(images, state)) <= NONKEY_COST * key_macs


def test_published_later_frame_skips_the_backbones_end():
    model = network("resnet50")
    images = torch.zeros(1, 3, 64, 96)
    _, state = model.key(images)
    run = []
    for name, stage in model.backbone.items():
        stage.register_forward_hook(lambda *_, name=name: run.append(name))
    with torch.no_grad():
        model.nonkey(images, state)
    assert "layer2" in run
    assert not {"layer3", "layer4"} & set(run)


@torch.no_grad()
def test_backbone_in_part_gives_its_first_maps():
    backbone = make_backbone("resnet18", (), num_levels=4).eval()
    images = torch.randn(1, 3, 64, 96)
    whole = backbone(images)
    for ours, theirs in zip(run_to_level(backbone, images, 2), whole[:2], strict=True):
        assert torch.equal(ours, theirs)


def test_backbone_that_is_no_row_of_stages_is_refused():
    backbone = make_backbone("mobilenetv2_100", (("blocks", (2, 3, 5)),))
    with pytest.raises(TrainingError, match="cannot be run in part"):
        run_to_level(backbone, torch.zeros(1, 3, 64, 64), 1)
