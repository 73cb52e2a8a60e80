"""A bundle on disk: the folder that `export/` writes and every session reads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any, Literal, TypeAlias

from runtime.contract.errors import BundleError
from runtime.contract.manifest import MANIFEST_NAME, METADATA_KEY, PRECISIONS, Graph, Manifest
from runtime.contract.onnx_metadata import read_external_files, read_metadata
from runtime.contract.samples import SAMPLES_NAME, Samples, read_samples

Kind: TypeAlias = Literal["portable", "plugin", "cpu"]
Verdict: TypeAlias = Literal["pass", "fail", "not run"]

PRECISION_KEY = "kestrel.precision"  # in metadata_props: which precision this one file is
VERIFY_NAME = "verify.json"
VERIFY_SCHEMA = 1
_WORST_FIRST: tuple[Verdict, ...] = ("fail", "not run", "pass")
_CHUNK_BYTES = 1 << 20
# Hidden folders beside a bundle are `.NAME.xxxxxxxx` and: one being made, one that was moved away.
MAKING_SUFFIX, MOVED_SUFFIX = ".export", ".replaced"
_SWAP_S, _POLL_S = 2.0, 0.02  # how long a bundle may be away while an export puts a new one there


class Bundle:
    """A folder and its manifest; files are handed out once their hashes are right.

    Attributes:
        folder: where the files lie; engines are cached in its `engines`.
        name: for people: the folder's name, or the file's where a single file was opened.
        manifest: what the bundle is.
        is_single_file: a lone .onnx file was opened; it has no hashes, samples or verdicts.
        allow_unverified: artifacts whose verdict is "fail" may be loaded.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        name: str = "",
        is_single_file: bool = False,
        allow_unverified: bool = False,
    ) -> None:
        self.folder = folder
        self.name = name or folder.resolve().name
        self.manifest = manifest
        self.is_single_file = is_single_file
        self.allow_unverified = allow_unverified
        self._checked: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Path, *, allow_unverified: bool = False) -> Bundle:
        """Open a bundle's folder, or one .onnx file of a one-graph model.

        A file that lies in its bundle is opened with the bundle's hashes and verdicts, as its
        only precision; a file alone is opened by the manifest it carries.

        Raises:
            BundleError: nothing there, no manifest, a damaged file.
            ManifestError: a manifest that this runtime cannot read.
        """
        path = Path(path)
        if path.is_file():
            return _open_file(cls, path, allow_unverified)
        if not path.is_dir():
            _wait_for_swap(path)
        if not path.is_dir():
            moved = find_left(path, MOVED_SUFFIX)
            raise BundleError(
                f"{path} does not exist; expected a bundle's folder or an .onnx file. "
                + (
                    f"An export that was stopped left the last one at {moved[-1]}: export again, "
                    "or give it its name back."
                    if moved
                    else "Check the path, or make one with export/to_onnx.py."
                )
            )
        if not (path / MANIFEST_NAME).is_file():
            raise BundleError(
                f"{path} has no {MANIFEST_NAME}, so it is no bundle. "
                "Give the folder that export/to_onnx.py wrote."
            )
        manifest = Manifest.from_file(path / MANIFEST_NAME)
        return cls(path, manifest, allow_unverified=allow_unverified)

    def has_file(self, graph: str, precision: str, kind: Kind = "portable") -> bool:
        """Whether the manifest names such a file."""
        return graph in self.manifest.graphs and precision in _names(
            self.manifest.graphs[graph], kind
        )

    def file(self, graph: str, precision: str, kind: Kind = "portable") -> Path:
        """The ONNX file of a graph, its hash and those of its external data checked once.

        Args:
            graph: "model", or "key" / "nonkey" of a temporal model.
            precision: one of the manifest's.
            kind: "portable" loads everywhere, "plugin" needs our TensorRT plugin, "cpu" is the
                int8 file for CPUs.

        Raises:
            BundleError: not in the manifest, missing on disk, or a wrong hash.
        """
        if graph not in self.manifest.graphs:
            raise BundleError(
                f"{self.folder} has no graph {graph!r}; it has {', '.join(self.manifest.graphs)}."
            )
        names = _names(self.manifest.graphs[graph], kind)
        if precision not in names:
            have = ", ".join(names) or "none"
            raise BundleError(
                f"{self.folder} has no {kind} file of precision {precision!r} for graph "
                f"{graph!r}; it has {have}. Choose one of these, or export that precision."
            )
        path = self.folder / names[precision]
        hashes = self.manifest.graphs[graph].sha256
        with self._lock:  # two cameras opening at once hash a file once
            if path.name not in self._checked:
                self._check(path, hashes)
                for name in read_external_files(path):
                    self._check(self.folder / name, hashes)
        return path

    def samples(self, graph: str = "model") -> Samples | None:
        """Feeds and torch's results for them; None where the bundle has none."""
        if self.is_single_file:
            return None
        return read_samples(self.folder / SAMPLES_NAME, graph)

    def verdict(self, precision: str, backend: str) -> Verdict:
        """What export/verify.py said of a precision on a backend; "not run" where it did not.

        Raises:
            BundleError: verify.json is damaged or newer than this runtime.
        """
        path = self.folder / VERIFY_NAME
        if self.is_single_file or not path.is_file():
            return "not run"
        artifacts = _read_artifacts(path)
        verdicts = {
            artifact["verdict"]
            for artifact in artifacts
            if (artifact["precision"], artifact["backend"]) == (precision, backend)
        }
        return next((verdict for verdict in _WORST_FIRST if verdict in verdicts), "not run")

    def refuse_failed(self, precision: str, backend: str) -> None:
        """Raise BundleError where the verdict is "fail" and that was not allowed."""
        if not self.allow_unverified and self.verdict(precision, backend) == "fail":
            raise BundleError(
                f"{self.folder}: the verdict on {precision} with {backend} is 'fail' "
                f"({VERIFY_NAME} says why). Choose another precision or backend, export again, "
                "or load it all the same with --allow-unverified."
            )

    def _check(self, path: Path, hashes: dict[str, str]) -> None:
        if path.name in self._checked:
            return
        if not path.is_file():
            raise BundleError(
                f"{path} is missing; the bundle needs it. Copy the whole folder, or export again."
            )
        expected = hashes.get(path.name)
        if expected is None and not self.is_single_file:
            raise BundleError(
                f"{self.folder / MANIFEST_NAME} holds no sha256 of {path.name}; expected one. "
                "Export the bundle again."
            )
        if expected is not None:
            found = hash_file(path)
            if found != expected.lower():
                raise BundleError(
                    f"{path} has sha256 {found}; the manifest expects {expected}. "
                    "The file was changed or cut short: copy the bundle or export it again."
                )
        self._checked.add(path.name)


