"""Engines beside a bundle: whether they fit what stands here, and may be trusted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.contract.bundle import Bundle, hash_file
from runtime.contract.errors import KestrelError
from runtime.contract.manifest import MANIFEST_NAME
from runtime.doctoring.bundles import is_open_to_all
from runtime.doctoring.findings import Finding
from runtime.doctoring.survey import Gpu, Survey
from runtime.engines.build import BuildOptions
from runtime.engines.cache import ENGINES_FOLDER, read_record, user_cache_folder
from runtime.engines.fingerprint import Device, Identity, identify, serves
from runtime.engines.flavour import FLAVOUR_NAMES, Flavour
from runtime.engines.kernels.shipped import NMS, SELECT, code_sha256

_DELETE = "delete it: it is built anew where it is needed"
_REBUILD = "nothing to do: the next start builds it anew, which takes minutes once"


def check_engines(survey: Survey) -> Iterator[Finding]:
    """The engines of each bundle that was named, in its folder and in the user's cache."""
    cache = user_cache_folder(survey.machine.environ)
    for path in survey.bundles:
        try:
            bundle = _open_whole(path)
        except (KestrelError, OSError):
            continue  # `bundles.py` says it
        subject = f"Engines of {path.resolve().name}"
        for folder in (bundle.folder / ENGINES_FOLDER, cache):
            if folder.is_dir():
                yield from _check_folder(survey, subject, bundle, folder)


def _open_whole(path: Path) -> Bundle:
    """The bundle around a file, since engines of its other precisions lie beside it."""
    if path.is_file() and (path.parent / MANIFEST_NAME).is_file():
        whole = Bundle.open(path.parent)
        if any(path.name in graph.sha256 for graph in whole.manifest.graphs.values()):
            return whole
    return Bundle.open(path)


def _check_folder(survey: Survey, subject: str, bundle: Bundle, folder: Path) -> Iterator[Finding]:
    if is_open_to_all(folder):
        yield Finding(
            subject,
            "engines-writable-by-all",
            "warning",
            f"every user may write {folder}, and an engine is a program that this user runs",
            f"chmod o-w {folder}",
        )
    is_own = folder.parent == bundle.folder
    for path in sorted(folder.glob("*.engine")):
        if is_own and not path.with_suffix(".json").is_file():
            yield Finding(
                subject,
                "engine-without-record",
                "note",
                f"{path.name} has no .json beside it, so it is never taken",
                _DELETE,
            )
    for path in sorted(folder.glob("*.json")):
        try:
            yield from list(_check_record(survey, subject, bundle, path, is_own=is_own))
        except Exception:  # a record is a file of any hand: its fields may be of any type
            yield _unreadable(subject, path)


def _check_record(
    survey: Survey, subject: str, bundle: Bundle, path: Path, *, is_own: bool
) -> Iterator[Finding]:
    engine = path.with_suffix(".engine")
    record = read_record(path)
    if record is None or not isinstance(record.get("identity"), dict):
        if is_own:
            yield _unreadable(subject, path)
        return
    if not is_own and not _is_of(record, bundle):
        return
    if bundle.is_single_file and record.get("onnx") not in bundle.manifest.graphs["model"].sha256:
        return  # of another file of the folder
    fault = _why_unreadable(survey, engine, record)
    if fault:
        yield Finding(subject, "engine-damaged", "warning", f"{engine.name} {fault}", _DELETE)
        return
    if _was_edited(path, record):
        yield Finding(
            subject,
            "engine-record-edited",
            "warning",
            f"{path.name} was changed by hand, so its verdict does not count",
            "nothing to do: the engine is checked again when it is loaded; delete it if nobody "
            "you know did this",
        )
    if record["verdict"] == "fail":
        reasons = record.get("check", {}).get("reasons") or ["no reason noted"]
        yield Finding(
            subject,
            "engine-failed",
            "error",
            f"{engine.name} failed its check: {_short(reasons[0])}",
            "use another precision or backend; after an update of the driver delete it, so that "
            "it is built anew",
        )
    yield from _judge_fit(survey, subject, bundle, engine, record)


def _unreadable(subject: str, path: Path) -> Finding:
    text = f"{path.name} is damaged, or of another version of Kestrel"
    return Finding(subject, "engine-record-unreadable", "warning", text, _DELETE)


