"""The little that the runtime reads of an ONNX file by itself: metadata and external file names.

An ONNX file is a protobuf message. Its fields are walked in a memory map, so the weights are
stepped over and never read. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from runtime.contract.errors import BundleError

_MODEL_IR_VERSION, _MODEL_GRAPH, _MODEL_METADATA = 1, 7, 14
_GRAPH_INITIALIZER = 5
_TENSOR_EXTERNAL_DATA = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}


class _Field(NamedTuple):
    number: int
    wire: int
    start: int
    end: int


class _DamagedError(Exception):
    """The bytes are no protobuf message."""


def read_metadata(path: Path) -> dict[str, str]:
    """The file's metadata_props.

    Raises:
        BundleError: no such file, or not an ONNX file, or cut short.
    """
    with _mapped(path) as data:
        fields = [each for each in _walk_model(data, path) if each.number == _MODEL_METADATA]
        try:
            return dict(_read_entry(data, field) for field in fields)
        except _DamagedError:
            raise _damaged(path) from None


def read_external_files(path: Path) -> tuple[str, ...]:
    """Names of the files beside `path` that hold its weights; empty where it holds them itself.

    Raises:
        BundleError: as `read_metadata`; or a name that leaves the folder.
    """
    names: set[str] = set()
    with _mapped(path) as data:
        try:
            for graph in _walk_model(data, path):
                if graph.number != _MODEL_GRAPH:
                    continue
                for tensor in _walk(data, graph.start, graph.end):
                    if tensor.number == _GRAPH_INITIALIZER and tensor.wire == _LENGTH:
                        names.update(_locations(data, tensor))
        except (_DamagedError, UnicodeDecodeError):
            raise _damaged(path) from None
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(
                f"{path} wants weights from {name!r}, outside its folder. Export the bundle again."
            )
    return tuple(sorted(names))


class _mapped:  # noqa: N801 (used as a with-statement's verb)
    """A file as a read-only memory map."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> mmap.mmap:
        try:
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise BundleError(
                f"{self._path} does not exist; expected an ONNX file. Check the path."
            ) from None
        except ValueError:  # an empty file cannot be mapped
            raise _damaged(self._path) from None
        except OSError as error:
            raise BundleError(
                f"{self._path} cannot be read ({error.strerror or error}). "
                "Give a file that may be read."
            ) from None
        return self._map

    def __exit__(self, *_: object) -> None:
        self._map.close()


def _damaged(path: Path) -> BundleError:
    return BundleError(
        f"{path} is no ONNX file or is damaged; expected a whole model. Copy or export it again."
    )


def _walk_model(data: mmap.mmap, path: Path) -> Iterator[_Field]:
    """The model's fields; a file without IR version and graph is no model."""
    try:
        fields = list(_walk(data, 0, len(data)))
    except _DamagedError:
        raise _damaged(path) from None
    wires = {(field.number, field.wire) for field in fields}
    if not {(_MODEL_IR_VERSION, _VARINT), (_MODEL_GRAPH, _LENGTH)} <= wires:
        raise _damaged(path)
    return iter(fields)


def _locations(data: mmap.mmap, tensor: _Field) -> Iterator[str]:
    for field in _walk(data, tensor.start, tensor.end):
        if field.number == _TENSOR_EXTERNAL_DATA and field.wire == _LENGTH:
            key, value = _read_entry(data, field)
            if key == "location":
                yield value


def _read_entry(data: mmap.mmap, entry: _Field) -> tuple[str, str]:
    texts = {
        field.number: data[field.start : field.end].decode("utf-8", errors="replace")
        for field in _walk(data, entry.start, entry.end)
        if field.wire == _LENGTH
    }
    return texts.get(_ENTRY_KEY, ""), texts.get(_ENTRY_VALUE, "")


def _walk(data: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    """The fields of the message in data[start:end], payloads not read."""
    at = start
    while at < end:
        tag, at = _read_varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            begin = at
            _, at = _read_varint(data, at, end)
        elif wire == _LENGTH:
            size, begin = _read_varint(data, at, end)
            at = begin + size
        elif wire in _FIXED_SIZES:
            begin = at
            at += _FIXED_SIZES[wire]
        else:
            raise _DamagedError
        if at > end or number == 0:
            raise _DamagedError
        yield _Field(number, wire, begin, at)


def _read_varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _DamagedError
