"""A bundle with a real detector of eleven kilobytes: one box round the pixels of each colour.

Class k's pixels are those where channel k alone is bright; its box encloses them, and its score is
a fixed number times the share of the box that they fill. Every part of the contract is in it:
uint8 input, thresholds as inputs, symbolic batch, padded outputs sorted by score, the manifest in
the metadata. `find_colours` says the same in NumPy.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime.contract.bundle import PRECISION_KEY, VERIFY_NAME, VERIFY_SCHEMA, hash_file
from runtime.contract.files import write_json, write_text
from runtime.contract.manifest import (
    MANIFEST_NAME,
    METADATA_KEY,
    SCHEMA,
    Defaults,
    Graph,
    InputGeometry,
    Manifest,
)
from runtime.contract.outputs import INPUTS, OUTPUTS
from runtime.contract.samples import SAMPLES_NAME, Samples, write_samples

CLASSES = ("blue ball", "green cone", "red car")  # channel order of BGR
CATEGORY_IDS = (3, 7, 20)  # with gaps, as COCO's
BASE_SCORES = (0.9, 0.8, 0.6)
MAX_DETECTIONS = 5
BRIGHT = 127.0

_BODY = """
<ir_version: 9, opset_import: ["": 18]>
tiny (uint8[B,H,W,3] image, float[B,K] score_threshold, float[B] iou_threshold)
  => (int32[B] num_detections, float[B,M,4] boxes_xyxy, float[B,M] scores, int32[B,M] classes)
{
  pixels = Cast <to = 1> (image)
  total = ReduceSum <keepdims = 1> (pixels, last_axis)
  others = Sub (total, pixels)
  is_bright = Greater (pixels, bright)
  is_alone = Greater (dark_limit, others)
  inside = And (is_bright, is_alone)
  x1_all = Where (inside, x_near, far)
  y1_all = Where (inside, y_near, far)
  x2_all = Where (inside, x_far, zero)
  y2_all = Where (inside, y_far, zero)
  x1 = ReduceMin <keepdims = 0> (x1_all, both_sides)
  y1 = ReduceMin <keepdims = 0> (y1_all, both_sides)
  x2 = ReduceMax <keepdims = 0> (x2_all, both_sides)
  y2 = ReduceMax <keepdims = 0> (y2_all, both_sides)
  inside_f = Cast <to = 1> (inside)
  count = ReduceSum <keepdims = 0> (inside_f, both_sides)
  width = Sub (x2, x1)
  height = Sub (y2, y1)
  box_area = Mul (width, height)
  area = Max (box_area, one)
  share = Div (count, area)
  raw_scores = Mul (share, base_scores)
  passes = Greater (raw_scores, score_threshold)
  iou_column = Unsqueeze (iou_threshold, last_axis)
  is_asked = Not (is_never)
  is_never = Less (iou_column, zero)
  keeps = And (passes, is_asked)
  kept_scores = Where (keeps, raw_scores, zero)
  sorted_scores, order = TopK <axis = 1, largest = 1, sorted = 1> (kept_scores, num_classes)
  is_kept = Greater (sorted_scores, zero)
  order_i = Cast <to = 6> (order)
  sorted_classes = Where (is_kept, order_i, no_class)
  corners_x1 = Unsqueeze (x1, last_axis)
  corners_y1 = Unsqueeze (y1, last_axis)
  corners_x2 = Unsqueeze (x2, last_axis)
  corners_y2 = Unsqueeze (y2, last_axis)
  corners = Concat <axis = -1> (corners_x1, corners_y1, corners_x2, corners_y2)
  order_column = Unsqueeze (order, last_axis)
  order_4 = Tile (order_column, four_times)
  sorted_boxes = GatherElements <axis = 1> (corners, order_4)
  is_kept_column = Unsqueeze (is_kept, last_axis)
  kept_boxes = Where (is_kept_column, sorted_boxes, zero)
  is_kept_i = Cast <to = 6> (is_kept)
  num_detections = ReduceSum <keepdims = 0> (is_kept_i, axis_1)
  scores = Pad (sorted_scores, pads_2, zero_scalar)
  classes = Pad (sorted_classes, pads_2, no_class)
  boxes_xyxy = Pad (kept_boxes, pads_3, zero_scalar)
}
"""


def write_tiny_bundle(
    folder: Path,
    *,
    precisions: tuple[str, ...] = ("fp32",),
    cpu_precisions: tuple[str, ...] = (),
    batches: tuple[int, ...] = (1, 2, 4),
    geometry: InputGeometry | None = None,
    base_scores: dict[str, tuple[float, ...]] | None = None,
    verdicts: dict[tuple[str, str], str] | None = None,
    has_external_data: bool = False,
    num_samples: int = 4,
) -> Path:
    """Write the bundle and give its folder.

    Args:
        folder: made if absent.
        precisions: files that all hold the same float graph.
        cpu_precisions: which of them have a file for CPUs besides.
        batches: as in the manifest.
        geometry: 64x48 letterbox unless given.
        base_scores: {file name: three scores}, to tell files apart by what they answer.
        verdicts: {(precision, backend): "pass" | "fail" | "not run"} for verify.json.
        has_external_data: the larger constants go to weights.bin.
        num_samples: images in samples.npz; 0 writes none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    geometry = geometry or InputGeometry(48, 64)
    graph = Graph(
        files={precision: f"model.{precision}.onnx" for precision in precisions},
        cpu_files={precision: f"model.{precision}.cpu.onnx" for precision in cpu_precisions},
    )
    manifest = Manifest(
        schema=SCHEMA,
        model="tiny",
        variant="colours",
        task="detection",
        classes=CLASSES,
        category_ids=CATEGORY_IDS,
        inputs=INPUTS["detection"],
        outputs=OUTPUTS["detection"],
        geometry=geometry,
        graphs={"model": graph},
        precisions=precisions,
        batches=batches,
        defaults=Defaults(score_threshold=0.3, iou_threshold=0.5),
        max_detections=MAX_DETECTIONS,
        num_candidates=len(CLASSES),
    )
    precision_of = {
        name: precision
        for files in (graph.files, graph.cpu_files)
        for precision, name in files.items()
    }
    for name, precision in precision_of.items():
        scores = (base_scores or {}).get(name, BASE_SCORES)
        model = build_model(geometry, scores)
        texts = {METADATA_KEY: manifest.to_json(is_complete=False), PRECISION_KEY: precision}
        helper.set_model_props(model, texts)
        if has_external_data:
            external = {"location": "weights.bin", "size_threshold": 100}
            onnx.save(model, folder / name, save_as_external_data=True, **external)
        else:
            onnx.save(model, folder / name)
    names = [*precision_of, *(["weights.bin"] if has_external_data else [])]
    sha256 = {name: hash_file(folder / name) for name in names}
    manifest = dataclasses.replace(
        manifest, graphs={"model": dataclasses.replace(graph, sha256=sha256)}
    )
    write_text(folder / MANIFEST_NAME, manifest.to_json())
    if num_samples:
        write_samples(folder / SAMPLES_NAME, {"model": make_samples(manifest, num_samples)})
    if verdicts is not None:
        artifacts = [
            {"precision": precision, "backend": backend, "verdict": verdict}
            for (precision, backend), verdict in verdicts.items()
        ]
        write_json(folder / VERIFY_NAME, {"schema": VERIFY_SCHEMA, "artifacts": artifacts})
    return folder


