"""OpenVINO's compiled models on disk: `engines/openvino-<fingerprint>.blob`.

A cache like that of engines: whatever is missing, foreign, damaged or half-written is compiled
anew; a read-only bundle uses the user's cache folder, and where nothing can be written nothing is
kept. OpenVINO's own cache (CACHE_DIR) names a model by path, size and seconds of mtime unless it
reads the whole of it again, and takes a blob with a flipped bit for good: here the name covers the
hashes of the ONNX files and every option, and the blob carries its own hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.contract import files
from runtime.contract.bundle import Bundle, hash_file
from runtime.contract.errors import SinkError
from runtime.contract.onnx_metadata import read_external_files
from runtime.engines.cache import ENGINES_FOLDER, user_cache_folder
from runtime.sessions.cpu_flags import cpu_flags

log = logging.getLogger("kestrel.runtime")

_DIGEST_BYTES = 64  # hexadecimal sha256 of what follows; 64 also keeps the blob aligned
_HEX_DIGITS = 16
_LEFT_AFTER_S = 3600.0  # a half-written file so old belongs to a writer that was killed


class CompiledModels:
    """The compiled models of one bundle for one CPU and one set of options."""

    def __init__(self, bundle: Bundle, core: Any, device: str, config: Mapping[str, Any]) -> None:
        import openvino

        self._core = core
        self._device = device
        self._config = dict(config)
        self._mapped: list[NDArray[np.uint8]] = []
        self._folders = (bundle.folder / ENGINES_FOLDER, user_cache_folder())
        self._identity = {
            "openvino": openvino.get_version(),
            "cpu": core.get_property(device, "FULL_DEVICE_NAME"),
            "flags": sorted(cpu_flags()),
            "config": {key: str(value) for key, value in config.items()},
        }

    def load(self, hashes: Mapping[str, str], batch: int) -> Any | None:
        """The model compiled from files of these hashes for a batch size; None: compile it."""
        name = self._name(hashes, batch)
        for folder in self._folders:
            blob = _read(folder / name)
            if blob is None:
                continue
            try:
                import openvino

                tensor = openvino.Tensor(blob, shared_memory=True)
                compiled = self._core.import_model(tensor, self._device, self._config)
            except (
                RuntimeError,
                TypeError,
            ) as error:  # TypeError: an OpenVINO that takes no tensor
                log.warning("%s does not load; compiling anew (%s)", folder / name, error)
                continue
            self._mapped.append(blob)  # its weights lie in there
            return compiled
        return None

    def store(self, compiled: Any, hashes: Mapping[str, str], batch: int) -> None:
        """Keep a model for the next start; where the disk refuses, that is logged and no more."""
        name = self._name(hashes, batch)
        stream: io.BytesIO | None = None
        for folder in self._folders:
            if not _may_write(folder):
                continue
            if stream is None:
                stream = io.BytesIO()
                compiled.export_model(stream)
            try:
                _write(folder / name, stream.getbuffer())
            except SinkError as error:
                log.warning("the compiled model is not kept there: %s", error)
                continue
            return

    def _name(self, hashes: Mapping[str, str], batch: int) -> str:
        identity = {**self._identity, "onnx": dict(hashes), "batch": batch}
        text = json.dumps(identity, sort_keys=True, ensure_ascii=True)
        digest = hashlib.sha256(text.encode("ascii")).hexdigest()[:_HEX_DIGITS]
        return f"openvino-{digest}.blob"


def onnx_hashes(path: Path, known: Mapping[str, str]) -> dict[str, str]:
    """sha256 of an ONNX file, under the key "model", and of its external data.

    Args:
        path: of the ONNX file.
        known: file name -> sha256 that was checked already; others are read.
    """
    hashes = {"model": known.get(path.name, "").lower() or hash_file(path)}
    for name in read_external_files(path):
        hashes[name] = known.get(name, "").lower() or hash_file(path.parent / name)
    return hashes


def _read(path: Path) -> NDArray[np.uint8] | None:
    """A blob whose hash is right, mapped into memory; None where there is none."""
    try:
        whole = np.memmap(path, np.uint8, "c")  # copy on write: the file stays as it is
    except (OSError, ValueError):  # absent, unreadable, or empty
        return None
    digest, blob = whole[:_DIGEST_BYTES].tobytes(), whole[_DIGEST_BYTES:].view(np.ndarray)
    if hashlib.sha256(blob.data).hexdigest().encode("ascii") != digest:
        log.warning("%s is not what was written (its sha256 differs); compiling anew", path)
        return None
    return blob


def _write(path: Path, blob: memoryview) -> None:
    _sweep(path)
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        file.write(hashlib.sha256(blob).hexdigest().encode("ascii"))
        file.write(blob)


def _sweep(path: Path) -> None:
    """Remove what killed writers of this file left."""
    for left in path.parent.glob(f".{path.stem}.*.part*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT_AFTER_S:
                left.unlink()


def _may_write(folder: Path) -> bool:
    """Whether it is worth while to try; the nearest folder that exists decides."""
    existing = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    return os.access(existing, os.W_OK | os.X_OK)
