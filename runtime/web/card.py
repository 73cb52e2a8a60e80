"""What a bundle is and how it was proven, for the page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from runtime.contract.bundle import VERIFY_NAME, Bundle
from runtime.contract.errors import KestrelError, one_line
from runtime.contract.manifest import Manifest
from runtime.web.switching import Loaded

LONGEST_PROOF = 16 << 20  # bytes of a verify.json that is read


def describe_running(loaded: Loaded) -> dict[str, Any]:
    """The bundle that runs, in short."""
    first = loaded.networks.first
    return {
        **_describe_manifest(first.manifest),
        "name": _name_of(loaded.path),
        "path": loaded.path,
        "precision": first.precision,
        "backend": first.backend,
        "device": first.device,
    }


def describe_bundles(paths: Sequence[str], running: str) -> list[dict[str, Any]]:
    """Bundles that may be switched to, each with why it could not be, as far as is known."""
    found = []
    for path in paths:
        row: dict[str, Any] = {"task": None, "model": None, "variant": None}
        problem = None
        try:
            row = _describe_manifest(Bundle.open(path).manifest)
        except (KestrelError, OSError) as error:
            problem = one_line(error)
        found.append(
            {
                **row,
                "name": _name_of(path),
                "path": path,
                "is_running": path == running,
                "problem": problem,
            }
        )
    return found


def write_card(loaded: Loaded) -> dict[str, Any]:
    """The model card: the manifest's figures and the verdict of each stage of the proof."""
    first = loaded.networks.first
    manifest = first.manifest
    return {
        **describe_running(loaded),
        "classes": list(manifest.classes),
        "input": {"width": manifest.geometry.width, "height": manifest.geometry.height},
        "precisions": list(manifest.precisions),
        "licence": manifest.licence,
        "scores": dict(manifest.scores),
        "training": dict(manifest.training),
        "created": manifest.created,
        "version": manifest.version,
        "proof": _read_proof(loaded),
    }


def _describe_manifest(manifest: Manifest) -> dict[str, Any]:
    return {"task": manifest.task, "model": manifest.model, "variant": manifest.variant}


def _name_of(path: str) -> str:
    try:
        return Bundle.open(path, allow_unverified=True).name
    except (KestrelError, OSError):
        return path


def _read_proof(loaded: Loaded) -> dict[str, Any] | None:
    """verify.json, shortened, with what runs now; None where there is none that can be read."""
    first = loaded.networks.first
    try:
        bundle = Bundle.open(loaded.path, allow_unverified=True)
        path = bundle.folder / VERIFY_NAME
        if bundle.is_single_file or path.stat().st_size > LONGEST_PROOF:
            return None
        document = json.loads(path.read_text(encoding="utf-8"))
        stages = [
            {
                "precision": str(each["precision"]),
                "backend": str(each["backend"]),
                "verdict": str(each["verdict"]),
                "ap": _number_of(each.get("AP")),
                "reasons": [str(reason) for reason in each.get("reasons", ())],
                "is_running": (each["precision"], each["backend"])
                == (first.precision, first.backend),
            }
            for each in document["artifacts"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    if not any(each["is_running"] for each in stages):
        unproven = {"precision": first.precision, "backend": first.backend, "verdict": "not run"}
        stages.append({**unproven, "ap": None, "reasons": [], "is_running": True})
    return {
        "data": str(document.get("data", "")),
        "num_images": images if isinstance(images := document.get("images"), int) else None,
        "stages": stages,
    }


def _number_of(value: object) -> float | None:
    """What JSON can hold as a number: no NaN."""
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]
