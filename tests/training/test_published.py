"""Published checkpoints: their tensors' names, and the numbers that the published code gives."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from calling import call
from published_weights import FOLDER, KEYS, filled_tensors, flat_tensors, normalised_image
from torch import Tensor
from torch.nn import functional

from training.data.coco_names import CATEGORY_IDS, CLASSES
from training.errors import CheckpointError, TrainingError
from training.layers.anchors import make_anchors
from training.layers.backbone import make_backbone
from training.loop.checkpoint import load_release
from training.models import build_model, model_variant
from training.models.base import Model
from training.published import (
    import_published,
    is_published,
    load_published,
    our_name,
    read_published,
    recognise_variant,
)

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "yolact_resnet50.npz"
SAME = 1e-4  # float32 sums in another order
VARIANT_OF = {
    "yolact_resnet50": "resnet50",
    "yolact_base": "resnet101",
    "yolact_darknet53": "darknet53",
    "yolact_edge_resnet50": "resnet50",
    "yolact_edge": "resnet101",
    "yolact_edge_mobilenetv2": "mobilenetv2",
}
VIDEO = ("spa.", "flow_net")
every_known = pytest.mark.parametrize(("published", "variant"), VARIANT_OF.items())


def model_of(variant: str, num_classes: int = 80) -> Model:
    spec = model_variant("yolact", variant).spec
    classes, ids = CLASSES[:num_classes], CATEGORY_IDS[:num_classes]
    return build_model(
        "yolact", dataclasses.replace(spec, classes=classes, category_ids=ids)
    ).eval()


def empty_model(variant: str) -> Model:
    with torch.device("meta"):  # shapes without memory
        return model_of(variant)


def empty_tensors(published: str) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in KEYS[published].items()}


# ------------------------------------------------------------------------------------------- names


@every_known
def test_every_tensor_has_one_place_and_every_place_a_tensor(published, variant):
    own = empty_model(variant).state_dict()
    unread = ("backbone.layers.7.", "backbone.layers.8.") if variant == "mobilenetv2" else ()
    keys = [key for key in KEYS[published] if not key.startswith(unread)]
    places = {key: our_name(key) for key in keys}
    assert sorted(places.values()) == sorted(own)
    for key, place in places.items():
        assert list(own[place].shape) == KEYS[published][key]
    load_published(empty_model(variant), empty_tensors(published))


@pytest.mark.parametrize("published", ["yolact_edge_vid", "yolact_edge_vid_resnet50"])
def test_video_checkpoint_differs_from_the_image_models_in_its_flow_alone(published):
    image = KEYS[published.replace("_vid", "")]
    others = {key for key in KEYS[published] if not key.startswith(VIDEO)}
    assert others == set(image)
    assert set(KEYS[published]) - others


def test_levels_are_counted_from_the_other_end():
    assert our_name("fpn.lat_layers.0.weight") == "pyramid.laterals.2.0.weight"
    assert our_name("fpn.pred_layers.2.bias") == "pyramid.outputs.0.0.bias"
    assert our_name("fpn_phase_1.lat_layers.0.weight") == our_name("fpn.lat_layers.0.weight")


def test_duplicates_in_old_files_are_left_out():
    tensors = empty_tensors("yolact_resnet50")
    tensors["backbone.layer1.0.conv1.weight"] = tensors["backbone.layers.0.0.conv1.weight"]
    tensors["fpn.downsample_layers.2.weight"] = tensors["fpn.downsample_layers.0.weight"]
    load_published(empty_model("resnet50"), tensors)


# ---------------------------------------------------------------------------------------- refusals


def without(tensors: dict[str, Tensor]) -> None:
    del tensors["proto_net.2.bias"]


def with_flow(tensors: dict[str, Tensor]) -> None:
    tensors["flow_net.conv1.0.0.weight"] = torch.zeros(64, 128, 3, 3)


def with_other_block(tensors: dict[str, Tensor]) -> None:
    key = "backbone.layers.2.6.conv1.weight"
    tensors[key] = torch.zeros(256, 1024, 1, 1)


def with_other_classes(tensors: dict[str, Tensor]) -> None:
    tensors["prediction_layers.0.conf_layer.bias"] = torch.zeros(123)


def with_no_heads(tensors: dict[str, Tensor]) -> None:
    for key in [key for key in tensors if key.startswith("prediction_layers")]:
        del tensors[key]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without, r"nothing for tensors of the model: prototypes\.coarse\.1\.0\.bias\."),
        (with_flow, r"no place for: flow_net\.conv1\.0\.0\.weight\."),
        (with_other_block, r"no place for: backbone\.layers\.2\.6\.conv1\.weight\."),
        (with_other_classes, r"shape: scores\.predict\.bias \(123,\) for \(243,\)"),
        (with_no_heads, r"expected tensors named as YOLACT"),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused_by_its_tensors_name(spoil, says):
    tensors = empty_tensors("yolact_resnet50")
    spoil(tensors)
    with pytest.raises(CheckpointError, match=says):
        load_published(empty_model("resnet50"), tensors)


def test_refused_checkpoint_changes_nothing():
    model = model_of("resnet50", 2)
    before = copy.deepcopy(model.state_dict())
    tensors = {key: torch.ones(shape) for key, shape in KEYS["yolact_resnet50"].items()}
    with pytest.raises(CheckpointError):
        load_published(model, tensors)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_our_own_checkpoints_are_not_taken_for_published_ones():
    assert not is_published(empty_model("small").state_dict())
    assert is_published(empty_tensors("yolact_edge_mobilenetv2"))


# ------------------------------------------------------------------------------------------ import


@every_known
def test_variant_is_told_by_the_tensors(published, variant):
    assert recognise_variant(empty_tensors(published)) == variant


def test_backbone_of_other_depth_is_not_taken_for_a_known_one():
    tensors = empty_tensors("yolact_resnet50")
    tensors["backbone.layers.2.6.conv1.weight"] = torch.zeros(256, 1024, 1, 1)
    with pytest.raises(CheckpointError, match="third stage has 7 blocks"):
        recognise_variant(tensors)


def test_import_asks_for_the_names_of_all_classes():
    with pytest.raises(TrainingError, match="2 classes for a checkpoint of 80"):
        import_published(empty_tensors("yolact_resnet50"), classes=("cat", "dog"))


def test_import_at_another_size_has_the_anchors_that_were_published_for_it():
    with torch.device("meta"):
        spec = import_published(empty_tensors("yolact_base"), size=700).spec
    assert spec.size_hw == (700, 700)
    counts = (88, 44, 22, 11, 6)
    expected = []
    for count, scale in zip(counts, (30, 61, 122, 244, 488), strict=True):
        for y in range(count):
            for x in range(count):
                for ratio in (1, 1 / 2, 2):
                    half = scale * ratio**0.5 / 2
                    cx, cy = (x + 0.5) * 700 / count, (y + 0.5) * 700 / count
                    expected.append((cx - half, cy - half, cx + half, cy + half))
    anchors = make_anchors(
        [(count, count) for count in counts],
        (8, 16, 32, 64, 128),
        base_scale=spec.anchor_scale,
        octaves=spec.octaves,
        ratios=spec.ratios,
        is_square=spec.has_square_anchors,
        spread_hw=(700, 700),
    )
    np.testing.assert_allclose(anchors, np.array(expected), rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the official code saves it; each tensor is one number, repeated."""
    path = tmp_path_factory.mktemp("downloaded") / "yolact_resnet50.pth"
    torch.save(flat_tensors("yolact_resnet50"), path)
    return path


