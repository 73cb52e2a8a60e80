"""Frames of a bundle's samples are made as the runtime makes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_spec

from export.proof.frames import network_frames
from runtime.contract.manifest import InputGeometry
from runtime.preprocess import Letterbox
from training.data import each_once, open_data

SIZE_HW = (64, 128)  # another aspect than the pictures'


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_sample_frames_fit_the_input_as_the_spec_has_it(resize: str, discs: Path):
    spec = dataclasses.replace(tiny_spec(), resize=resize, size_hw=SIZE_HW)
    frames = network_frames(str(discs), spec, 3)
    geometry = InputGeometry(*SIZE_HW, resize=resize)
    samples = list(each_once(open_data(str(discs), "val")))[:3]
    for frame, sample in zip(frames, samples, strict=True):
        expected = Letterbox.fit(sample.image.shape[:2], geometry).apply(sample.image)
        np.testing.assert_array_equal(frame, expected)
    assert (frames[:, :, 0] == geometry.pad_value).all() == (resize == "letterbox")
