"""Prove a bundle: `python export/verify.py runs/retinanet`.

Every precision runs on every backend that is present and is held against PyTorch, detection by
detection, and against the checkpoint's AP. The verdicts go into verify.json; the runtime does not
load what failed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from runtime.contract.bundle import VERIFY_NAME, VERIFY_SCHEMA, Bundle
from runtime.contract.errors import (
    EXIT_DONE,
    EXIT_VERDICT_FAIL,
    BundleError,
    KestrelError,
    run_script,
)
from runtime.contract.files import write_json

BACKENDS = ("onnxruntime", "openvino")
QUICK_IMAGES = 64
MAX_BOX_ERROR_PX = 0.05  # float32 against float32
MAX_SCORE_ERROR = 1e-3
MAX_UNMATCHED = 1e-3  # share of all results; each must lie at a threshold
MAX_AP_DROP = 0.01
NOTHING_FOUND = (
    "neither side finds anything on these frames at the default thresholds, so nothing was compared"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an artifact may differ by and still pass."""

    box_px: float = MAX_BOX_ERROR_PX
    score: float = MAX_SCORE_ERROR
    unmatched: float = MAX_UNMATCHED
    ap_drop: float = MAX_AP_DROP


def verify_bundle(
    path: Path,
    *,
    checkpoint: Path | None = None,
    data: str = "street",
    num_images: int = QUICK_IMAGES,
) -> bool:
    """Verify all artifacts of a bundle, print a table, write verify.json.

    Args:
        path: the bundle's folder.
        checkpoint: the one it was exported from; None is the shipped one. Its hash is checked.
        data: labelled frames; AP is compared where its classes are the bundle's.
        num_images: frames of the validation split.

    Returns:
        Whether no artifact failed.
    """
    from export.bundling import ExportOptions, find_checkpoint
    from export.proof.reference import Reference

    bundle = Bundle.open(path, allow_unverified=True)
    manifest = bundle.manifest
    options = ExportOptions(
        model=manifest.model,
        variant=manifest.variant,
        checkpoint=checkpoint,
        size_hw=None,
        out=path,
    )
    reference = Reference.make(find_checkpoint(options), manifest, data, num_images)
    artifacts = [
        verify_artifact(bundle, precision, backend, reference, Limits())
        for precision in manifest.precisions
        for backend in BACKENDS
    ]
    document = {
        "schema": VERIFY_SCHEMA,
        "data": data,
        "images": len(reference.frames),
        "AP_checkpoint": reference.ap,
        "artifacts": artifacts,
    }
    write_json(path / VERIFY_NAME, document)
    print_table(document)
    return all(artifact["verdict"] != "fail" for artifact in artifacts)


def verify_artifact(
    bundle: Bundle, precision: str, backend: str, reference: Any, limits: Limits
) -> dict[str, Any]:
    """One precision on one backend: parity and AP, with a verdict and its reasons."""
    from runtime.contract.errors import SessionError
    from runtime.sessions import BACKENDS as SESSIONS
    from runtime.sessions import open_session, why_absent

    artifact: dict[str, Any] = {"precision": precision, "backend": backend}
    entry = next(e for e in SESSIONS if e.name == backend and not e.needs_gpu)
    absence = why_absent(entry)
    if absence:
        return artifact | {"verdict": "not run", "reasons": [absence]}
    options = {"device": "cpu"} if backend == "onnxruntime" else {}
    try:
        session = open_session(bundle, backend, precision, **options)
    except SessionError as error:
        return artifact | {"verdict": "fail", "reasons": [str(error)]}
    comparison = reference.compare(session)
    if not comparison.num_matched and not comparison.unmatched:
        session.close()
        return artifact | {"verdict": "not run", "reasons": [NOTHING_FOUND]}
    figures = comparison.summary()
    reasons = []
    if figures["max_box_error_px"] > limits.box_px:
        reasons.append(f"box error {figures['max_box_error_px']:.3g} px > {limits.box_px} px")
    if figures["max_score_error"] > limits.score:
        reasons.append(f"score error {figures['max_score_error']:.2g} > {limits.score}")
    share = figures["unmatched"] / max(1, figures["matched"])
    if figures["unexplained"] or share > limits.unmatched:
        reasons.append(
            f"{figures['unmatched']} results unmatched of {figures['matched']}, "
            f"{figures['unexplained']} of them far from any threshold"
        )
    ap = reference.score(session)
    if ap is not None:
        artifact["AP"] = ap
        if reference.ap - ap > limits.ap_drop:
            reasons.append(f"AP {ap:.4f}; the checkpoint has {reference.ap:.4f}")
    session.close()
    verdict = "fail" if reasons else "pass"
    worst = sorted(comparison.unmatched, key=lambda u: -min(u.score_margin, u.iou_margin))[:10]
    listed = [{name: _plain(getattr(u, name)) for name in u.__dataclass_fields__} for u in worst]
    return artifact | figures | {"verdict": verdict, "reasons": reasons, "worst": listed}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def print_table(document: dict[str, Any]) -> None:
    """The verdicts, a line each."""
    ap = document["AP_checkpoint"]
    shown = f"; AP of the checkpoint {ap:.4f}" if ap is not None else ""
    print(f"verified on {document['images']} frames of {document['data']}{shown}")
    print(f"{'artifact':22} {'matched':>8} {'unmatched':>9} {'box px':>9} {'score':>9} {'AP':>7}")
    for row in document["artifacts"]:
        name = f"{row['precision']} {row['backend']}"
        if "matched" not in row:
            print(f"{name:22} {row['verdict']}: {row['reasons'][0]}")
            continue
        score = f"{row['AP']:.4f}" if row.get("AP") is not None else "-"
        print(
            f"{name:22} {row['matched']:8} {row['unmatched']:9} {row['max_box_error_px']:9.2g} "
            f"{row['max_score_error']:9.2g} {score:>7}  {row['verdict']}"
        )
        for reason in row["reasons"]:
            print(f"  {reason}")


def main() -> int:
    """Verify; exit status 1 where the verdict is "fail"."""
    parser = argparse.ArgumentParser(description="Prove a bundle against PyTorch.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="default: the one shipped in weights/")
    parser.add_argument("--data", default="street", help="street, or a COCO, VOC or YOLO folder")
    parser.add_argument("--images", type=int, default=QUICK_IMAGES)
    args = parser.parse_args()
    if args.images < 1:
        raise KestrelError(f"--images {args.images} is not positive. Give a number above 0.")
    if not args.bundle.is_dir():
        raise BundleError(f"{args.bundle} is no folder; expected a bundle. Check the path.")
    is_passed = verify_bundle(
        args.bundle, checkpoint=args.checkpoint, data=args.data, num_images=args.images
    )
    return EXIT_DONE if is_passed else EXIT_VERDICT_FAIL


if __name__ == "__main__":
    sys.exit(run_script(main))