def test_script_writes_a_checkpoint_with_the_published_numbers(downloaded: Path, tmp_path: Path):
    out = tmp_path / "imported.safetensors"
    done = call("training.import_published", downloaded, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "resnet50, 80 classes" in done.stdout
    model, header = load_release(out, "yolact")
    assert model.spec.classes == CLASSES
    assert model.spec.category_ids == CATEGORY_IDS
    assert header["training"]["file"] == downloaded.name
    theirs = read_published(downloaded)["fpn.lat_layers.2.bias"]
    assert torch.equal(model.pyramid.laterals[0][0].bias, theirs)


def test_script_refuses_a_size_that_is_none(downloaded: Path, tmp_path: Path):
    done = call("training.import_published", downloaded, "--out", tmp_path / "a", "--size", "0")
    assert done.returncode == 2
    assert "--size 0 is no side" in done.stderr


def test_script_overwrites_nothing(downloaded: Path, tmp_path: Path):
    out = tmp_path / "mine.safetensors"
    out.write_bytes(b"mine")
    done = call("training.import_published", downloaded, "--out", out)
    assert done.returncode == 2
    assert out.read_bytes() == b"mine"


class Stranger:
    """Something that only arbitrary code could rebuild."""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no file"),
        (b"", "cannot be read as tensors"),
        (b"<html>quota exceeded</html>", "cannot be read as tensors"),
        (Stranger(), "cannot be read as tensors"),
        ({"epoch": 3}, "other things than tensors"),
        ({0: torch.zeros(1)}, "other things than tensors"),
        ({"a.weight": torch.zeros(1)}, "expected tensors named as YOLACT"),
    ],
    ids=["missing", "empty", "page", "object", "numbers", "numbered", "other-network"],
)
def test_file_that_is_no_published_checkpoint_ends_in_one_line(content, says, tmp_path: Path):
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    done = call("training.import_published", path, "--out", tmp_path / "out.safetensors")
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


# ---------------------------------------------------------------------------------------- backbones


def random_backbone(published: str) -> dict[str, Tensor]:
    """Weights under the published names of a backbone, for both implementations."""
    draw, tensors = torch.Generator().manual_seed(0), {}
    for key, shape in KEYS[published].items():
        if not key.startswith("backbone."):
            continue
        if len(shape) == 4:
            spread = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
            tensors[key] = torch.randn(shape, generator=draw) * spread
        else:
            tensors[key] = torch.rand(shape, generator=draw) + 0.1 if shape else torch.tensor(0)
    return tensors


