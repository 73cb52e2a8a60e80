"""An engine and the record beside it as a JSON document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.contract.bundle import hash_file
from runtime.contract.errors import KestrelError
from runtime.contract.manifest import Manifest
from runtime.engines import NoFlavourError, load_flavour
from runtime.engines.audit import not_run
from runtime.engines.fingerprint import Identity
from runtime.engines.inspector_layers import audit_plan

Document = dict[str, Any]


def describe_engine(path: Path, manifest: Manifest | None) -> Document:
    """Look at an engine; it is loaded only where there is a GPU.

    Args:
        path: of the .engine file.
        manifest: of the bundle it lies in; None where it lies elsewhere.
    """
    document: Document = {
        "name": path.name,
        "bytes": path.stat().st_size,
        "sha256": hash_file(path),
        "problems": [],
        "notes": [],
    }
    record = _read_record(path.with_suffix(".json"))
    if record is None:
        document["problems"].append(
            f"{path.name} has no record beside it ({path.with_suffix('.json').name}), so nothing "
            "says what it is. Delete it; it is built again where it is needed."
        )
        return document
    document["record"] = record
    document["problems"] += _check_record(path, document["sha256"], record)
    source, notes = _find_source(record["identity"], manifest)
    document["notes"] += [f"{path.name}: {note}" for note in notes]
    claimed = record["identity"]["precision"]
    if source is not None and source != claimed:
        document["problems"].append(
            f"{path.name} claims {claimed}, and was built from the {source} graph. "
            "Delete it; it is built again where it is needed."
        )
    audit = _audit(path, record["identity"], source or claimed)
    document["audit"] = audit.to_json(with_layers=True)
    if audit.verdict == "fail":
        document["problems"] += [f"{path.name}: {reason}" for reason in audit.reasons]
    return document


def _read_record(path: Path) -> Document | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        Identity(**record["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(record)


def _check_record(path: Path, sha256: str, record: Document) -> list[str]:
    problems = []
    if record.get("sha256") != sha256:
        problems.append(f"{path.name} is not what was built: its sha256 differs from its record's.")
    fingerprint = Identity(**record["identity"]).fingerprint()
    if not fingerprint == record.get("fingerprint") == path.stem:
        problems.append(
            f"the record of {path.name} was changed: its identity has the fingerprint "
            f"{fingerprint}, and it says {record.get('fingerprint')}."
        )
    if record.get("verdict") == "fail":
        problems.append(f"{path.name} failed its check on the device.")
    return problems


def _find_source(identity: Document, manifest: Manifest | None) -> tuple[str | None, list[str]]:
    """The precision of the graph file that it was built from, found by the file's hash."""
    if manifest is None:
        return None, ["lies in no bundle, so its source cannot be checked"]
    source = identity["onnx_sha256"].get("model", "")
    for graph in manifest.graphs.values():
        for files in (graph.files, graph.plugin_files):
            for precision, name in files.items():
                if graph.sha256.get(name, "").lower() == source:
                    return precision, []
    return None, ["was built from another export and is not used any more"]


def _audit(path: Path, identity: Document, precision: str) -> Any:
    try:
        flavour = load_flavour(str(identity["flavour"]))
        return audit_plan(path.read_bytes(), flavour, precision)
    except NoFlavourError as error:
        return not_run(str(identity["flavour"]), precision, str(error))
    except KestrelError as error:
        return not_run(str(identity["flavour"]), precision, f"not readable: {error}")
