"""One path as a JSON document: what it is, what it holds, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from export.showing.engines import describe_engine
from export.showing.graphs import GraphFile, describe_graph
from runtime.contract.bundle import (
    PRECISION_KEY,
    SAMPLES_NAME,
    VERIFY_NAME,
    VERIFY_SCHEMA,
    hash_file,
)
from runtime.contract.errors import BundleError
from runtime.contract.manifest import MANIFEST_NAME, METADATA_KEY, PRECISIONS, Manifest
from runtime.contract.onnx_metadata import read_external_files, read_metadata
from runtime.contract.samples import read_samples

Document = dict[str, Any]

ENGINES_FOLDER = "engines"
_GROWS = ("precisions", "graphs", "calibration")  # where a precision is added
_KINDS = {"files": "portable", "plugin_files": "plugin", "cpu_files": "cpu"}


def describe(path: Path, *, is_compiled: bool = False) -> Document:
    """Look at a path and all that belongs to it.

    Args:
        path: a bundle's folder, an .onnx file or an .engine file.
        is_compiled: also what the CPU backends that are installed make of each graph.

    Returns:
        `kind` "bundle", "onnx" or "engine"; `problems`, each a sentence that names its file; and
        what else there is to say of that kind.

    Raises:
        BundleError: nothing there, or nothing of these kinds; a damaged file or manifest.
    """
    if not path.exists():
        raise BundleError(
            f"{path} does not exist; expected a bundle's folder, an .onnx or an .engine file. "
            "Check the path."
        )
    if path.is_dir():
        return _describe_bundle(path, is_compiled)
    if path.suffix == ".onnx":
        return _describe_file(path, is_compiled)
    if path.suffix == ".engine":
        engine = describe_engine(path, _manifest_of_engine(path))
        return {"path": str(path), "kind": "engine", "engines": [engine], **_gather([engine])}
    raise BundleError(
        f"{path} is a {path.suffix or 'nameless kind of'} file; expected a bundle's folder, an "
        ".onnx or an .engine file. Give one of these."
    )


def _describe_bundle(folder: Path, is_compiled: bool) -> Document:
    if not (folder / MANIFEST_NAME).is_file():
        raise BundleError(
            f"{folder} has no {MANIFEST_NAME}, so it is no bundle. "
            "Give the folder that export/to_onnx.py wrote."
        )
    manifest = Manifest.from_file(folder / MANIFEST_NAME)
    graphs = [
        _describe_entry(folder, entry, manifest, is_compiled) for entry in list_files(manifest)
    ]
    engines = [
        describe_engine(path, manifest)
        for path in sorted((folder / ENGINES_FOLDER).glob("*.engine"))
    ]
    proof = _describe_proof(folder / VERIFY_NAME, manifest)
    rest = [_describe_weights(folder, manifest), _describe_samples(folder, manifest)]
    return {
        "path": str(folder),
        "kind": "bundle",
        "bytes": sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()),
        "manifest": dataclasses.asdict(manifest),
        "files": graphs,
        "weights": rest[0]["files"],
        "samples": rest[1]["samples"],
        "proof": proof,
        "engines": engines,
        **_gather([*graphs, *rest, proof, *engines]),
    }


def _describe_file(path: Path, is_compiled: bool) -> Document:
    """A file alone is held against the manifest it carries."""
    metadata = read_metadata(path)
    text = metadata.get(METADATA_KEY)
    manifest = None if text is None else Manifest.from_json(text, origin=f"the manifest in {path}")
    precision = metadata.get(PRECISION_KEY, "")
    entry = GraphFile(path.name, _graph_named(path.name, manifest), precision, _kind_of(path))
    graph = describe_graph(path, entry, manifest, is_compiled=is_compiled)
    graph["sha256"] = hash_file(path)
    if manifest is None:
        graph["problems"].append(
            f"{path.name} carries no manifest ({METADATA_KEY!r} in its metadata), so its contract "
            "cannot be checked. Export it with export/to_onnx.py."
        )
    claimed = [each for each in path.name.split(".") if each in PRECISIONS]
    if precision and claimed and claimed[0] != precision:
        graph["problems"].append(
            f"{path.name} is {claimed[0]} by its name and {precision} by its metadata. "
            "Give it back its name, or export that precision."
        )
    return {
        "path": str(path),
        "kind": "onnx",
        "bytes": path.stat().st_size,
        "manifest": None if manifest is None else dataclasses.asdict(manifest),
        "files": [graph],
        **_gather([graph]),
    }


def list_files(manifest: Manifest) -> list[GraphFile]:
    """All graph files that a manifest names."""
    return [
        GraphFile(name, graph_name, precision, kind)
        for graph_name, graph in manifest.graphs.items()
        for field, kind in _KINDS.items()
        for precision, name in getattr(graph, field).items()
    ]


def _describe_entry(
    folder: Path, entry: GraphFile, manifest: Manifest, is_compiled: bool
) -> Document:
    path = folder / entry.name
    if not path.is_file():
        missing = f"{entry.name} is missing; the manifest names it. Copy the whole folder."
        return {**dataclasses.asdict(entry), "problems": [missing]}
    document = describe_graph(path, entry, manifest, is_compiled=is_compiled)
    document["sha256"] = hash_file(path)
    expected = manifest.graphs[entry.graph].sha256.get(entry.name, "")
    if document["sha256"] != expected.lower():
        document["problems"].append(
            f"{entry.name} has sha256 {document['sha256'][:16]}...; the manifest expects "
            f"{expected[:16] or 'none'}... The file was changed: copy the bundle or export again."
        )
    metadata = read_metadata(path)
    said = metadata.get(PRECISION_KEY)
    if said != entry.precision:
        document["problems"].append(
            f"{entry.name} is {entry.precision} by the manifest and {said or 'nothing'} by its own "
            "metadata. Export that precision again."
        )
    document["problems"].extend(_compare_manifests(entry.name, metadata, manifest))
    return document


def _compare_manifests(name: str, metadata: dict[str, str], manifest: Manifest) -> list[str]:
    """The copy of the manifest in a file must say the same, but for hashes and scores.

    It may lack a precision that was added later (export/quantize.py), and its calibration.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return [f"{name} carries no manifest, so it does not run alone. Export again."]
    inside = json.loads(Manifest.from_json(text, origin=name).to_json(is_complete=False))
    beside = json.loads(manifest.to_json(is_complete=False))
    return [
        f"{MANIFEST_NAME} has {field} {_short(beside[field])}; the copy inside {name} has "
        f"{_short(inside[field])}. One of them was changed: export again."
        for field in beside
        if beside[field] != inside.get(field)
        and not (field in _GROWS and _is_part(inside.get(field), beside[field]))
    ]


