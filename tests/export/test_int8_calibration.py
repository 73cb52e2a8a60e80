"""Calibration: which frames, in how much memory, and for what its ranges may be used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from test_int8_placement import FEEDS, net
from typed_graphs import parse, weight

import export.precision.int8.observing as observing
from export.precision.int8.calibration import (
    Calibration,
    calibrate,
    hash_network,
    read_calibrations,
    write_calibrations,
)
from export.precision.int8.images import CalibrationFrames
from export.precision.int8.observing import group_tensors, observe
from export.precision.int8.placement import plan_placement
from runtime.contract.errors import BundleError, KestrelError, SourceError
from runtime.contract.manifest import InputGeometry
from runtime.preprocess import Letterbox
from training.data import DataError

GEOMETRY = InputGeometry(64, 96)
IMAGE_NET = """
net (uint8[B,64,96,3] image) => (float[B,4,64,96] y) {
    f = Cast <to = 1> (image)
    p = Transpose <perm = [0,3,1,2]> (f)
    a = Conv <pads = [1,1,1,1]> (p, w3)
    r = Relu(a)
    y = Conv <pads = [1,1,1,1]> (r, w4)
}
"""


@pytest.fixture
def network() -> onnx.ModelProto:
    return parse(IMAGE_NET, w3=weight(4, 3, 3, 3), w4=weight(4, 4, 3, 3))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures of as many greys, and a text."""
    for number in range(10):
        picture = np.full((48, 96, 3), 20 * number, np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def greys(frames: CalibrationFrames) -> list[int]:
    return [int(frame[32, 48, 0]) for frame in frames]


# ------------------------------------------------------------------------------------- the frames


def test_pictures_are_taken_evenly_in_the_order_of_their_names(pictures):
    assert greys(CalibrationFrames(str(pictures), GEOMETRY, 4)) == [0, 60, 120, 180]


def test_all_pictures_are_taken_where_more_are_asked_for(pictures):
    frames = CalibrationFrames(str(pictures), GEOMETRY, 99)
    assert len(frames) == 10
    assert greys(frames) == list(range(0, 200, 20))


def test_frames_are_letterboxed_as_the_runtime_does(pictures):
    (frame,) = CalibrationFrames(str(pictures), GEOMETRY, 1)
    picture = cv2.imread(str(pictures / "0.png"))
    np.testing.assert_array_equal(frame, Letterbox.fit((48, 96), GEOMETRY).apply(picture))
    assert frame[0, 0, 0] == GEOMETRY.pad_value


def test_data_set_gives_its_training_split(discs):
    (frame,) = CalibrationFrames(str(discs), GEOMETRY, 1)
    picture = cv2.imread(str(discs / "train" / "0.png"))
    np.testing.assert_array_equal(frame, Letterbox.fit((96, 128), GEOMETRY).apply(picture))


def test_video_gives_frames_from_all_over_it(tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for number in range(20):
        writer.write(np.full((64, 96, 3), 10 * number, np.uint8))
    writer.release()
    found = greys(CalibrationFrames(str(path), GEOMETRY, 3))
    np.testing.assert_allclose(found, [0, 100, 190], atol=12)  # JPEG; the middle is frame 10 or 9


def test_street_gives_its_training_split():
    from training.data.street import Street

    (frame,) = CalibrationFrames("street", GEOMETRY, 1)
    picture = Street("train")[0].image
    np.testing.assert_array_equal(frame, Letterbox.fit(picture.shape[:2], GEOMETRY).apply(picture))


def test_hash_is_of_the_pixels_that_were_fed(pictures):
    frames = CalibrationFrames(str(pictures), GEOMETRY, 4)
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(b"(64, 96, 3)" + frame.tobytes())
    assert frames.sha256 == digest.hexdigest() == frames.hash()


@pytest.mark.parametrize("count", [0, -3])
def test_no_frames_asked_for_is_refused(count, pictures):
    with pytest.raises(SourceError, match="Give 1 or more"):
        CalibrationFrames(str(pictures), GEOMETRY, count)


def test_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a data set known here"):
        CalibrationFrames(str(tmp_path), GEOMETRY, 4)


def test_picture_that_cannot_be_read_is_named(pictures):
    (pictures / "5.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"5\.png cannot be read"):
        list(CalibrationFrames(str(pictures), GEOMETRY, 10))


def test_video_without_frames_is_refused(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(SourceError, match="holds no frame"):
        CalibrationFrames(str(tmp_path / "clip.mp4"), GEOMETRY, 4)


# ---------------------------------------------------------------------------------- the observing


def test_values_are_counted_over_all_frames(network, pictures):
    frames = list(CalibrationFrames(str(pictures), GEOMETRY, 10))
    histograms = observe(network, ["p", "r"], ({"image": frame[None]} for frame in frames))
    assert histograms["p"].counts.sum() == 10 * 3 * 64 * 96
    assert histograms["p"].largest == 180
    assert histograms["r"].counts.sum() == 10 * 4 * 64 * 96


def test_groups_hold_what_the_limit_allows(network):
    size = 4 * 64 * 96 * 4  # bytes of r; p has three channels
    assert group_tensors(network, ["p", "r"], limit_bytes=2 * size) == [["p", "r"]]
    assert group_tensors(network, ["p", "r"], limit_bytes=size) == [["p"], ["r"]]
    assert group_tensors(network, ["p", "r"], limit_bytes=1) == [["p"], ["r"]]


def test_groups_do_not_change_what_is_counted(network, pictures, monkeypatch):
    feeds = [{"image": frame[None]} for frame in CalibrationFrames(str(pictures), GEOMETRY, 3)]
    together = observe(network, ["p", "r"], feeds)
    monkeypatch.setattr(observing, "group_tensors", lambda base, tensors: [[t] for t in tensors])
    apart = observe(network, ["p", "r"], feeds)
    for name in ("p", "r"):
        np.testing.assert_array_equal(together[name].counts, apart[name].counts)


def test_frames_are_taken_one_at_a_time(network):
    alive = []

    def feeds():
        for number in range(5):
            alive.append(number)
            yield {"image": np.full((1, 64, 96, 3), number, np.uint8)}

    iterator = feeds()
    observe(network, ["r"], iterator)
    assert alive == [0, 1, 2, 3, 4]


def test_no_frames_are_refused(network):
    with pytest.raises(ValueError, match="there are no frames"):
        observe(network, ["r"], [])


def test_missing_feed_is_named(network):
    with pytest.raises(ValueError, match="frame 1 feeds no 'image'; expected image"):
        observe(network, ["r"], [{"picture": np.zeros(1)}])


def test_tensor_that_is_not_finite_is_named_with_its_frame():
    model = net("a = c(x, w3)", "z = Log(a)", "y = c(z, w5)")
    with pytest.raises(ValueError, match="tensor 'z' on frame 1: .* values are no finite numbers"):
        observe(model, ["z"], [FEEDS])


# ------------------------------------------------------------------------- what ranges are used for


@pytest.fixture
def calibration(network, pictures) -> Calibration:
    frames = CalibrationFrames(str(pictures), GEOMETRY, 4)
    return calibrate(network, frames, checkpoint_sha256="ab" * 32)


def test_calibration_says_what_it_was_made_on(calibration, network, pictures):
    frames = CalibrationFrames(str(pictures), GEOMETRY, 4)
    assert calibration.images_sha256 == frames.hash()
    assert calibration.network_sha256 == hash_network(network)
    assert calibration.summary() == {
        "method": "mse", "heads": "float", "images": "4", "data": str(pictures),
        "images_sha256": frames.hash(), "checkpoint_sha256": "ab" * 32,
    }  # fmt: skip
    assert {*plan_placement(network, quantise_heads=True).tensors} == {*calibration.ranges}


def test_calibration_survives_its_file(calibration, tmp_path):
    path = tmp_path / "calibration.json"
    write_calibrations(path, {"model": calibration})
    assert read_calibrations(path) == {"model": calibration}


def test_calibration_of_another_network_is_refused(calibration, network):
    weights = network.graph.initializer[0]
    changed = onnx.numpy_helper.to_array(weights).copy()
    changed[0, 0, 0, 0] += 1e-3
    weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    with pytest.raises(KestrelError, match="is of another network: .* Calibrate anew"):
        calibration.refuse_other(network)


@pytest.mark.parametrize(
    ("asked", "what"),
    [({"images_sha256": "0" * 64}, "other images"), ({"method": "max"}, "another method")],
    ids=["images", "method"],
)
def test_calibration_for_something_else_is_refused_in_one_line(calibration, network, asked, what):
    calibration.refuse_other(network)
    with pytest.raises(KestrelError, match=f"is of {what}") as caught:
        calibration.refuse_other(network, **asked)
    assert "\n" not in str(caught.value)


def test_notes_do_not_make_another_network(network):
    before = hash_network(network)
    network.graph.node[0].doc_string = "note"
    network.metadata_props.add(key="note", value="note")
    assert hash_network(network) == before
    network.graph.node[2].attribute[0].ints[0] = 0
    assert hash_network(network) != before


def test_unknown_method_is_refused(network, pictures):
    frames = CalibrationFrames(str(pictures), GEOMETRY, 1)
    with pytest.raises(KestrelError, match="method 'median' is unknown"):
        calibrate(network, frames, method="median")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=9), "has schema 9, expected 1"),
        (lambda d: d.pop("graphs"), "is damaged"),
        (lambda d: d["graphs"]["model"].pop("ranges"), "is damaged"),
        (lambda d: d["graphs"]["model"].update(num_images="four"), "is damaged"),
    ],
    ids=["newer", "no_graphs", "no_ranges", "wrong_type"],
)
def test_file_that_is_no_calibration_is_refused(change, message, calibration, tmp_path):
    document = {"schema": 1, "graphs": {"model": dataclasses.asdict(calibration)}}
    change(document)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message):
        read_calibrations(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(BundleError, match="cannot be read"):
        read_calibrations(tmp_path / "calibration.json")
