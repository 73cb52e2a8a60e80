"""The documents as text for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

Document = dict[str, Any]

_MOST_WEIGHTS = 20
_WIDEST_CELL = 60


def render_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, indent: str = "  "
) -> list[str]:
    """Lines of a table; columns of numbers are set to the right."""
    cells = [[_shorten(str(cell)) for cell in row] for row in rows]
    if not cells:
        return []
    columns = list(zip(header, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    is_number = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    lines = []
    for row in (list(header), *cells):
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ]
        lines.append((indent + "  ".join(padded)).rstrip())
    lines.insert(1, indent + "  ".join("-" * width for width in widths))
    return lines


def render(document: Document, *, with_layers: bool = False) -> list[str]:
    """What `describe` found, in lines."""
    lines = [f"{document['kind']} {document['path']}"]
    if document.get("manifest"):
        lines += _render_manifest(document["manifest"])
    files = document.get("files", [])
    if files:
        lines += ["", "files", *_render_files(files)]
    for name, weights in document.get("weights", {}).items():
        lines.append(f"  {name}: {_size(weights['bytes'])}, sha256 {weights['sha256'][:16]}")
    if any(document.get("samples", {}).values()):
        counts = ", ".join(f"{count} of {name}" for name, count in document["samples"].items())
        lines.append(f"  samples: {counts}")
    whole = [file for file in files if "inputs" in file]
    if whole:
        lines += ["", "contract", *_render_contract(whole[0])]
        lines += ["", "precision", *_render_precision(whole)]
        lines += _render_findings(whole)
    if document.get("proof", {}).get("artifacts"):
        lines += ["", "proof", *_render_proof(document["proof"]["artifacts"])]
    for engine in document.get("engines", []):
        lines += ["", f"engine {engine['name']}", *_render_engine(engine)]
    if with_layers:
        for part in (*whole, *document.get("engines", [])):
            lines += _render_layers(part)
    lines += [f"note: {note}" for note in document.get("notes", [])]
    problems = document["problems"]
    count = (
        f"{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "no problems"
    )
    lines += ["", count]
    lines += [f"  {problem}" for problem in problems]
    return lines


def render_differences(differences: Document) -> list[str]:
    """What `compare` found, in lines."""
    lines: list[str] = []
    for name in ("manifest", "proof", "engines"):
        rows = [
            (row["name"], _as_text(row["first"]), _as_text(row["second"]))
            for row in differences[name]
        ]
        if rows:
            lines += ["", name, *render_table(("", "first", "second"), rows)]
    for side in ("first", "second"):
        lines += [f"only in the {side}: {name}" for name in differences[f"only_{side}"]]
    for pair in differences["files"]:
        lines += ["", " and ".join(dict.fromkeys(pair["names"])), *_render_pair(pair)]
    return ["differences", *(lines or ["  none"])]


def _render_manifest(manifest: Document) -> list[str]:
    geometry = manifest["geometry"]
    rows = [
        ("model", f"{manifest['model']} {manifest['variant']}, task {manifest['task']}"),
        ("classes", f"{len(manifest['classes'])}: {', '.join(manifest['classes'])}"),
        (
            "input",
            f"{geometry['width']}x{geometry['height']} {geometry['dtype']} "
            f"{geometry['colour']}, {geometry['resize']}",
        ),
        ("batches", ", ".join(map(str, manifest["batches"]))),
        ("detections", f"{manifest['max_detections']} of {manifest['num_candidates']} candidates"),
        ("scores", ", ".join(f"{k} {v:.4f}" for k, v in manifest["scores"].items()) or "none"),
        ("checkpoint", _as_checkpoint(manifest)),
        ("calibrated", _as_calibration(manifest["calibration"])),
        ("version", f"{manifest['version'] or 'unknown'}, {manifest['created'] or 'undated'}"),
    ]
    return [f"  {name:11} {_shorten(text, 100)}" for name, text in rows]


def _as_checkpoint(manifest: Document) -> str:
    training = manifest["training"]
    sha256 = training.get("checkpoint_sha256", "")[:16] or "?"
    licence = f"under {manifest['licence']}" if manifest["licence"] else ""
    parts = (training.get("source"), training.get("file"), f"sha256 {sha256}", licence)
    return ", ".join(part for part in parts if part)


def _as_calibration(calibration: Document) -> str:
    if not calibration:
        return "not: no int8"
    method, images = calibration.get("method", "?"), calibration.get("images", "?")
    sha256 = calibration.get("images_sha256", "")[:16]
    return f"{method} on {images} frames of {calibration.get('data', '?')}, sha256 {sha256}"


def _render_files(files: Sequence[Document]) -> list[str]:
    rows = [
        (
            file["name"],
            file["kind"],
            file["precision"],
            _size(file["bytes"]) if "bytes" in file else "missing",
            file.get("num_nodes", ""),
            file.get("num_weights", ""),
            file.get("sha256", "")[:16],
        )
        for file in files
    ]
    return render_table(("file", "kind", "precision", "size", "nodes", "weights", "sha256"), rows)


def _render_contract(file: Document) -> list[str]:
    rows = [
        (side[:-1], tensor["name"], tensor["dtype"], "x".join(map(str, tensor["shape"])))
        for side in ("inputs", "outputs")
        for tensor in file[side]
    ]
    return render_table(("", "name", "type", "shape"), rows)


def _render_precision(files: Sequence[Document]) -> list[str]:
    rows = []
    for file in files:
        for audit in (file["audit"], *file["compiled"]):
            rows.append((file["name"], *_audit_cells(audit)))
    return render_table(
        ("file", "by", "asked for", "multiply-adds", "layers", "tail", "verdict"), rows
    )


def _audit_cells(audit: Document) -> tuple[str, ...]:
    shares = ", ".join(
        f"{100 * share:.1f} % {name}" for name, share in audit.get("shares", {}).items()
    )
    return (
        "its types" if audit["backend"] == "onnx" else audit["backend"],
        audit["precision"],
        shares if audit.get("macs") else "none",
        _counts(audit.get("layers", {})),
        _counts(audit.get("tail", {})) or "none",
        audit["verdict"],
    )


def _render_findings(files: Sequence[Document]) -> list[str]:
    rows = [(file["name"], f["rule"], f["node"]) for file in files for f in file["lint"]]
    return (
        ["", "lint", *render_table(("file", "rule", "node"), rows)] if rows else ["", "lint: clean"]
    )


def _render_proof(artifacts: Sequence[Document]) -> list[str]:
    rows = [
        (
            a["precision"],
            a["backend"],
            a.get("matched", ""),
            a.get("unmatched", ""),
            _number(a.get("max_box_error_px")),
            _number(a.get("AP")),
            a["verdict"],
        )
        for a in artifacts
    ]
    return render_table(
        ("precision", "backend", "matched", "unmatched", "box px", "AP", "verdict"), rows
    )


def _render_engine(engine: Document) -> list[str]:
    lines = [f"  {_size(engine['bytes'])}, sha256 {engine['sha256'][:16]}"]
    record = engine.get("record")
    if record is None:
        return lines
    identity = record["identity"]
    lines += [
        f"  {identity['flavour']} {identity['flavour_version']} for {identity['device']} "
        f"{identity['compute_capability']}".rstrip()
        + f", {identity['platform']}",
        f"  {identity['precision']} from {record.get('onnx')}, batches "
        f"{', '.join(identity['shapes'])}, built {record.get('built')} in "
        f"{record.get('build_seconds')} s, verdict {record.get('verdict')}",
    ]
    audit = engine["audit"]
    if audit["verdict"] == "not run":
        return [*lines, f"  precision not audited: {'; '.join(audit['reasons'])}"]
    cells = _audit_cells(audit)
    header = ("by", "asked for", "multiply-adds", "layers", "tail", "verdict")
    return [*lines, *render_table(header, [cells])]


def _render_layers(part: Document) -> list[str]:
    layers = part.get("audit", {}).get("all_layers", [])
    rows = [
        (
            layer["precision"] or "-",
            layer["kind"],
            f"{layer['macs']}" if layer["macs"] is not None else "?",
            "tail" if layer["is_tail"] else "",
            layer["name"],
        )
        for layer in layers
    ]
    header = ("precision", "kind", "multiply-adds", "", "name")
    return ["", f"layers of {part['name']}", *render_table(header, rows)] if rows else []


def _render_pair(pair: Document) -> list[str]:
    if pair["is_same"]:
        return ["  the same file"]
    if "weights" not in pair:
        return ["  not compared: a file is missing"]
    weights = pair["weights"]
    lines = [
        f"  size {_size(pair['bytes'][0])} and {_size(pair['bytes'][1])}, "
        f"nodes {pair['num_nodes'][0]} and {pair['num_nodes'][1]}",
        "  precision "
        + " and ".join(
            ", ".join(f"{100 * share:.1f} % {name}" for name, share in shares.items()) or "none"
            for shares in pair["shares"]
        ),
    ]
    lines += render_table(
        ("operator", "first", "second"), [(op, *counts) for op, counts in pair["nodes"].items()]
    )
    lines += [f"  {row['name']}: {row['first']} and {row['second']}" for row in pair["contract"]]
    lines.append(
        f"  weights: {weights['num_same']} the same, {len(weights['changed'])} changed, "
        f"{len(weights['only_first'])} only in the first, "
        f"{len(weights['only_second'])} only in the second"
    )
    rows = [
        (row["name"], _either(row["types"]), _either(row["shapes"]), _number(row["max_difference"]))
        for row in weights["changed"][:_MOST_WEIGHTS]
    ]
    lines += render_table(("weight", "type", "shape", "largest difference"), rows)
    more = len(weights["changed"]) - _MOST_WEIGHTS
    return [*lines, f"  and {more} more"] if more > 0 else lines


def _either(pair: Sequence[object]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]} and {pair[1]}"


def _counts(counts: Document) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _size(num_bytes: int) -> str:
    if num_bytes < 1 << 20:
        return f"{num_bytes / (1 << 10):.1f} KiB"
    return f"{num_bytes / (1 << 20):.1f} MiB"


def _shorten(text: str, width: int = _WIDEST_CELL) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(".", "", 1).replace("e-", "", 1).isdigit()
