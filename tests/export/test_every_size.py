"""Network inputs of any size: what fits is taken, what does not is refused in words."""

from __future__ import annotations

import pytest
from tiny_models import shrunk
from torch import nn

from export.bundling import resize_input
from runtime.contract.errors import BundleError
from training.models import build_model, model_variant
from training.models.base import Model


def small_model(name: str, variant: str, **changes: object) -> Model:
    return build_model(name, shrunk(model_variant(name, variant).spec, **changes)).eval()


@pytest.mark.parametrize("size_hw", [(110, 97), (64, 200)], ids=str)
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("retinanet", "small"),
        ("yolact", "small"),
        ("yolact", "resnet50"),
        ("yolact_edge", "small"),
        ("centernet_pose", "small"),
        ("retinaface", "small"),
    ],
)
def test_input_need_not_be_a_multiple_of_anything(name, variant, size_hw):
    model = small_model(name, variant)
    resize_input(model, size_hw)
    assert model.spec.size_hw == size_hw


def test_input_whose_masks_are_too_small_to_be_judged_is_refused():
    model = small_model("yolact", "plus_resnet50", size_hw=(128, 128), rescore_convs=(4,) * 4)
    with pytest.raises(BundleError, match=r"--size 96x96 does not fit.*Choose a larger --size"):
        resize_input(model, (96, 96))


def test_input_that_the_network_breaks_on_is_refused_in_one_line():
    model = small_model("retinanet", "small")
    model.backbone.conv1 = nn.Conv2d(3, 32, 99)
    with pytest.raises(BundleError, match="--size 80x64 does not fit this network") as refused:
        resize_input(model, (64, 80))
    assert "\n" not in str(refused.value)