def find_left(path: Path, suffix: str) -> list[Path]:
    """The hidden folders beside a bundle that an export makes; oldest first."""
    place = Path(os.path.realpath(path))
    pattern = re.compile(rf"\.{re.escape(place.name)}\.\w{{8}}{re.escape(suffix)}")
    try:
        found = [each for each in place.parent.iterdir() if pattern.fullmatch(each.name)]
        return sorted(found, key=lambda each: each.stat().st_mtime)
    except OSError:  # no such place, or one of them is gone already
        return []


def _wait_for_swap(path: Path) -> None:
    """Between its two renames an export's folder is not there: wait for the new one."""
    end = time.monotonic() + _SWAP_S
    while find_left(path, MOVED_SUFFIX) and not path.is_dir() and time.monotonic() < end:
        time.sleep(_POLL_S)


def hash_file(path: Path) -> str:
    """The hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _names(graph: Graph, kind: Kind) -> dict[str, str]:
    return {"portable": graph.files, "plugin": graph.plugin_files, "cpu": graph.cpu_files}[kind]


def _open_file(cls: type[Bundle], path: Path, allow_unverified: bool) -> Bundle:
    metadata = read_metadata(path)
    beside = path.parent / MANIFEST_NAME
    if beside.is_file():
        manifest = Manifest.from_file(beside)
        if any(path.name in _all_names(graph) for graph in manifest.graphs.values()):
            narrow = _narrow(manifest, path, metadata)
            return cls(path.parent, narrow, name=path.stem, allow_unverified=allow_unverified)
    text = metadata.get(METADATA_KEY)
    if text is None:
        raise BundleError(
            f"{path} carries no manifest ({METADATA_KEY!r} in its metadata); expected a file "
            "that export/to_onnx.py wrote. Export the model with it."
        )
    manifest = Manifest.from_json(text, origin=f"the manifest in {path}")
    narrow = _narrow(manifest, path, metadata)
    return cls(path.parent, narrow, name=path.stem, is_single_file=True)


def _all_names(graph: Graph) -> list[str]:
    return [*graph.files.values(), *graph.plugin_files.values(), *graph.cpu_files.values()]


def _narrow(manifest: Manifest, path: Path, metadata: dict[str, str]) -> Manifest:
    """The manifest of one file: one graph of one precision, under the name it has now."""
    if list(manifest.graphs) != ["model"]:
        raise BundleError(
            f"{path} is one of the graphs {', '.join(manifest.graphs)} of a model that needs all "
            "of them. Give the bundle's folder."
        )
    graph = manifest.graphs["model"]
    places = [
        (kind, precision)
        for kind in ("files", "plugin_files", "cpu_files")
        for precision, name in getattr(graph, kind).items()
        if name == path.name
    ]
    kind, precision = places[0] if places else ("files", metadata.get(PRECISION_KEY, ""))
    if precision not in PRECISIONS and len(manifest.precisions) == 1:
        precision = manifest.precisions[0]
    if precision not in PRECISIONS:
        raise BundleError(
            f"{path} does not say which precision it is, and its name is none of "
            f"{', '.join(_all_names(graph))}. Give it back its name."
        )
    files = {"files": {precision: path.name}, kind: {precision: path.name}}
    narrow = Graph(sha256=graph.sha256, **files)
    return dataclasses.replace(manifest, graphs={"model": narrow}, precisions=(precision,))


def _read_artifacts(path: Path) -> list[dict[str, Any]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema, artifacts = document["schema"], document["artifacts"]
        keys = [(a["precision"], a["backend"], _WORST_FIRST.index(a["verdict"])) for a in artifacts]
    except (ValueError, KeyError, TypeError):
        raise BundleError(
            f"{path} is damaged; expected the proof that export/verify.py writes. Verify again."
        ) from None
    if schema != VERIFY_SCHEMA:
        raise BundleError(
            f"{path} has schema {schema!r}; this runtime reads {VERIFY_SCHEMA}. "
            "Upgrade the runtime, or verify again with this version."
        )
    assert len(keys) == len(artifacts)
    return list(artifacts)
