"""A temporal bundle that says whose state it used, as ONNX files and as what a fake GPU runs.

"key" keeps two states, the means of its image and its first pixels in half precision, and answers
them. "nonkey" answers the same of the key frame, and says how far its own mean is from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fake_bench import bench
from fake_tensorrt import FakeGraph

from runtime.contract.bundle import Bundle, hash_file
from runtime.contract.files import write_text
from runtime.contract.manifest import MANIFEST_NAME, SCHEMA, Graph, InputGeometry, Manifest
from runtime.contract.outputs import CHANGE, IMAGE, KEY, NONKEY, TensorSpec
from runtime.sessions import open_session
from runtime.sessions.base import Session

SIDE = 6
BACKENDS = ("onnxruntime", "openvino", "tensorrt")
STATE = {"means": "means_key", "first": "first_key"}

_HEAD = '<ir_version: 9, opset_import: ["": 18]>\n'
_KEY = """
key (uint8[B,6,6,3] image) => (float[B,2] answer, float[B,1,1,1] means, float16[B,3,1,1] first)
<int64[3] sides = {1, 2, 3}, int64[3] begin = {0, 0, 0}, int64[3] end = {1, 1, 3},
 int64[1] axis_1 = {1}, int64[2] rest = {-1, 1}, int64[4] turned = {-1, 3, 1, 1}>
{
  pixels = Cast <to = 1> (image)
  means = ReduceMean <keepdims = 1> (pixels, sides)
  corner = Slice (pixels, begin, end, sides)
  upright = Reshape (corner, turned)
  first = Cast <to = 10> (upright)
  mean = Reshape (means, rest)
  wide = Cast <to = 1> (first)
  flat = Flatten (wide)
  sum = ReduceSum <keepdims = 1> (flat, axis_1)
  answer = Concat <axis = 1> (mean, sum)
}
"""
_NONKEY = """
nonkey (uint8[B,6,6,3] image, float[B,1,1,1] means_key, float16[B,3,1,1] first_key)
  => (float[B,2] answer, float[B] change)
<int64[3] sides = {1, 2, 3}, int64[1] axis_1 = {1}, int64[2] rest = {-1, 1}, int64[1] all = {-1}>
{
  pixels = Cast <to = 1> (image)
  now = ReduceMean <keepdims = 1> (pixels, sides)
  gap = Sub (now, means_key)
  size = Abs (gap)
  change = Reshape (size, all)
  mean = Reshape (means_key, rest)
  wide = Cast <to = 1> (first_key)
  flat = Flatten (wide)
  sum = ReduceSum <keepdims = 1> (flat, axis_1)
  answer = Concat <axis = 1> (mean, sum)
}
"""


def _means(image: np.ndarray) -> np.ndarray:
    return image.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32).reshape(-1, 1, 1, 1)


def _answer(means: np.ndarray, first: np.ndarray) -> np.ndarray:
    sums = first.astype(np.float32).sum(axis=(1, 2, 3))
    return np.stack([means[:, 0, 0, 0], sums], axis=1)


def _run_key(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    means = _means(feeds["image"])
    first = feeds["image"][:, 0, 0].astype(np.float16).reshape(-1, 3, 1, 1)
    return {"answer": _answer(means, first), "means": means, "first": first}


def _run_nonkey(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    change = np.abs(_means(feeds["image"]) - feeds["means_key"]).reshape(-1)
    return {"answer": _answer(feeds["means_key"], feeds["first_key"]), "change": change}


_FED = {"image": ("uint8", (-1, SIDE, SIDE, 3))}
GRAPHS = {
    KEY: FakeGraph(
        _FED,
        {
            "answer": ("float32", (-1, 2)),
            "means": ("float32", (-1, 1, 1, 1)),
            "first": ("float16", (-1, 3, 1, 1)),
        },
        _run_key,
    ),
    NONKEY: FakeGraph(
        {
            **_FED,
            "means_key": ("float32", (-1, 1, 1, 1)),
            "first_key": ("float16", (-1, 3, 1, 1)),
        },
        {"answer": ("float32", (-1, 2)), "change": ("float32", (-1,))},
        _run_nonkey,
    ),
}


def write_tiny_state_bundle(
    folder: Path,
    *,
    batches: tuple[int, ...] = (1, 3),
    state: dict[str, str] | None = None,
    nonkey: str = _NONKEY,
) -> Bundle:
    """Write and open the bundle.

    Args:
        folder: that exists. batches: as in the manifest.
        state: as in the manifest, where it is to be another.
        nonkey: the graph's text, where it is to be another.
    """
    graphs = {}
    for name, text in ((KEY, _KEY), (NONKEY, nonkey)):
        model = onnx.parser.parse_model(_HEAD + text)
        onnx.checker.check_model(model, full_check=True)
        file = f"{name}.fp32.onnx"
        onnx.save(model, folder / file)
        graphs[name] = Graph({"fp32": file}, sha256={file: hash_file(folder / file)})
    manifest = Manifest(
        schema=SCHEMA,
        model="state",
        variant="",
        task="detection",
        classes=("thing",),
        category_ids=(1,),
        inputs=(IMAGE,),
        outputs=(TensorSpec("answer", "float32", ("B", 2)), CHANGE),
        geometry=InputGeometry(SIDE, SIDE),
        graphs=graphs,
        precisions=("fp32",),
        batches=batches,
        state=STATE if state is None else state,
    )
    write_text(folder / MANIFEST_NAME, manifest.to_json())
    return Bundle.open(folder)


def other_nonkey(old: str, new: str) -> str:
    """The text of "nonkey" with something else in it."""
    assert old in _NONKEY
    return _NONKEY.replace(old, new)


@contextlib.contextmanager
def session_on(backend: str, bundle: Bundle) -> Iterator[Session]:
    """A session; TensorRT's is on a fake GPU, which ends with a check for leaks and misuse."""
    if backend == "tensorrt":
        with bench(bundle, GRAPHS) as each:
            yield each.session
        return
    session = open_session(bundle, backend, threads=1)
    yield session
    session.close()


def frame(value: int, batch: int = 1) -> dict[str, Any]:
    """Feeds whose mean and first pixel say `value`; row b of a batch says value + b."""
    image = np.empty((batch, SIDE, SIDE, 3), np.uint8)
    image[:] = (value + np.arange(batch)).reshape(-1, 1, 1, 1)
    image[:, 0, 0] += np.array([0, 1, 2], np.uint8)
    return {"image": image}


def whose(answer: np.ndarray) -> list[int]:
    """The values of the frames, one a row, that an answer came from."""
    from_means = np.rint(answer[:, 0] - 3 / (SIDE * SIDE * 3)).astype(int).tolist()
    from_first = np.rint((answer[:, 1] - 3) / 3).astype(int).tolist()
    assert from_means == from_first, "the two states are of different frames"
    return from_means
