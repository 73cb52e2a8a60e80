"""A temporal bundle: `key` remembers its frame, `nonkey` detects in the one remembered."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from tiny_bundle import BASE_SCORES, build_model, write_tiny_bundle

from runtime.contract.bundle import hash_file
from runtime.contract.files import write_text
from runtime.contract.manifest import MANIFEST_NAME, Graph, Manifest


def write_tiny_video_bundle(folder: Path) -> Path:
    """Write the bundle (fp32 alone) and give its folder."""
    write_tiny_bundle(folder, num_samples=0)
    manifest = Manifest.from_file(folder / MANIFEST_NAME)
    size = (manifest.geometry.height, manifest.geometry.width, 3)
    key = build_model(manifest.geometry, BASE_SCORES)
    key.graph.node.append(helper.make_node("Identity", ["pixels"], ["next_memory"]))
    memory = helper.make_tensor_value_info("next_memory", TensorProto.FLOAT, ["B", *size])
    key.graph.output.append(memory)

    nonkey = build_model(manifest.geometry, BASE_SCORES)
    cast = next(node for node in nonkey.graph.node if node.output[0] == "pixels")
    cast.output[0] = "seen"
    remember = [
        helper.make_node("Mul", ["seen", "zero"], ["nothing"]),
        helper.make_node("Add", ["memory", "nothing"], ["pixels"]),
    ]
    nodes = [cast, *remember, *(node for node in nonkey.graph.node if node is not cast)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del nonkey.graph.node[:]
    nonkey.graph.node.extend(copies)
    memory = helper.make_tensor_value_info("memory", TensorProto.FLOAT, ["B", *size])
    nonkey.graph.input.append(memory)

    graphs = {}
    for name, model in {"key": key, "nonkey": nonkey}.items():
        onnx.checker.check_model(model, full_check=True)
        file_name = f"{name}.fp32.onnx"
        onnx.save(model, folder / file_name)
        graphs[name] = Graph({"fp32": file_name}, sha256={file_name: hash_file(folder / file_name)})
    manifest = dataclasses.replace(manifest, graphs=graphs, state={"next_memory": "memory"})
    write_text(folder / MANIFEST_NAME, manifest.to_json())
    return folder