def build_model(geometry: InputGeometry, base_scores: tuple[float, ...]) -> onnx.ModelProto:
    """The detector for one size of input."""
    height, width, num_classes = geometry.height, geometry.width, len(CLASSES)
    xs = np.arange(width, dtype=np.float32).reshape(1, 1, width, 1)
    ys = np.arange(height, dtype=np.float32).reshape(1, height, 1, 1)
    missing = MAX_DETECTIONS - num_classes
    constants = {
        "last_axis": np.array([-1], np.int64),
        "axis_1": np.array([1], np.int64),
        "both_sides": np.array([1, 2], np.int64),
        "num_classes": np.array([num_classes], np.int64),
        "four_times": np.array([1, 1, 4], np.int64),
        "pads_2": np.array([0, 0, 0, missing], np.int64),
        "pads_3": np.array([0, 0, 0, 0, missing, 0], np.int64),
        "bright": np.array([BRIGHT], np.float32),
        "dark_limit": np.array([BRIGHT], np.float32),
        "zero": np.array([0], np.float32),
        "zero_scalar": np.array(0, np.float32),
        "one": np.array([1], np.float32),
        "far": np.array([1e4], np.float32),
        "no_class": np.array(-1, np.int32),
        "base_scores": np.array([base_scores], np.float32),
        "x_near": xs,
        "x_far": xs + 1,
        "y_near": ys,
        "y_far": ys + 1,
    }
    model = onnx.parser.parse_model(_BODY)
    names = {"H": height, "W": width, "K": num_classes, "M": MAX_DETECTIONS}
    for value in (*model.graph.input, *model.graph.output):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param in names:
                side.dim_value = names[side.dim_param]
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in constants.items()
    )
    _sort_nodes(model.graph)
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    return model