def features_of_ours(variant: str, tensors: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    spec = model_variant("yolact", variant).spec
    backbone = make_backbone(spec.backbone, spec.backbone_args).eval()
    renamed = {our_name(key): value for key, value in tensors.items()}
    renamed.pop(None, None)  # the end of MobileNetV2, which nothing reads
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in renamed.items()})
    return backbone(images)


def assert_same_features(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=SAME * float(theirs.abs().max()))


@torch.no_grad()
def test_darknet_gives_what_its_layers_give_one_by_one():
    tensors, images = random_backbone("yolact_darknet53"), torch.randn(1, 3, 64, 96)

    def layer(feature: Tensor, key: str, stride: int = 1) -> Tensor:
        weight = tensors[f"{key}.0.weight"]
        feature = functional.conv2d(feature, weight, None, stride, weight.shape[-1] // 2)
        names = ("running_mean", "running_var", "weight", "bias")
        norm = [tensors[f"{key}.1.{name}"] for name in names]
        return functional.leaky_relu(functional.batch_norm(feature, *norm), 0.1)

    feature, expected = layer(images, "backbone._preconv"), []
    for stage, blocks in enumerate((1, 2, 8, 8, 4)):
        feature = layer(feature, f"backbone.layers.{stage}.0", 2)
        for block in range(1, blocks + 1):
            key = f"backbone.layers.{stage}.{block}"
            feature = feature + layer(layer(feature, f"{key}.conv1"), f"{key}.conv2")
        expected.append(feature)
    assert_same_features(features_of_ours("darknet53", tensors, images), expected[2:])


@pytest.mark.parametrize("blocks", [(2, 3, 5), (4, 5, 6)])
def test_blocks_of_a_network_that_has_none_or_of_other_strides_are_refused(blocks):
    name = "resnet18" if blocks[0] == 2 else "mobilenetv2_100"
    with pytest.raises(TrainingError, match="cannot make the backbone|gives strides"):
        make_backbone(name, (("blocks", blocks),))


@torch.no_grad()
def test_mobilenet_gives_what_torchvisions_gives():
    tensors, images = random_backbone("yolact_edge_mobilenetv2"), torch.randn(1, 3, 64, 96)
    network = torchvision.models.mobilenet_v2(num_classes=2).eval()
    first = (0, 1, 2, 4, 7, 11, 14, 17, 18)  # torchvision counts on through the stages

    def torchvisions(key: str) -> str:
        stage, rest = key.removeprefix("backbone.layers.").split(".", 1)
        if stage in ("0", "8"):
            return f"{first[int(stage)]}.{rest}"
        block, rest = rest.split(".", 1)
        return f"{first[int(stage)] + int(block)}.{rest}"

    network.features.load_state_dict({torchvisions(k): v for k, v in tensors.items()})
    feature, outputs = images, []
    for layer in network.features:
        feature = layer(feature)
        outputs.append(feature)
    expected = [outputs[first[stage + 1] - 1] for stage in (3, 4, 6)]
    assert_same_features(features_of_ours("mobilenetv2", tensors, images), expected)


# ------------------------------------------------------------------------------------------ numbers


@pytest.fixture(scope="module")
def answers() -> dict[str, np.ndarray]:
    """What our network gives with the rule's weights, in the published order and units."""
    model = model_of("resnet50")
    load_published(model, filled_tensors("yolact_resnet50"))
    with torch.no_grad():
        raw = model(normalised_image())
    corners = raw.anchors.numpy() / 550
    low, high = corners[:, :2], corners[:, 2:]
    return {
        "loc": raw.deltas.numpy(),
        "conf": raw.logits.softmax(-1).numpy(),
        "mask": raw.coefficients.numpy(),
        "proto": raw.prototypes.permute(0, 2, 3, 1).numpy(),
        "priors": np.concatenate(((low + high) / 2, high - low), 1),
    }


def assert_same_numbers(answers: dict[str, np.ndarray], path: Path) -> None:
    with np.load(path) as golden:
        for name, found in answers.items():
            assert list(found.shape) == golden[f"{name}.shape"].tolist()
            values = found.reshape(-1)[golden[f"{name}.index"]]
            np.testing.assert_allclose(values, golden[f"{name}.value"], rtol=0, atol=SAME)


def test_resnet50_gives_the_numbers_of_the_published_code(answers: dict[str, np.ndarray]):
    assert_same_numbers(answers, FOLDER / "yolact_resnet50.npz")


def test_resnet50_gives_all_reference_numbers(answers: dict[str, np.ndarray]):
    if not GOLDEN.is_file():
        pytest.skip(f"the full reference numbers {GOLDEN} are not on this machine")
    assert_same_numbers(answers, GOLDEN)
