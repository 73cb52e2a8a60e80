"""Planting a fault in a bundle that is written already, and holding the proof against it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from calling import Done, call

from runtime.contract.bundle import VERIFY_NAME, hash_file
from runtime.contract.manifest import MANIFEST_NAME

IMAGES = 4
PASSED, FAILED, REFUSED = 0, 1, 2


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