def _sort_nodes(graph: onnx.GraphProto) -> None:
    """Put every node after those that it needs."""
    known = {value.name for value in (*graph.input, *graph.initializer)}
    waiting, done = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if set(node.input) <= known]
        assert ready, [node.name for node in waiting]
        for node in ready:
            known |= set(node.output)
            done.append(node)
            waiting.remove(node)
    del graph.node[:]
    graph.node.extend(done)


def paint(
    height: int, width: int, boxes_xyxy: dict[int, tuple[int, int, int, int]], ground: int = 40
) -> np.ndarray:
    """A grey frame with one filled box for each class index given; (height, width, 3) BGR."""
    frame = np.full((height, width, 3), ground, np.uint8)
    for index, (x1, y1, x2, y2) in boxes_xyxy.items():
        frame[y1:y2, x1:x2] = 0
        frame[y1:y2, x1:x2, index] = 255
    return frame


def make_samples(manifest: Manifest, count: int, seed: int = 0) -> Samples:
    """Random network-size images and what `find_colours` says of them."""
    random = np.random.default_rng(seed)
    height, width = manifest.geometry.height, manifest.geometry.width
    images = []
    for _ in range(count):
        boxes = {}
        for index in random.permutation(len(CLASSES))[: random.integers(0, len(CLASSES) + 1)]:
            x1, y1 = random.integers(0, width - 8), random.integers(0, height - 8)
            boxes[int(index)] = (x1, y1, x1 + random.integers(4, 9), y1 + random.integers(4, 9))
        images.append(paint(height, width, boxes))
    feeds = {
        "image": np.stack(images),
        "score_threshold": np.full((count, len(CLASSES)), 0.3, np.float32),
        "iou_threshold": np.full(count, 0.5, np.float32),
    }
    return Samples(feeds, find_colours(feeds["image"], feeds["score_threshold"]))


def find_colours(
    images: np.ndarray,
    score_threshold: np.ndarray,
    base_scores: tuple[float, ...] = BASE_SCORES,
) -> dict[str, np.ndarray]:
    """What the graph computes, said in NumPy one image and one class at a time."""
    batch = len(images)
    outputs = {
        "num_detections": np.zeros(batch, np.int32),
        "boxes_xyxy": np.zeros((batch, MAX_DETECTIONS, 4), np.float32),
        "scores": np.zeros((batch, MAX_DETECTIONS), np.float32),
        "classes": np.full((batch, MAX_DETECTIONS), -1, np.int32),
    }
    for row, image in enumerate(images.astype(np.float32)):
        found = []
        for index in range(len(CLASSES)):
            inside = (image[..., index] > BRIGHT) & (
                np.delete(image, index, axis=2).sum(axis=2) < BRIGHT
            )
            if not inside.any():
                continue
            ys, xs = np.nonzero(inside)
            box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            share = inside.sum() / ((box[2] - box[0]) * (box[3] - box[1]))
            score = np.float32(share) * np.float32(base_scores[index])
            if score > score_threshold[row, index]:
                found.append((score, index, box))
        found.sort(key=lambda each: -each[0])
        outputs["num_detections"][row] = len(found)
        for place, (score, index, box) in enumerate(found):
            outputs["boxes_xyxy"][row, place] = box
            outputs["scores"][row, place] = score
            outputs["classes"][row, place] = index
    return outputs
