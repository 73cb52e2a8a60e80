"""The audit as a part of the proof: does what was built compute in what was asked for?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from export.graph.types_audit import audit_onnxruntime, audit_types
from runtime.contract.bundle import Bundle
from runtime.contract.errors import SessionError
from runtime.engines.audit import Audit, not_run
from runtime.engines.fingerprint import engine_file
from runtime.sessions.base import Session


def audit_artifact(bundle: Bundle, session: Session) -> dict[str, Any]:
    """What a session's graphs compute in, beside what their files say.

    Args:
        bundle: what the session runs.
        session: open; on a CPU or a GPU.

    Returns:
        `verdict` ("fail" if a graph's is, "not run" if none was looked at), `reasons` of "fail",
        and for each graph the audits `file` and `runs`, as `Audit.to_json` writes them.
    """
    graphs, reasons, verdicts = {}, [], []
    for graph in bundle.manifest.graphs:
        path = _file_that_runs(bundle, graph, session)
        file = audit_types(onnx.load(path, load_external_data=False), session.precision)
        runs = _audit_session(session, graph, path, bundle, file.shares)
        verdicts += [file.verdict, runs.verdict]
        reasons += [f"{path.name}: {reason}" for reason in file.reasons if file.verdict == "fail"]
        is_alone = len(bundle.manifest.graphs) == 1
        what = session.backend if is_alone else f"{session.backend}, {graph}"
        reasons += [f"{what}: {reason}" for reason in runs.reasons if runs.verdict == "fail"]
        graphs[graph] = {"file": file.to_json(), "runs": runs.to_json()}
    verdict = next((each for each in ("fail", "not run") if each in verdicts), "pass")
    return {"verdict": verdict, "reasons": reasons, "graphs": graphs}


def audit_backend(
    path: Path,
    backend: str,
    precision: str,
    file_shares: Mapping[str, float],
    absence: str = "",
) -> Audit:
    """Compile one file on a CPU backend, at batch 1, and look at what became of it.

    Args:
        path: of a portable ONNX file.
        backend: "onnxruntime" or "openvino".
        precision: what it is meant to be.
        file_shares: `Audit.shares` of the file.
        absence: why the backend is not there; empty where it is.
    """
    name = "openvino f32" if backend == "openvino" else backend
    if absence:
        return not_run(name, precision, absence)
    try:
        if backend == "onnxruntime":
            return audit_onnxruntime(path, precision, file_shares=file_shares)
        return _audit_openvino_file(path, precision, file_shares)
    except (SessionError, RuntimeError) as error:
        return not_run(name, precision, " ".join(str(error).split())[:300])


def _file_that_runs(bundle: Bundle, graph: str, session: Session) -> Path:
    precision = session.precision
    if session.backend.startswith("tensorrt"):
        return engine_file(bundle, graph, precision)
    if "GPU" not in session.device and bundle.has_file(graph, precision, "cpu"):
        return bundle.file(graph, precision, "cpu")
    return bundle.file(graph, precision)


def _audit_session(
    session: Any, graph: str, path: Path, bundle: Bundle, shares: Mapping[str, float]
) -> Audit:
    if session.backend == "openvino":
        from runtime.engines.openvino_layers import audit_openvino

        compiled = session.compiled(graph, bundle.manifest.batches[0])
        return audit_openvino(compiled, session.precision, file_shares=shares)
    if session.backend == "onnxruntime" and session.device == "CPU":
        return audit_onnxruntime(path, session.precision, file_shares=shares)
    if session.backend == "onnxruntime":
        return not_run(
            "onnxruntime", session.precision, "no table of what the CUDA provider computes"
        )
    from runtime.engines import load_flavour
    from runtime.engines.inspector_layers import audit_plan

    plan = session.engine_files[graph].plan()
    flavour = load_flavour(session.backend)
    return audit_plan(plan, flavour, session.precision, file_shares=shares)


def _audit_openvino_file(path: Path, precision: str, shares: Mapping[str, float]) -> Audit:
    import openvino

    from runtime.engines.openvino_layers import audit_openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    fixed = {}
    for port in model.inputs:
        shape = port.get_partial_shape()
        if shape.rank.get_length() and shape[0].is_dynamic:
            shape[0] = 1
        fixed[port.get_any_name()] = shape
    model.reshape(fixed)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return audit_openvino(compiled, precision, file_shares=shares)