def _is_part(inside: Any, beside: Any) -> bool:
    """Whether all that a field of a file's copy says is still so."""
    if isinstance(inside, dict) and isinstance(beside, dict):
        return all(key in beside and _is_part(inside[key], beside[key]) for key in inside)
    if isinstance(inside, list) and isinstance(beside, list):
        return all(each in beside for each in inside)
    return bool(inside == beside)


def _describe_weights(folder: Path, manifest: Manifest) -> Document:
    """External data files; each may serve several graphs."""
    problems, files = [], {}
    for entry in list_files(manifest):
        path = folder / entry.name
        for name in read_external_files(path) if path.is_file() else ():
            hashes = manifest.graphs[entry.graph].sha256
            if name in files:
                continue
            if not (folder / name).is_file():
                problems.append(f"{name} is missing; {entry.name} needs it. Copy the whole folder.")
                continue
            found = hash_file(folder / name)
            files[name] = {"bytes": (folder / name).stat().st_size, "sha256": found}
            if found != hashes.get(name, "").lower():
                problems.append(f"{name} is not the file that the manifest was written for.")
    return {"files": files, "problems": problems}


def _describe_samples(folder: Path, manifest: Manifest) -> Document:
    counts: dict[str, int] = {}
    try:
        for graph in manifest.graphs:
            samples = read_samples(folder / SAMPLES_NAME, graph)
            counts[graph] = 0 if samples is None else len(samples)
    except BundleError as error:
        return {"samples": counts, "problems": [str(error)]}
    return {"samples": counts, "problems": []}


def _describe_proof(path: Path, manifest: Manifest) -> Document:
    """The verdicts of verify.json; a bundle that was not verified is no fault."""
    if not path.is_file():
        return {"artifacts": [], "problems": [], "notes": [f"no {VERIFY_NAME}: not verified"]}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        artifacts = list(document["artifacts"])
        rows = [(str(a["precision"]), str(a["backend"]), str(a["verdict"])) for a in artifacts]
        schema = document["schema"]
    except (ValueError, KeyError, TypeError):
        wrong = f"{VERIFY_NAME} is damaged. Verify again with export/verify.py."
        return {"artifacts": [], "problems": [wrong]}
    problems = []
    if schema != VERIFY_SCHEMA:
        problems.append(f"{VERIFY_NAME} has schema {schema!r}; expected {VERIFY_SCHEMA}.")
    for (precision, backend, verdict), artifact in zip(rows, artifacts, strict=True):
        if verdict == "fail":
            why = "; ".join(map(str, artifact.get("reasons", []))) or "no reason given"
            problems.append(f"the proof of {precision} on {backend} failed: {why}")
        if precision not in manifest.precisions:
            problems.append(f"{VERIFY_NAME} proves {precision}, which the bundle has not.")
    return {"data": document.get("data"), "artifacts": artifacts, "problems": problems}


def _gather(parts: list[Document]) -> Document:
    """The problems and notes of all parts, each once."""
    return {
        name: list(dict.fromkeys(line for part in parts for line in part.get(name, [])))
        for name in ("problems", "notes")
    }


def _manifest_of_engine(path: Path) -> Manifest | None:
    beside = path.resolve().parent.parent / MANIFEST_NAME
    return Manifest.from_file(beside) if beside.is_file() else None


def _graph_named(name: str, manifest: Manifest | None) -> str:
    """Which of the manifest's graphs a file is, by its name; the first where it says none."""
    names = list(manifest.graphs) if manifest is not None else ["model"]
    return next((each for each in names if name.split(".")[0] == each), names[0])


def _kind_of(path: Path) -> str:
    parts = path.name.split(".")
    return next((kind for kind in ("plugin", "cpu") if kind in parts), "portable")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
