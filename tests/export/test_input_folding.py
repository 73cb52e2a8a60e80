"""Folding the input: exact where it is done, and not done where it would not be exact."""

from __future__ import annotations

import pytest
import torch
from timm.layers import StdConv2d
from tiny_models import frames_of, shrunk, tiny_model, tiny_spec
from torch import nn
from torch.nn import functional

from export.graph.input_folding import FoldedInput, PlainInput, fold_input
from training.models import build_model, model_variant
from training.models.base import Model

SAME = 1e-5  # of the largest answer


class Net(Model):
    """A model that is one stem; subclasses read the image in their own ways."""

    task, spec_type = "detection", type(tiny_spec())

    def __init__(self, **options: object) -> None:
        super().__init__(tiny_spec())
        torch.manual_seed(0)
        self.stem = self.make(**options)

    def make(self, kind: type[nn.Conv2d] = nn.Conv2d, **options: object) -> nn.Module:
        return kind(3, 6, 3, padding=1, **options)

    def forward(self, images):
        return self.stem(images)


class NormFirst(Net):
    def make(self):
        return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, padding=1))


class TwoReaders(Net):
    def make(self):
        return nn.ModuleList((nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)))

    def forward(self, images):
        return self.stem[0](images) + self.stem[1](images)


class ReadTwice(Net):
    def forward(self, images):
        return self.stem(images) + self.stem(images * 0.5)


class ImageToo(Net):
    def forward(self, images):
        return self.stem(images) + images.mean()


class PooledFirst(Net):
    def forward(self, images):
        return self.stem(functional.avg_pool2d(images, 2))


class StemTwice(Net):
    def forward(self, images):
        return self.stem(self.stem(images)[:, :3])


class PaddedByHand(Net):
    def forward(self, images):
        return self.stem(functional.pad(images, (0, 1, 0, 1), value=1.0))


def frames() -> torch.Tensor:
    """Noise with a white and a black border, where padding shows."""
    images = frames_of(2)
    images[0, :2], images[0, :, :2], images[1, -2:], images[1, :, -2:] = 255, 255, 0, 0
    return images


def answers(model: Model) -> tuple[torch.Tensor, torch.Tensor, type]:
    copy, entry = fold_input(model.eval())
    with torch.no_grad():
        return model(model.prepare(frames())), copy(entry(frames())), type(entry)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / ours.abs().max())


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"dilation": 2}, {"stride": 2}],
    ids=["plain", "no-bias", "dilated", "strided"],
)
def test_plain_convolution_takes_over_order_and_scale_up_to_the_border(options):
    expected, found, entry = answers(Net(**options))
    assert entry is FoldedInput
    assert difference(expected, found) <= SAME


def test_all_convolutions_that_read_the_image_take_over_order_and_scale():
    expected, found, entry = answers(TwoReaders())
    assert entry is FoldedInput
    assert difference(expected, found) <= SAME


@pytest.mark.parametrize("variant", ["small", "r50"])
def test_whole_network_answers_the_same_after_folding(variant):
    torch.manual_seed(0)
    model = build_model("retinanet", shrunk(model_variant("retinanet", variant).spec)).eval()
    copy, entry = fold_input(model)
    assert isinstance(entry, FoldedInput)
    with torch.no_grad():
        ours, theirs = model(model.prepare(frames())), copy(entry(frames()))
    assert difference(ours.logits, theirs.logits) <= SAME
    assert difference(ours.deltas, theirs.deltas) <= 10 * SAME  # small numbers of large sums


@pytest.mark.parametrize(
    "model",
    [
        Net(kind=StdConv2d),
        Net(padding_mode="reflect"),
        Net(groups=3),
        NormFirst(),
        ReadTwice(),
        ImageToo(),
        PooledFirst(),
        StemTwice(),
        PaddedByHand(),
    ],
    ids=[
        "standardised", "reflecting", "grouped", "norm-first", "read-twice", "image-too",
        "pooled-first", "stem-twice", "padded-by-hand",
    ],
)  # fmt: skip
def test_network_that_begins_otherwise_is_not_folded_and_answers_the_same(model: Model):
    expected, found, entry = answers(model)
    assert entry is PlainInput
    assert difference(expected, found) <= SAME


def test_backbone_with_standardised_weights_answers_the_same():
    spec = tiny_spec(backbone="resnetv2_50x1_bit", backbone_args=())
    model = build_model("retinanet", spec).eval()
    copy, entry = fold_input(model)
    with torch.no_grad():
        ours, theirs = model(model.prepare(frames())), copy(entry(frames()))
    assert difference(ours.logits, theirs.logits) <= SAME


def test_folding_leaves_the_model_as_it_was():
    model = tiny_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fold_input(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