def _judge_fit(
    survey: Survey, subject: str, bundle: Bundle, engine: Path, record: Mapping[str, Any]
) -> Iterator[Finding]:
    identity = record["identity"]
    flavour, precision = str(identity.get("flavour")), str(identity.get("precision"))
    what = f"{engine.name} ({precision}, {flavour} {identity.get('flavour_version')})"
    version = survey.tensorrt_version(flavour) if flavour in FLAVOUR_NAMES else ""
    if not version:
        yield Finding(
            subject,
            "engine-no-toolkit",
            "note",
            f"{what}: no {flavour} here that loads, so it is not used",
            "see the findings on TensorRT, or run on another backend",
        )
        return
    device = _device(survey.gpus[0]) if survey.gpus else None
    if device is None and identity.get("device") != "any":
        yield Finding(
            subject,
            "engine-no-gpu",
            "note",
            f"{what} is for {identity.get('device')}, and there is no NVIDIA GPU here",
            "nothing to do: other backends run the bundle",
        )
        return
    try:
        wanted = identify(
            bundle,
            str(record.get("graph")),
            precision,
            Flavour(flavour, None, version),
            device=device,
            options=BuildOptions(),
            plugin_sha256=_expected_code(str(identity.get("plugin_sha256", ""))),
        )
    except KestrelError as error:
        yield Finding(
            subject,
            "engine-stale",
            "warning",
            f"{what} is of no graph that can be read: {error}",
            _DELETE,
        )
        return
    if serves(identity, wanted, device):
        text = f"{what} fits; its check: {record['verdict']}"
        yield Finding(subject, "engine", "ok", text)
        return
    is_stale = identity.get("onnx_sha256") != wanted.onnx_sha256
    yield Finding(
        subject,
        "engine-stale" if is_stale else "engine-foreign",
        "warning",
        f"{what} does not fit: {'; '.join(_differences(identity, wanted, device))}",
        _DELETE if is_stale else _REBUILD,
    )


def _device(gpu: Gpu) -> Device:
    return Device(gpu.name, gpu.compute_capability)


def _expected_code(recorded: str) -> str:
    """Hash of our kernels' code; an engine without them is right where TensorRT refused them."""
    return "" if recorded == "" else code_sha256(SELECT, NMS)


def _differences(identity: Mapping[str, Any], wanted: Identity, device: Device | None) -> list[str]:
    """What differs between an engine and this machine, for people."""
    ours = wanted.to_dict()
    said = []
    if identity.get("onnx_sha256") != ours["onnx_sha256"]:
        said.append("the bundle's graph is another one by now")
    if identity.get("flavour_version") != wanted.flavour_version:
        said.append(
            f"built with {identity.get('flavour_version')}, here is {wanted.flavour_version}"
        )
    if identity.get("platform") != wanted.platform:
        said.append(f"built on {identity.get('platform')}, this is {wanted.platform}")
    if device is not None and identity.get("device") not in ("any", device.name):
        said.append(f"built for {identity.get('device')}, here is {device}")
    elif device is not None and identity.get("compute_capability") not in (
        "",
        device.compute_capability,
    ):
        said.append(f"built for sm {identity.get('compute_capability')}, here is {device}")
    if identity.get("plugin_sha256") != wanted.plugin_sha256:
        said.append("our kernels are other ones by now")
    if identity.get("shapes") != ours["shapes"]:
        said.append("other batches or input sizes")
    return said or ["its targets leave this GPU out"]


def _why_unreadable(survey: Survey, engine: Path, record: Mapping[str, Any]) -> str:
    if not engine.is_file():
        return "is missing beside its .json"
    if not survey.machine.user.may(engine, os.R_OK):
        return "cannot be read by this user"
    try:
        is_whole = hash_file(engine) == record.get("sha256")
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if is_whole else "is not what was built: its sha256 is another"


def _is_of(record: Mapping[str, Any], bundle: Bundle) -> bool:
    """Whether an engine of the user's cache was built from a file of this bundle."""
    graph = bundle.manifest.graphs.get(str(record.get("graph")))
    model = record["identity"].get("onnx_sha256", {}).get("model")
    return graph is not None and model in [each.lower() for each in graph.sha256.values()]


def _was_edited(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether `read_record` did not believe the verdict that stands there."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["verdict"] != record["verdict"])
    except (OSError, ValueError, KeyError):
        return False


def _short(text: str) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else f"{line[:200]}..."
