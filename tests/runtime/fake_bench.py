"""Bundles for the fake TensorRT, and sessions on them that end with a check for leaks."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fake_cuda import FakeCuda
from fake_tensorrt import FakeGraph, FakeTensorRT
from onnx import TensorProto, helper
from tiny_bundle import find_colours, paint, write_tiny_bundle

from runtime.contract.bundle import Bundle, hash_file
from runtime.contract.files import write_text
from runtime.contract.manifest import MANIFEST_NAME, SCHEMA, Graph, InputGeometry, Manifest
from runtime.contract.outputs import TensorSpec
from runtime.engines.flavour import make_flavour
from runtime.sessions.buffers import Cuda
from runtime.sessions.trt import TrtSession

HEIGHT, WIDTH, NUM_CLASSES, NUM_KEPT = 48, 64, 3, 5
BATCHES = (1, 4)

COLOURS = FakeGraph(
    {
        "image": ("uint8", (-1, HEIGHT, WIDTH, 3)),
        "score_threshold": ("float32", (-1, NUM_CLASSES)),
        "iou_threshold": ("float32", (-1,)),
    },
    {
        "num_detections": ("int32", (-1,)),
        "boxes_xyxy": ("float32", (-1, NUM_KEPT, 4)),
        "scores": ("float32", (-1, NUM_KEPT)),
        "classes": ("int32", (-1, NUM_KEPT)),
    },
    lambda feeds: find_colours(feeds["image"], feeds["score_threshold"]),
)

# key: memory = mean of the image; nonkey: memory += 1; both answer the memory as they leave it.
_ANSWER = {"answer": ("float32", (-1, 2)), "memory_out": ("float32", (-1, 2))}


def _key(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    mean = feeds["image"].mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)
    memory = np.stack([mean, mean + 0.5], axis=1)
    return {"answer": memory, "memory_out": memory}


def _nonkey(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    memory = feeds["memory_in"] + 1
    return {"answer": memory, "memory_out": memory}


TEMPORAL = {
    "key": FakeGraph({"image": ("uint8", (-1, 4, 4, 3))}, _ANSWER, _key),
    "nonkey": FakeGraph(
        {"image": ("uint8", (-1, 4, 4, 3)), "memory_in": ("float32", (-1, 2))}, _ANSWER, _nonkey
    ),
}


@dataclass
class Code:
    """The classes under test; mutants stand in for them."""

    session: type[TrtSession]
    cuda: type[Cuda]


@dataclass
class Bench:
    """A session on fakes."""

    session: TrtSession
    cuda: FakeCuda
    trt: Any


def colour_bundle(folder: Path, batches: tuple[int, ...] = BATCHES) -> Bundle:
    return Bundle.open(write_tiny_bundle(folder, batches=batches, num_samples=0))


def temporal_bundle(folder: Path, batches: tuple[int, ...] = (1, 2)) -> Bundle:
    """Graphs "key" and "nonkey" whose files are empty shells; the fake knows what they do."""
    graphs = {}
    for name in TEMPORAL:
        shell = _shell(name)
        onnx.save(shell, folder / f"{name}.fp32.onnx")
        digest = hash_file(folder / f"{name}.fp32.onnx")
        graphs[name] = Graph({"fp32": f"{name}.fp32.onnx"}, sha256={f"{name}.fp32.onnx": digest})
    manifest = Manifest(
        schema=SCHEMA,
        model="shell",
        variant="",
        task="detection",
        classes=("thing",),
        category_ids=(1,),
        inputs=(TensorSpec("image", "uint8", ("B", "H", "W", 3)),),
        outputs=(TensorSpec("answer", "float32", ("B", 2)),),
        geometry=InputGeometry(4, 4),
        graphs=graphs,
        precisions=("fp32",),
        batches=batches,
        state={"memory_out": "memory_in"},
    )
    write_text(folder / MANIFEST_NAME, manifest.to_json())
    return Bundle.open(folder)


def _shell(name: str) -> onnx.ModelProto:
    """Files of other names must have other bytes, or they would share one engine."""
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["image"], ["answer"])],
            name,
            [helper.make_tensor_value_info("image", TensorProto.UINT8, [1])],
            [helper.make_tensor_value_info("answer", TensorProto.UINT8, [1])],
        )
    )


@contextlib.contextmanager
def bench(
    bundle: Bundle,
    graphs: dict[str, FakeGraph] | None = None,
    *,
    kind: type[FakeTensorRT] = FakeTensorRT,
    code: Code | None = None,
    **options: Any,
) -> Iterator[Bench]:
    """A session; when the block ends it is closed and nothing may be left or have gone wrong."""
    cuda = FakeCuda()
    trt = kind(cuda, graphs or {"model": COLOURS})
    name = "tensorrt" if kind is FakeTensorRT else "tensorrt_rtx"
    flavour = make_flavour(name, trt)
    code = code or Code(TrtSession, Cuda)
    session = code.session(bundle, "fp32", flavour, code.cuda(cuda), **options)
    yield Bench(session, cuda, trt)
    session.close()
    gc.collect()
    assert_clean(cuda, trt)


def assert_clean(cuda: FakeCuda, trt: FakeTensorRT) -> None:
    """Nothing is allocated, no TensorRT object lives, no rule was broken."""
    assert cuda.violations == []
    assert cuda.leaks() == []
    assert trt.alive == []


def feeds_of(*boxes: dict[int, tuple[int, int, int, int]], threshold: float = 0.3) -> dict:
    """One image for each set of boxes."""
    count = len(boxes)
    return {
        "image": np.stack([paint(HEIGHT, WIDTH, each) for each in boxes]),
        "score_threshold": np.full((count, NUM_CLASSES), threshold, np.float32),
        "iou_threshold": np.full(count, 0.5, np.float32),
    }


def random_feeds(batch: int, seed: int) -> dict:
    """Other images for every seed."""
    random = np.random.default_rng(seed)
    boxes = []
    for _ in range(batch):
        x1, y1 = int(random.integers(0, 40)), int(random.integers(0, 30))
        size = int(random.integers(4, 12))
        boxes.append({int(random.integers(0, 3)): (x1, y1, x1 + size, y1 + size)})
    return feeds_of(*boxes)


def expected(feeds: dict) -> dict[str, np.ndarray]:
    return find_colours(feeds["image"], feeds["score_threshold"])


def assert_same(results: dict, wanted: dict) -> None:
    assert list(results) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(results[name], array, err_msg=name)
        assert results[name].dtype == array.dtype


def with_batches(bundle: Bundle, batches: tuple[int, ...]) -> Bundle:
    """The same files under a manifest of other batch sizes."""
    manifest = dataclasses.replace(bundle.manifest, batches=batches)
    return Bundle(bundle.folder, manifest)
