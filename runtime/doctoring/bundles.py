"""Bundles: whether they are whole, what was proven of them, and what of them runs here."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from runtime.contract.bundle import Bundle, Kind
from runtime.contract.errors import BundleError
from runtime.doctoring.backends import cure_for_none
from runtime.doctoring.findings import Finding, from_error
from runtime.doctoring.survey import Survey
from runtime.sessions.cpu_flags import VNNI

_GPU_BACKENDS = ("tensorrt", "tensorrt_rtx")  # an engine is proven when it is loaded
_WITH_INT8 = ("int8", "mixed")
_CUDA = "-cuda"


def check_bundles(survey: Survey) -> Iterator[Finding]:
    """Each bundle that was named."""
    for path in survey.bundles:
        subject = f"Bundle {path.resolve().name}"
        try:
            bundle = Bundle.open(path)
        except (BundleError, OSError) as error:
            yield from_error(subject, "bundle-unreadable", error)
            continue
        damaged = list(_check_files(subject, bundle))
        yield from damaged
        yield from _check_folder(subject, path)
        if not damaged:
            yield from _check_use(survey, subject, bundle)


def _check_files(subject: str, bundle: Bundle) -> Iterator[Finding]:
    """Every file that the manifest names, by its hash, and the samples."""
    seen = set()
    kinds: tuple[Kind, ...] = ("portable", "plugin", "cpu")
    for graph in bundle.manifest.graphs:
        for precision in bundle.manifest.precisions:
            for kind in kinds:
                if not bundle.has_file(graph, precision, kind):
                    continue
                try:
                    bundle.file(graph, precision, kind)
                except (BundleError, OSError) as error:
                    finding = from_error(subject, "bundle-damaged", error)
                    if finding not in seen:  # a weights file that several graphs share
                        yield finding
                    seen.add(finding)
        try:
            bundle.samples(graph)
        except (BundleError, OSError) as error:
            yield from_error(subject, "bundle-samples-damaged", error)


def _check_folder(subject: str, path: Path) -> Iterator[Finding]:
    folder = path if path.is_dir() else path.parent
    if is_open_to_all(folder):
        yield Finding(
            subject,
            "bundle-writable-by-all",
            "warning",
            f"every user may write {folder}, and so put another network in its place",
            f"chmod -R o-w {folder}",
        )


def is_open_to_all(folder: Path) -> bool:
    """Whether any user may replace a folder's files; a sticky folder's they may not."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def _check_use(survey: Survey, subject: str, bundle: Bundle) -> Iterator[Finding]:
    """Precisions by backend: proven, failed, never verified."""
    backends = survey.backends
    if not backends:
        yield Finding(
            subject,
            "bundle-no-backend",
            "error",
            "no backend here can run it",
            cure_for_none(survey),
        )
        return
    usable: dict[str, list[str]] = {}
    unproven, failed = [], []
    for backend in backends:
        name = backend.removesuffix(_CUDA)
        for precision in bundle.manifest.precisions:
            try:
                verdict = bundle.verdict(precision, name)
            except BundleError as error:
                yield from_error(subject, "bundle-proof-damaged", error)
                return
            pair = f"{precision} with {backend}"
            if verdict == "fail":
                failed.append(pair)
                continue
            usable.setdefault(backend, []).append(precision)
            if verdict == "not run" and name not in _GPU_BACKENDS:
                unproven.append(pair)
    if failed:
        yield Finding(
            subject,
            "bundle-failed-proof",
            "warning" if usable else "error",
            f"its proof failed, so it is not loaded: {', '.join(failed)}",
            "verify.json says why; choose another precision or backend, or export again",
        )
    if unproven:
        yield Finding(
            subject,
            "bundle-unproven",
            "note",
            f"never verified: {', '.join(unproven)}",
            f"python export/verify.py {bundle.folder}, where it was exported",
        )
    yield from _check_int8(survey, subject, bundle)
    if usable:
        manifest = bundle.manifest
        size = f"{manifest.geometry.width}x{manifest.geometry.height}"
        listed = "; ".join(f"{each} ({', '.join(names)})" for each, names in usable.items())
        text = (
            f"{manifest.task}, {len(manifest.classes)} classes, {size}; whole; runs with {listed}"
        )
        yield Finding(subject, "bundle", "ok", text)


def _check_int8(survey: Survey, subject: str, bundle: Bundle) -> Iterator[Finding]:
    asked = [each for each in bundle.manifest.precisions if each in _WITH_INT8]
    flags = survey.cpu_flags
    on_cpu_alone = not any(each in _GPU_BACKENDS for each in survey.backends)
    if asked and on_cpu_alone and "sse2" in flags and not VNNI & flags:
        yield Finding(
            subject,
            "bundle-int8-inexact",
            "note",
            f"{' and '.join(asked)} would lose detections on this processor, which has no VNNI; "
            "float32 runs in its place",
            "choose --precision fp32, or a processor with VNNI",
        )
