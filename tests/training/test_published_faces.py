"""Published face detectors: every tensor has its place, and the numbers are the published ones."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from calling import call
from published_face_networks import NETWORKS, run_published
from tiny_models import frames_of
from torch import Tensor, nn
from torchvision.models import resnet50

from training.errors import CheckpointError, TrainingError
from training.loop.checkpoint import load_release
from training.models import build_model, model_variant
from training.published import import_published, load_published, published_model
from training.published_faces import our_face_name

SAME = 1e-4  # of the largest value: float32 sums in another order
FRAMES = frames_of(2, (96, 128), seed=3)
every_variant = pytest.mark.parametrize("variant", NETWORKS)


def tensors_of(variant: str, prefix: str = "") -> dict[str, Tensor]:
    return run_published(variant, FRAMES[:1], prefix)[0]


@every_variant
@pytest.mark.parametrize("prefix", ["", "module."], ids=["bare", "parallel"])
def test_imported_network_gives_what_the_published_one_gives(variant, prefix):
    tensors, wanted = run_published(variant, FRAMES, prefix)
    assert published_model(tensors) == "retinaface"
    model = import_published(tensors)
    assert model.spec.variant == variant
    with torch.no_grad():
        raw = model(model.prepare(FRAMES))
    for name, value in wanted.items():
        found = getattr(raw, name)
        torch.testing.assert_close(found, value, rtol=0, atol=SAME * float(value.abs().max()))
    assert len(raw.anchors) == wanted["logits"].shape[1]


@every_variant
def test_every_tensor_has_one_place_and_every_place_a_tensor(variant):
    names = [our_face_name(key) for key in tensors_of(variant)]
    with torch.device("meta"):
        model = build_model("retinaface", model_variant("retinaface", variant).spec)
    assert sorted(map(str, names)) == sorted(model.state_dict())


def test_resnet_s_tensors_are_torchvisions_and_find_their_places():
    light = tensors_of("mobilenet025")
    with torch.device("meta"):
        body = resnet50().state_dict()
        model = build_model("retinaface", model_variant("retinaface", "resnet50").spec)
    keys = [f"body.{key}" for key in body if not key.startswith("fc.")]
    keys += [key for key in light if not key.startswith("body.")]
    assert sorted(str(our_face_name(key)) for key in keys) == sorted(model.state_dict())
    for key in keys:
        if key.startswith("body."):
            assert model.state_dict()[our_face_name(key)].shape == body[key[5:]].shape


def without(tensors: dict[str, Tensor]) -> None:
    del tensors["ssh2.conv7x7_3.1.bias"]


def with_more(tensors: dict[str, Tensor]) -> None:
    tensors["fc.weight"] = torch.zeros(1000, 256)


def with_another_block(tensors: dict[str, Tensor]) -> None:
    tensors["body.stage3.2.0.weight"] = torch.zeros(256, 1, 3, 3)


def with_other_anchors(tensors: dict[str, Tensor]) -> None:
    tensors["BboxHead.1.conv1x1.bias"] = torch.zeros(12)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without, r"nothing for tensors of the model: contexts\.1\.seven\.1\.1\.bias\."),
        (with_more, r"no place for: fc\.weight\."),
        (with_another_block, r"no place for: body\.stage3\.2\.0\.weight\."),
        (with_other_anchors, r"another shape: boxes\.1\.bias \(12,\) for \(8,\)"),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused_by_its_tensors_name(spoil, says):
    tensors = tensors_of("mobilenet025")
    model = import_published(tensors)
    before = copy.deepcopy(model.state_dict())
    spoil(tensors)
    with pytest.raises(CheckpointError, match=says):
        load_published(model, tensors)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_other_trunk_is_refused():
    tensors = tensors_of("mobilenet025")
    odd = {key.replace("body.stage", "body.features"): value for key, value in tensors.items()}
    with pytest.raises(CheckpointError, match=r"begins with body\.features1\.0\.0\.weight; expec"):
        import_published(odd)


def test_wrong_variant_has_no_place_for_the_tensors():
    model = build_model("retinaface", model_variant("retinaface", "slim").spec)
    with pytest.raises(CheckpointError, match=r"no place for: conv8\.branch0\.0\.conv\.weight"):
        load_published(model, tensors_of("rfb"))


def test_two_classes_are_refused():
    with pytest.raises(TrainingError, match="2 classes for a checkpoint that knows faces alone"):
        import_published(tensors_of("slim"), classes=("face", "mask"))


def test_downloaded_file_becomes_a_checkpoint_of_ours(tmp_path: Path):
    tensors = tensors_of("slim", "module.")
    downloaded, out = tmp_path / "slim_Final.pth", tmp_path / "slim.safetensors"
    torch.save(tensors, downloaded)
    theirs, header = load_release(downloaded, "retinaface")
    assert header["training"]["data"] == "WIDER FACE"
    done = call("training.import_published", downloaded, "--out", out, "--size", "320")
    assert done.returncode == 0, done.stderr
    ours, header = load_release(out, "retinaface")
    assert ours.spec == dataclasses.replace(theirs.spec, size_hw=(320, 320))
    assert ours.spec.classes == ("face",)
    assert header["model"] == "retinaface"
    for (name, value), (_, given) in zip(
        ours.state_dict().items(), theirs.state_dict().items(), strict=True
    ):
        given = given.half().float() if given.ndim >= 2 else given
        assert torch.equal(value, given), name


def test_running_statistics_are_of_every_normalisation():
    model = import_published(tensors_of("rfb"))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(int(norm.num_batches_tracked) == 7 for norm in norms)
