"""A temporal bundle: `key` remembers its frame, `nonkey` detects in the one remembered.

`change` is the mean difference between the frame and the one remembered, in grey levels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import BASE_SCORES, build_model, write_tiny_bundle

from runtime.contract.bundle import hash_file
from runtime.contract.files import write_text
from runtime.contract.manifest import MANIFEST_NAME, Graph, InputGeometry, Manifest
from runtime.contract.outputs import CHANGE


def write_tiny_video_bundle(folder: Path, geometry: InputGeometry | None = None) -> Path:
    """Write the bundle (fp32 alone) and give its folder."""
    write_tiny_bundle(folder, num_samples=0, geometry=geometry)
    manifest = Manifest.from_file(folder / MANIFEST_NAME)
    size = (manifest.geometry.height, manifest.geometry.width, 3)
    key = build_model(manifest.geometry, BASE_SCORES)
    key.graph.node.append(helper.make_node("Identity", ["pixels"], ["memory"]))
    memory = helper.make_tensor_value_info("memory", TensorProto.FLOAT, ["B", *size])
    key.graph.output.append(memory)

    nonkey = build_model(manifest.geometry, BASE_SCORES)
    cast = next(node for node in nonkey.graph.node if node.output[0] == "pixels")
    cast.output[0] = "seen"
    remember = [
        helper.make_node("Mul", ["seen", "zero"], ["nothing"]),
        helper.make_node("Add", ["memory_key", "nothing"], ["pixels"]),
        helper.make_node("Sub", ["seen", "memory_key"], ["gap"]),
        helper.make_node("Abs", ["gap"], ["size"]),
        helper.make_node("ReduceMean", ["size", "all_sides"], ["change"], keepdims=0),
    ]
    nodes = [cast, *remember, *(node for node in nonkey.graph.node if node is not cast)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del nonkey.graph.node[:]
    nonkey.graph.node.extend(copies)
    memory = helper.make_tensor_value_info("memory_key", TensorProto.FLOAT, ["B", *size])
    nonkey.graph.input.append(memory)
    nonkey.graph.output.append(helper.make_tensor_value_info("change", TensorProto.FLOAT, ["B"]))
    all_sides = numpy_helper.from_array(np.array([1, 2, 3], np.int64), "all_sides")
    nonkey.graph.initializer.append(all_sides)

    graphs = {}
    for name, model in {"key": key, "nonkey": nonkey}.items():
        onnx.checker.check_model(model, full_check=True)
        file_name = f"{name}.fp32.onnx"
        onnx.save(model, folder / file_name)
        graphs[name] = Graph({"fp32": file_name}, sha256={file_name: hash_file(folder / file_name)})
    (folder / "model.fp32.onnx").unlink()
    manifest = dataclasses.replace(
        manifest,
        graphs=graphs,
        outputs=(*manifest.outputs, CHANGE),
        state={"memory": "memory_key"},
    )
    write_text(folder / MANIFEST_NAME, manifest.to_json())
    return folder
