"""ONNX files on disk: metadata inside, large weights in one file that several graphs share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

EXTERNAL_LIMIT_BYTES = 32 << 20  # more weights than this leave the graph's own file
ALIGNMENT = 4096  # so that a reader can map each tensor
SMALL_TENSOR_BYTES = 1024  # stays inside: shapes and constants that a reader may need to fold


def weight_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of all initialisers."""
    return sum(_raw(tensor).nbytes for tensor in proto.graph.initializer)


def move_weights(proto: onnx.ModelProto, folder: Path, name: str) -> bool:
    """Put the weights into `folder/name` where they are large; graphs derived later share it.

    Args:
        proto: its initialisers are turned into references, in place.

    Returns:
        Whether the file was written.
    """
    if weight_bytes(proto) <= EXTERNAL_LIMIT_BYTES:
        return False
    with (folder / name).open("wb") as stream:
        for tensor in proto.graph.initializer:
            raw = _raw(tensor)
            if raw.nbytes < SMALL_TENSOR_BYTES:
                continue
            stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
            offset = stream.tell()
            stream.write(raw.tobytes())
            _refer(tensor, name, offset, raw.nbytes)
    return True


def _raw(tensor: onnx.TensorProto) -> np.ndarray:
    return np.frombuffer(numpy_helper.to_array(tensor).tobytes(), np.uint8)


def _refer(tensor: onnx.TensorProto, name: str, offset: int, length: int) -> None:
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", name), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def set_metadata(proto: onnx.ModelProto, entries: dict[str, str]) -> None:
    """Set entries of metadata_props, replacing those of the same key."""
    kept = {prop.key: prop.value for prop in proto.metadata_props} | entries
    del proto.metadata_props[:]
    for key, value in kept.items():
        proto.metadata_props.add(key=key, value=value)
