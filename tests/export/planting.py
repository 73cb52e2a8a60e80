"""Planting a fault in a bundle that is written already, and holding the proof against it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from calling import Done, call
from onnx import numpy_helper

from runtime.contract.bundle import VERIFY_NAME, hash_file
from runtime.contract.manifest import MANIFEST_NAME

IMAGES = 4
PASSED, FAILED, REFUSED = 0, 1, 2
FILES = ("model.fp32.onnx", "model.fp32.plugin.onnx")
FIRST = "model.backbone.conv1.weight"

GRAPH = onnx.GraphProto
Change = Callable[[GRAPH], None]


def verify(bundle: Path, checkpoint: Path, data: Path, *more: object) -> Done:
    options = ("--checkpoint", checkpoint, "--data", data, "--images", IMAGES)
    return call("export.verify", bundle, *options, *more)


def artifacts(bundle: Path) -> list[dict[str, Any]]:
    return json.loads((bundle / VERIFY_NAME).read_text())["artifacts"]


def read_manifest(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / MANIFEST_NAME).read_text())


def change_manifest(bundle: Path, **changes: object) -> None:
    (bundle / MANIFEST_NAME).write_text(json.dumps(read_manifest(bundle) | changes))


def rehash(bundle: Path, name: str) -> None:
    """Give a changed file the right hash, as a faulty export would."""
    graphs = read_manifest(bundle)["graphs"]
    graphs["model"]["sha256"][name] = hash_file(bundle / name)
    change_manifest(bundle, graphs=graphs)


def replace_graph(
    bundle: Path, change: Callable[[onnx.GraphProto], None], name: str = "model.fp32.onnx"
) -> None:
    """Change a file's graph in place, with the right hash."""
    proto = onnx.load(bundle / name)
    change(proto.graph)
    (bundle / name).write_bytes(proto.SerializeToString())
    rehash(bundle, name)


def plant(bundle: Path, change: Change, files: tuple[str, ...] = FILES) -> None:
    for name in files:
        replace_graph(bundle, change, name)


def reasons_of(bundle: Path, checkpoint: Path, discs: Path) -> list[str]:
    """The proof's reasons against the bundle's one artifact."""
    done = verify(bundle, checkpoint, discs)
    assert done.returncode == FAILED, done.stdout + done.stderr
    (row,) = artifacts(bundle)
    assert row["verdict"] == "fail"
    return row["reasons"]


# ------------------------------------------------------------------------- ways to change a graph


def value_of(graph: GRAPH, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in graph.initializer if t.name == name)).copy()


def set_value(graph: GRAPH, name: str, value: np.ndarray) -> None:
    tensor = next(t for t in graph.initializer if t.name == name)
    dtype = numpy_helper.to_array(tensor).dtype
    tensor.CopyFrom(numpy_helper.from_array(value.astype(dtype), name))


def add_constant(graph: GRAPH, name: str, value: object, dtype: str = "float32") -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
    return name


def put_behind(graph: GRAPH, name: str, *nodes: onnx.NodeProto) -> None:
    """Let all that read `name` read what the last of these nodes gives."""
    for node in graph.node:
        for place, read in enumerate(node.input):
            if read == name:
                node.input[place] = nodes[-1].output[0]
    makers = [place for place, node in enumerate(graph.node) if name in node.output]
    for number, node in enumerate(nodes):
        graph.node.insert((makers[0] + 1 if makers else 0) + number, node)


def put_before_output(graph: GRAPH, name: str, *nodes: onnx.NodeProto) -> None:
    """Let these nodes make the output `name` of what made it until now, `name`.own."""
    for node in graph.node:
        node.output[:] = [f"{name}.own" if each == name else each for each in node.output]
    graph.node.extend(nodes)


def layer_is_four_times(graph: GRAPH) -> None:
    name = "model.backbone.layer2.0.conv2.weight"
    set_value(graph, name, value_of(graph, name) * 4)
