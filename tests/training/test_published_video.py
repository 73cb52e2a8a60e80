"""Published video checkpoints: tensors and their places, and what the published code gives.

`published/yolact_edge_vid_resnet50.npz` holds a part of what the official code gave for weights
filled by the rule of `published_weights`: a key frame of the normalised image, then a frame with
noise added that leans on it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from published_weights import FOLDER, KEYS, filled_tensors, flat_tensors, normalised_image
from torch import Tensor

from runtime.contract.matching import pairwise_iou
from training.data.youtube_vis_names import CATEGORY_IDS, CLASSES
from training.errors import CheckpointError, TrainingError
from training.loop.checkpoint import load_release
from training.models import build_model, model_variant
from training.models.base import Model
from training.models.instance.yolact import YolactRaw
from training.published import import_published, load_published, our_name
from training.published_video import FIRST, UNUSED
from training.tasks.detection import select_rows

NAME = "yolact_edge_vid_resnet50.npz"
GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / NAME
SAME = 1e-4  # float32 sums in another order
SAME_IOU = 0.999
COUNT, MATCHED = 100, 97  # published detections, and how many must be found: scores are saturated
VARIANT_OF = {"yolact_edge_vid_resnet50": "resnet50", "yolact_edge_vid": "resnet101"}
every_known = pytest.mark.parametrize(("published", "variant"), VARIANT_OF.items())


def empty_model(variant: str) -> Model:
    spec = model_variant("yolact_edge", variant).spec
    with torch.device("meta"):  # shapes without memory
        return build_model(
            "yolact_edge", dataclasses.replace(spec, classes=CLASSES, category_ids=CATEGORY_IDS)
        )


def empty_tensors(published: str) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in KEYS[published].items()}


# ------------------------------------------------------------------------------------------- names


@every_known
def test_every_tensor_has_one_place_and_every_place_a_tensor(published, variant):
    own = empty_model(variant).state_dict()
    keys = [key for key in KEYS[published] if not UNUSED.match(key)]
    assert len(KEYS[published]) - len(keys) == 7  # flow at the size of P3
    places = [our_name(key) for key in keys if not key.startswith(FIRST)]
    halves = [f"video.flow.first_{part}" for part in ("now.weight", "now.bias", "key.weight")]
    assert sorted([*places, *halves]) == sorted(own)
    load_published(empty_model(variant), empty_tensors(published))


@every_known
def test_import_knows_the_variant_and_the_classes_of_youtube_vis(published, variant):
    with torch.device("meta"):
        model = import_published(empty_tensors(published))
    assert (model.spec.variant, model.spec.warped) == (variant, "pyramid")
    assert (model.spec.classes, model.spec.category_ids) == (CLASSES, CATEGORY_IDS)
    assert len(CLASSES) == 40


def test_first_convolution_is_taken_apart_exactly():
    draw = torch.Generator().manual_seed(0)
    tensors = empty_tensors("yolact_edge_vid_resnet50")
    weight, bias = torch.randn(64, 128, 3, 3, generator=draw), torch.randn(64, generator=draw)
    tensors |= {f"{FIRST}weight": weight, f"{FIRST}bias": bias}
    model = empty_model("resnet50")
    flow = model.video.flow
    flow.first_now.to_empty(device="cpu")
    flow.first_key.to_empty(device="cpu")
    load_published(model, tensors)
    now, key = torch.randn(2, 1, 64, 9, 7, generator=draw).unbind()
    joined = torch.nn.functional.conv2d(
        torch.cat((now, key), 1).double(), weight.double(), bias.double(), padding=1
    )
    with torch.no_grad():
        ours = flow.first_now(now) + flow.first_key(key)
    torch.testing.assert_close(ours.double(), joined, rtol=0, atol=SAME)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("spa.refine_convs.1.0.bias", r"nothing for tensors of the model: video\.refine\.1\.bias"),
        (f"{FIRST}weight", r"nothing for.*video\.flow\.first_now\.weight"),
    ],
)
def test_checkpoint_without_a_tensor_is_refused_by_its_name(key, says):
    tensors = empty_tensors("yolact_edge_vid_resnet50")
    del tensors[key]
    with pytest.raises(CheckpointError, match=says):
        load_published(empty_model("resnet50"), tensors)


def test_tensor_without_a_place_is_refused_by_its_name():
    tensors = empty_tensors("yolact_edge_vid_resnet50")
    tensors["flow_net.conv4.0.0.weight"] = torch.empty(512, 256, 3, 3)
    with pytest.raises(CheckpointError, match=r"no place for: flow_net\.conv4\.0\.0\.weight"):
        load_published(empty_model("resnet50"), tensors)


def test_video_model_of_other_classes_needs_their_names():
    tensors = empty_tensors("yolact_edge_vid_resnet50")
    with torch.device("meta"), pytest.raises(TrainingError, match="2 classes for a checkpoint of"):
        import_published(tensors, classes=("cat", "dog"))


def test_published_file_loads_as_a_model_for_video(tmp_path: Path):
    path = tmp_path / "yolact_edge_vid_resnet50_847_50000.pth"
    torch.save(flat_tensors("yolact_edge_vid_resnet50"), path)
    model, header = load_release(path, "yolact_edge")
    assert model.spec.size_hw == (550, 550)
    assert "YouTube VIS" in header["training"]["data"]
    with pytest.raises(CheckpointError, match=r"'yolact_edge'; expected 'yolact'"):
        load_release(path, "yolact")


# ----------------------------------------------------------------------------------------- numbers


@pytest.fixture(scope="module")
def model() -> Model:
    return import_published(filled_tensors("yolact_edge_vid_resnet50"))


@pytest.fixture(scope="module")
def answers(model: Model) -> dict[str, YolactRaw]:
    """A key frame, and one that leans on it."""
    draw = np.random.default_rng(7)
    first = draw.standard_normal((1, 3, 550, 550)).astype(np.float32)
    second = (first + 0.3 * draw.standard_normal(first.shape)).astype(np.float32)
    assert torch.equal(torch.from_numpy(first), normalised_image())
    with torch.no_grad():
        key, state = model.key(torch.from_numpy(first))
        later, change = model.nonkey(torch.from_numpy(second), state)
    assert change.shape == (1,)
    assert change > 0
    return {"key": key, "nonkey": later}


def assert_same_numbers(raw: YolactRaw, golden: dict[str, np.ndarray], frame: str) -> None:
    found = {
        "loc": raw.deltas,
        "conf": raw.logits.softmax(-1),
        "mask": raw.coefficients,
        "proto": raw.prototypes.permute(0, 2, 3, 1),
    }
    for name, values in found.items():
        assert list(values.shape) == golden[f"{frame}.{name}.shape"].tolist()
        ours = values.numpy().reshape(-1)[golden[f"{frame}.{name}.index"]]
        np.testing.assert_allclose(ours, golden[f"{frame}.{name}.value"], rtol=0, atol=SAME)


@pytest.mark.parametrize("frame", ["key", "nonkey"])
def test_frame_gives_the_numbers_of_the_published_code(frame, answers):
    with np.load(FOLDER / NAME) as golden:
        assert_same_numbers(answers[frame], dict(golden), frame)


@pytest.mark.parametrize("frame", ["key", "nonkey"])
def test_frame_gives_all_reference_numbers(frame, answers):
    if not GOLDEN.is_file():
        pytest.skip(f"the full reference numbers {GOLDEN} are not on this machine")
    with np.load(GOLDEN) as golden:
        assert_same_numbers(answers[frame], dict(golden), frame)


@pytest.mark.parametrize("frame", ["key", "nonkey"])
def test_frame_gives_the_published_detections(frame, model: Model, answers):
    with np.load(FOLDER / NAME) as file:
        golden = dict(file)
    found = next(select_rows(model, model.candidates(answers[frame]), 0.05, None))
    iou = pairwise_iou(golden[f"{frame}.boxes_xyxy"] * 550, found.boxes_xyxy.numpy())
    iou[golden[f"{frame}.classes"][:, None] != found.classes.numpy()[None]] = 0
    is_found = iou.max(1) >= SAME_IOU
    assert len(golden[f"{frame}.scores"]) == COUNT
    assert len(np.unique(iou.argmax(1)[is_found])) >= MATCHED
    scores = found.scores.numpy()[iou.argmax(1)]
    assert np.abs(scores - golden[f"{frame}.scores"])[is_found].max() <= SAME
