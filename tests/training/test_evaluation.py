"""Evaluation: a model that knows the truth scores 1, and boxes find their way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import CATEGORY_IDS, CLASSES, tiny_spec

from runtime.contract.manifest import InputGeometry
from runtime.preprocess import Letterbox
from training.data.geometry import letterbox
from training.data.sample import Sample
from training.models.base import Candidates, Model
from training.tasks.detection import Boxes, evaluate, to_source

SAME_PX = 0.01  # of boxes that went through the letterbox and back, in float32


class Knowing(Model):
    """Answers with the ground truth of the frames that it was shown."""

    task, spec_type = "detection", type(tiny_spec())

    def __init__(self, samples: list[Sample]) -> None:
        super().__init__(tiny_spec())
        fitted = [letterbox(sample, self.spec.size_hw) for sample in samples]
        self.truth = {sample.image.tobytes(): sample for sample in fitted}

    def prepare(self, images):
        self.seen = [self.truth[image.numpy().tobytes()] for image in images]
        return images

    def forward(self, images):
        return self.seen

    def candidates(self, raw) -> Candidates:
        rows = 120
        logits = torch.full((len(raw), rows, len(CLASSES)), -20.0)
        boxes = torch.zeros(len(raw), rows, 4)
        for index, sample in enumerate(raw):
            places = torch.arange(len(sample)) + 7
            logits[index, places, torch.from_numpy(sample.classes)] = 3.0
            boxes[index, places] = torch.from_numpy(sample.boxes_xyxy)

        def decode(indices):
            return boxes.gather(1, indices[..., None].expand(-1, -1, 4))

        return Candidates(logits, decode, {})


def scene(index: int, count: int) -> Sample:
    """Objects side by side in a picture of some size; the first picture has none."""
    rng = np.random.default_rng(index)
    height, width = int(rng.integers(80, 400)), int(rng.integers(200, 700))
    left = np.arange(count) * (width / max(count, 1))
    top = rng.uniform(0, height / 3, count)
    corners = np.stack(
        (left, top, left + width / max(count, 1) * 0.8, top + rng.uniform(30, height / 2, count)), 1
    )
    return Sample(
        image=rng.integers(0, 255, (height, width, 3), np.uint8),
        boxes_xyxy=corners.clip(0, (width, height, width, height)).astype(np.float32),
        classes=rng.integers(0, 3, count),
        is_crowd=np.zeros(count, bool),
        image_id=100 + index,
        file_name=str(index),
    )


def test_model_that_knows_the_truth_has_an_ap_of_one():
    scenes = [scene(index, index % 5) for index in range(11)]
    scores = evaluate(Knowing(scenes), scenes, CATEGORY_IDS, batch=4)
    assert scores["AP"] == pytest.approx(1.0)


def test_model_that_confuses_two_classes_has_less():
    scenes = [scene(index, index % 5) for index in range(11)]
    model = Knowing(scenes)
    for sample in model.truth.values():
        sample.classes = np.array([1, 0, 2])[sample.classes]
    assert evaluate(model, scenes, CATEGORY_IDS)["AP"] < 0.6


def test_evaluation_leaves_the_model_in_the_mode_it_was_in():
    model = Knowing([scene(1, 2)]).train()
    evaluate(model, [scene(1, 2)], CATEGORY_IDS)
    assert model.training


@pytest.mark.parametrize("source_hw", [(432, 768), (97, 301), (600, 50), (64, 96)], ids=str)
def test_boxes_go_back_to_the_source_as_the_runtime_takes_them(source_hw):
    boxes = np.random.default_rng(0).uniform(-10, 110, (20, 4)).astype(np.float32)
    rows = np.zeros(20)
    ours = to_source(Boxes(boxes, rows, rows), source_hw, (64, 96)).boxes_xyxy
    theirs = Letterbox.fit(source_hw, InputGeometry(64, 96)).to_source(boxes)
    assert np.abs(ours - theirs).max() <= SAME_PX
