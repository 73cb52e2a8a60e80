"""Prove a bundle: `python export/verify.py runs/retinanet`.

Every precision runs on every backend that is present and is held against PyTorch, detection by
detection, and against the checkpoint's AP. The verdicts go into verify.json; the runtime does not
load what failed.
"""

from __future__ import annotations

import argparse
import sys
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
from runtime.contract.limits import judge, limits_of

BACKENDS = ("onnxruntime", "openvino")
QUICK_IMAGES = 64
MAX_AP_DROP = 0.01
NOTHING_FOUND = (
    "neither side finds anything on these frames at the default thresholds, so nothing was compared"
)


def verify_bundle(
    path: Path,
    *,
    checkpoint: Path | None = None,
    data: str = "street",
    num_images: int | None = QUICK_IMAGES,
    max_ap_drop: float = MAX_AP_DROP,
) -> bool:
    """Verify all artifacts of a bundle, print a table, write verify.json.

    Args:
        path: the bundle's folder.
        checkpoint: the one it was exported from; None is the shipped one. Its hash is checked.
        data: labelled frames; AP is compared where its classes are the bundle's.
        num_images: frames of the validation split; None is all of them.
        max_ap_drop: how far an artifact's AP (0..1) may lie below the checkpoint's.

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
    reference.faults.extend(reference.check_samples(bundle.samples()))
    artifacts = [
        verify_artifact(bundle, precision, backend, reference, max_ap_drop)
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
    bundle: Bundle, precision: str, backend: str, reference: Any, max_ap_drop: float
) -> dict[str, Any]:
    """One precision on one backend: parity and AP, with a verdict and its reasons."""
    from export.proof.auditing import audit_artifact
    from export.proof.files import find_file_fault
    from runtime.contract.errors import SessionError
    from runtime.sessions import BACKENDS as SESSIONS
    from runtime.sessions import open_session, why_absent

    artifact: dict[str, Any] = {"precision": precision, "backend": backend}
    entry = next(e for e in SESSIONS if e.name == backend and not e.needs_gpu)
    absence = why_absent(entry)
    if absence:
        return artifact | {"verdict": "not run", "reasons": [absence]}
    fault = find_file_fault(bundle, precision)
    if fault:
        return artifact | {"verdict": "fail", "reasons": [fault]}
    options = {"device": "cpu"} if backend == "onnxruntime" else {}
    try:
        session = open_session(bundle, backend, precision, **options)
    except SessionError as error:
        return artifact | {"verdict": "fail", "reasons": [str(error)]}
    outputs = reference.run(session)
    comparison = reference.compare(outputs)
    if not comparison.num_matched and not comparison.unmatched:
        session.close()
        return artifact | {"verdict": "not run", "reasons": [NOTHING_FOUND]}
    limits = limits_of(precision)
    figures = comparison.summary(limits.near)
    artifact["audit"] = audit_artifact(bundle, session)
    reasons = [
        *reference.faults,
        *judge(figures, limits),
        *artifact["audit"]["reasons"],
        *reference.probe(session),
    ]
    ap = reference.score(session)
    if ap is not None:
        artifact["AP"] = ap
        if reference.ap - ap > max_ap_drop:
            reasons.append(f"AP {ap:.4f}; the checkpoint has {reference.ap:.4f}")
    session.close()
    if len(reasons) > len(reference.faults):
        reasons.extend(reference.explain(bundle, precision))
    if reasons or comparison.unmatched:
        sheet = bundle.folder / f"verify.{precision}.{backend}.png"
        artifact["worst_frames"] = reference.draw(sheet, outputs)
    verdict = "fail" if reasons else "pass"
    worst = sorted(comparison.unmatched, key=lambda u: -u.margin)[:10]
    listed = [{name: _plain(getattr(u, name)) for name in u.__dataclass_fields__} for u in worst]
    return artifact | figures | {"verdict": verdict, "reasons": reasons, "worst": listed}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def print_table(document: dict[str, Any]) -> None:
    """The verdicts, a line each."""
    ap = document["AP_checkpoint"]
    shown = f"; AP of the checkpoint {ap:.4f}" if ap is not None else ""
    print(f"verified on {document['images']} frames of {document['data']}{shown}")
    heads = f"{'matched':>8} {'unmatched':>9} {'box p99':>9} {'max px':>9} {'score p99':>9}"
    print(f"{'artifact':18} {heads} {'max':>9} {'AP':>7}")
    for row in document["artifacts"]:
        name = f"{row['precision']} {row['backend']}"
        if "matched" not in row:
            print(f"{name:18} {row['verdict']}: {row['reasons'][0]}")
            continue
        score = f"{row['AP']:.4f}" if row.get("AP") is not None else "-"
        print(
            f"{name:18} {row['matched']:8} {row['unmatched']:9} {row['p99_box_error_px']:9.2g} "
            f"{row['max_box_error_px']:9.2g} {row['p99_score_error']:9.2g} "
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
    parser.add_argument("--verify", choices=("quick", "full"), default="quick")
    parser.add_argument("--images", type=int, help=f"quick: {QUICK_IMAGES}; full: the whole split")
    parser.add_argument("--max-ap-drop", type=float, default=MAX_AP_DROP, help="of 0..1")
    args = parser.parse_args()
    if args.images is None and args.verify == "quick":
        args.images = QUICK_IMAGES
    if args.images is not None and args.images < 1:
        raise KestrelError(f"--images {args.images} is not positive. Give a number above 0.")
    if not 0 <= args.max_ap_drop <= 1:
        raise KestrelError(f"--max-ap-drop {args.max_ap_drop} is no share. Give 0 to 1.")
    if not args.bundle.is_dir():
        raise BundleError(f"{args.bundle} is no folder; expected a bundle. Check the path.")
    is_passed = verify_bundle(
        args.bundle,
        checkpoint=args.checkpoint,
        data=args.data,
        num_images=args.images,
        max_ap_drop=args.max_ap_drop,
    )
    return EXIT_DONE if is_passed else EXIT_VERDICT_FAIL


if __name__ == "__main__":
    sys.exit(run_script(main))
