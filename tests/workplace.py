"""A folder with what the commands of documents and helps read: bundles, pictures, a video, data.

`furnish` makes bundles of kilobytes, which detect colours, have no checkpoint and run at once; for
scripts that need a bundle and its checkpoint, `export_shipped` makes one to put in their place.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.append(str(Path(__file__).parent / "runtime"))

from tiny_bundle import write_tiny_bundle
from tiny_video_bundle import write_tiny_video_bundle

from runtime.contract.manifest import InputGeometry

ROOT = Path(__file__).resolve().parents[1]
TRAINED = Path("runs/train/mine/best.safetensors")  # a checkpoint of data/mine's classes
NUM_PICTURES = 3
NETWORK_HW = (288, 512)  # of the shipped detector
RAW_HW = (720, 1280)  # of the raw frames that README.md pipes


def furnish(place: Path, discs: Path, checkpoint: Path) -> Path:
    """Furnish an empty folder for all commands that run at once; it.

    Args:
        place: the folder.
        discs: a COCO folder with the splits train and val.
        checkpoint: of a network that knows its classes.
    """
    for name in ("weights", "assets", "pyproject.toml", "Makefile", "deploy"):
        (place / name).symlink_to(ROOT / name)
    (place / "data").mkdir()
    data = Path(shutil.copytree(discs, place / "data" / "mine"))
    shutil.copytree(data / "val", data / "test")
    _write_pictures(place, data)
    for name in ("street.mp4", "camera.mp4"):
        (place / name).symlink_to(ROOT / "assets" / "street.mp4")
    for name in ("frames.raw", "camera.raw"):
        np.zeros((2, *RAW_HW, 3), np.uint8).tofile(place / name)
    (place / TRAINED).parent.mkdir(parents=True)
    shutil.copy(checkpoint, place / TRAINED)
    for name in ("retinanet", "mine", "yolact", "retinaface"):
        write_tiny_bundle(place / "runs" / name)
    write_tiny_bundle(place / "out" / "demo" / "retinanet")
    write_tiny_video_bundle(place / "runs" / "yolact_edge")
    write_tiny_pose_bundle(place / "runs" / "hourglass")
    return place


def _write_pictures(place: Path, data: Path) -> None:
    """photos/ and val.json, pictures of the validation split; results that found all of them."""
    (place / "photos").mkdir()
    document = json.loads((data / "val" / "_annotations.coco.json").read_text())
    images = document["images"][:NUM_PICTURES]
    for image in images:
        shutil.copy(data / "val" / image["file_name"], place / "photos")
    cv2.imwrite(str(place / "photos" / "more.jpg"), np.full((96, 128, 3), 90, np.uint8))
    (place / "val.json").write_text(json.dumps(document))
    found = [
        {key: each[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for each in document["annotations"]
    ]
    (place / "results.json").write_text(json.dumps(found))
    frames = np.zeros((2, *NETWORK_HW, 3), np.uint8)
    np.save(place / "frames.npy", frames)
    _write_head_outputs(place / "inputs.npz")


def _write_head_outputs(path: Path) -> None:
    """What training/time_selection.py reads: one input of 50 anchors and 3 classes."""
    from benchmarks.measure.selection import Head, make_feeds

    head = Head(50, 3, 20, kept=5, mean=0.0)
    arrays = {name: array[None] for name, array in make_feeds(head, 0).items()}
    np.savez(path, candidates=head.candidates, kept=head.kept, **arrays)


def write_tiny_pose_bundle(folder: Path) -> Path:
    """A network for crops that puts a nose in the middle and an ear beside it; its folder."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from runtime.contract.bundle import PRECISION_KEY, hash_file
    from runtime.contract.files import write_text
    from runtime.contract.manifest import MANIFEST_NAME, METADATA_KEY, Joints, Manifest
    from runtime.contract.outputs import INPUTS, OUTPUTS

    write_tiny_bundle(folder, num_samples=0, geometry=InputGeometry(48, 32))
    manifest = Manifest.from_file(folder / MANIFEST_NAME)
    manifest = dataclasses.replace(
        manifest,
        task="pose_crop",
        classes=("red car",),
        category_ids=(20,),
        inputs=INPUTS["pose_crop"],
        outputs=OUTPUTS["pose_crop"],
        joints=Joints(("nose", "ear"), ((0, 1),), (), (0.03, 0.03)),
        crop_margin=1.25,
    )
    joints = np.array([[[16, 24, 0.9], [20, 20, 0.8]]], np.float32)  # (1, J, 3)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "sides"], ["grey"], keepdims=0),
            helper.make_node("Mul", ["grey", "zero"], ["nothing"]),
            helper.make_node("Reshape", ["nothing", "column"], ["none"]),
            helper.make_node("Add", ["none", "joints"], ["keypoints_xyc"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", 48, 32, 3])],
        [helper.make_tensor_value_info("keypoints_xyc", TensorProto.FLOAT, ["B", 2, 3])],
        [
            numpy_helper.from_array(np.array([1, 2, 3], np.int64), "sides"),
            numpy_helper.from_array(np.float32(0), "zero"),
            numpy_helper.from_array(np.array([-1, 1, 1], np.int64), "column"),
            numpy_helper.from_array(joints, "joints"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(
        model, {METADATA_KEY: manifest.to_json(is_complete=False), PRECISION_KEY: "fp32"}
    )
    onnx.checker.check_model(model, full_check=True)
    name = "model.fp32.onnx"
    onnx.save(model, folder / name)
    graph = dataclasses.replace(manifest.graphs["model"], sha256={name: hash_file(folder / name)})
    whole = dataclasses.replace(manifest, graphs={"model": graph})
    write_text(folder / MANIFEST_NAME, whole.to_json())
    return folder


def export_shipped(model: str, out: Path) -> Path:
    """The bundle of a shipped checkpoint, in fp32; its folder."""
    from export.bundling import ExportOptions, write_bundle

    options = ExportOptions(
        model=model, variant=None, checkpoint=None, size_hw=None, out=out, data="street",
        precisions=("fp32",),
    )  # fmt: skip
    write_bundle(options, report=lambda line: None)
    return out


def write_published(path: Path) -> Path:
    """A checkpoint with the tensors of a published YOLACT, and no trained weights in them."""
    import torch
    from published_weights import flat_tensors

    torch.save(flat_tensors("yolact_resnet50"), path)
    return path
