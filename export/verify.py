r"""Prove a bundle against PyTorch, detection by detection.

Every precision runs on every backend that is present and is held against PyTorch, detection by
detection, and against the checkpoint's AP. The verdicts go into verify.json; the runtime does not
load what failed.

Examples:
  python export/verify.py runs/retinanet
      The samples and 64 images of the street.
  python export/verify.py runs/retinanet --images 200
      The same on 200 images.
  python export/verify.py runs/mine --checkpoint runs/train/mine/best.safetensors --data data/mine \
      --verify full
      A bundle of your own on the whole validation split.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
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
from runtime.contract.manifest import Manifest
from runtime.contract.manual import ScriptParser
from runtime.contract.outputs import KEY
from runtime.sessions.base import Session

BACKENDS = ("onnxruntime", "openvino")
QUICK_IMAGES = 64
MAX_AP_DROP = 0.01
NOTHING_FOUND = "PyTorch and the graph find nothing on these frames, so nothing was compared"
NOTHING_PROVEN = "nothing was proven: no backend that could run the bundle is here"


def check_ap_drop(max_ap_drop: float) -> None:
    """Raise KestrelError where a fall of AP is no share."""
    if not 0 <= max_ap_drop <= 1:
        raise KestrelError(f"--max-ap-drop {max_ap_drop} is no share. Give 0 to 1.")


def verify_bundle(
    path: Path,
    *,
    checkpoint: Path | None = None,
    data: str = "street",
    num_images: int | None = QUICK_IMAGES,
    max_ap_drop: float = MAX_AP_DROP,
    precisions: Sequence[str] | None = None,
) -> bool:
    """Verify all artifacts of a bundle, print a table, write verify.json.

    Args:
        path: the bundle's folder.
        checkpoint: the one it was exported from; None is the shipped one. Its hash is checked.
        data: labelled frames; AP is compared where its classes are the bundle's.
        num_images: frames of the validation split; None is all of them.
        max_ap_drop: how far an artifact's AP (0..1) may lie below the checkpoint's.
        precisions: only these; verify.json keeps what it said of the others. None is all.

    Returns:
        Whether something was proven and nothing failed. A checkpoint that finds nothing at any
        score leaves nothing to prove.
    """
    from export.proof.reference import Reference

    bundle = Bundle.open(path, allow_unverified=True)
    manifest = bundle.manifest
    source = _find_checkpoint(path, manifest, checkpoint)
    reference = Reference.make(source, manifest, data, num_images)
    reference.faults.extend(reference.check_samples(bundle))
    artifacts = [
        verify_artifact(bundle, precision, backend, reference, max_ap_drop)
        for precision in precisions or manifest.precisions
        for backend in BACKENDS
    ]
    kept = _kept_artifacts(path / VERIFY_NAME, precisions) if precisions else []
    document = {
        "schema": VERIFY_SCHEMA,
        "data": data,
        "images": len(reference.frames),
        "score_threshold": reference.floor,
        "AP_checkpoint": None,
        **{f"{name}_checkpoint": score for name, score in reference.all_scores.items()},
        "artifacts": artifacts,
    }
    search = _kept_search(path / VERIFY_NAME)
    write_json(path / VERIFY_NAME, document | search | {"artifacts": [*kept, *artifacts]})
    print_table(document)
    verdicts = {artifact["verdict"] for artifact in artifacts}
    is_proven = "pass" in verdicts or reference.finds_nothing
    if not is_proven and "fail" not in verdicts:
        print(NOTHING_PROVEN)
    return is_proven and "fail" not in verdicts


def _kept_artifacts(path: Path, precisions: Sequence[str]) -> list[dict[str, Any]]:
    """What an older proof says of other precisions, with what it was made on."""
    if not path.is_file():
        return []
    old = json.loads(path.read_text(encoding="utf-8"))
    made_on = {"made_on": {name: old.get(name) for name in ("data", "images", "AP_checkpoint")}}
    return [made_on | row for row in old["artifacts"] if row["precision"] not in precisions]


def _kept_search(path: Path) -> dict[str, Any]:
    """How mixed was found (export/mixing.py), which a new proof says nothing of."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        old = json.loads(path.read_text(encoding="utf-8"))
        return {name: old[name] for name in ("search",) if name in old}
    return {}


def check_sources(path: Path, checkpoint: Path | None, data: str) -> None:
    """Raise where `verify_bundle` would refuse its checkpoint or data, before work is done."""
    from export.proof.frames import open_labelled
    from export.proof.reference import expect_checkpoint

    manifest = Bundle.open(path, allow_unverified=True).manifest
    expect_checkpoint(manifest, _find_checkpoint(path, manifest, checkpoint))
    open_labelled(manifest, data, "val")


def _find_checkpoint(path: Path, manifest: Manifest, checkpoint: Path | None) -> Path:
    from export.bundling import ExportOptions, find_checkpoint

    model, variant = manifest.model, manifest.variant
    options = ExportOptions(
        model=model, variant=variant, checkpoint=checkpoint, size_hw=None, out=path
    )
    return find_checkpoint(options)


def verify_artifact(
    bundle: Bundle, precision: str, backend: str, reference: Any, max_ap_drop: float
) -> dict[str, Any]:
    """One precision on one backend: parity and AP, with a verdict and its reasons."""
    from export.proof.files import find_file_fault
    from runtime.contract.errors import SessionError
    from runtime.sessions import BACKENDS as SESSIONS
    from runtime.sessions import open_session, why_absent

    artifact: dict[str, Any] = {"precision": precision, "backend": backend}
    entry = next(e for e in SESSIONS if e.name == backend and not e.needs_gpu)
    absence = why_absent(entry)
    if absence:  # what is wrong with the whole bundle is wrong on a backend that is not here, too
        verdict = "fail" if reference.faults else "not run"
        return artifact | {"verdict": verdict, "reasons": [*reference.faults, absence]}
    fault = find_file_fault(bundle, precision)
    if fault:
        return artifact | {"verdict": "fail", "reasons": [*reference.faults, fault]}
    options = {"device": "cpu"} if backend == "onnxruntime" else {}
    try:
        session = open_session(bundle, backend, precision, **options)
    except SessionError as error:
        return artifact | {"verdict": "fail", "reasons": [*reference.faults, str(error)]}
    with contextlib.closing(session):
        return artifact | _examine(bundle, session, reference, max_ap_drop)


def _examine(
    bundle: Bundle, session: Session, reference: Any, max_ap_drop: float
) -> dict[str, Any]:
    """What a session finds, computes in and scores: figures, verdict and reasons."""
    from export.proof.auditing import audit_artifact
    from export.proof.clip_reference import OneGraph
    from export.proof.plugin import compare_plugin

    # What holds of a model for images holds of the key frames of one for video.
    entry = OneGraph(session, KEY) if bundle.manifest.state else session
    outputs = reference.run(entry)
    comparison = reference.compare(outputs)
    limits = limits_of(session.precision)
    figures = comparison.summary(limits.near)
    found: dict[str, Any] = {"audit": audit_artifact(bundle, session)}
    reasons = [
        *reference.faults,
        *judge(figures, limits),
        *found["audit"]["reasons"],
        *reference.probe(entry),
    ]
    if session.backend == "onnxruntime":
        reasons += compare_plugin(bundle, session.precision, reference.few())
    sheet = bundle.folder / f"verify.{session.precision}.{session.backend}.png"
    scores = reference.score(entry)
    if reference.clips is not None:
        found["clips"], clip_reasons = reference.clips.examine(session, sheet)
        reasons += clip_reasons
        scores |= reference.clips.score(session)
    found |= scores
    for name, expected in reference.all_scores.items():
        if expected - scores[name] > max_ap_drop:
            reasons.append(f"{name} {scores[name]:.4f}; the checkpoint has {expected:.4f}")
    if len(reasons) > len(reference.faults):
        reasons.extend(reference.explain(bundle, session.precision))
    if reasons or comparison.unmatched:
        found["worst_frames"] = reference.draw(sheet, outputs)
    verdict = "fail" if reasons else "pass"
    if not reasons and not comparison.num_matched and not comparison.unmatched:
        verdict, reasons = "not run", [NOTHING_FOUND]
    worst = sorted(comparison.unmatched, key=lambda u: -u.margin)[:10]
    listed = [{name: _plain(getattr(u, name)) for name in u.__dataclass_fields__} for u in worst]
    return found | figures | {"verdict": verdict, "reasons": reasons, "worst": listed}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def print_table(document: dict[str, Any]) -> None:
    """The verdicts, a line each, with whatever figures the task's comparison has."""
    floor, rows = document["score_threshold"], document["artifacts"]
    known = {name: value for name, value in document.items() if name.endswith("_checkpoint")}
    shown = [
        f"; {name.removesuffix('_checkpoint')} of the checkpoint {value:.4f}"
        for name, value in known.items()
        if value is not None
    ]
    print(f"verified on {document['images']} frames of {document['data']}{''.join(shown)}")
    if floor is not None:
        print(f"PyTorch finds nothing at the default thresholds; compared at scores above {floor}")
    names = dict.fromkeys(
        name for row in rows for name in row if name != "AP" and _is_figure(row[name])
    )
    heads = {name: name.replace("_error", "").replace("_", " ") for name in [*names, "AP"]}
    print(" ".join([f"{'artifact':18}", *(f"{head:>9}" for head in heads.values())]))
    for row in rows:
        name = f"{row['precision']} {row['backend']}"
        if names.keys() & row.keys():
            cells = [f"{_shown(row.get(key)):>{max(9, len(heads[key]))}}" for key in heads]
            print(" ".join([f"{name:18}", *cells, "", row["verdict"]]))
            if "clips" in row:
                figures = [
                    f"{key.replace('_', ' ')} {_shown(value)}"
                    for key, value in row["clips"].items()
                ]
                print(f"  clips: {', '.join(figures)}")
        else:
            print(f"{name:18} {row['verdict']}")
        for reason in row["reasons"]:
            print(f"  {reason}")


def _shown_figures(figures: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_shown(each)}" for key, each in figures.items())


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return (
        str(value) if isinstance(value, int) else f"{value:.2g}" if value < 1e-3 else f"{value:.4f}"
    )


def main() -> int:
    """Verify; exit status 1 where the verdict is "fail", or nothing could be proven."""
    parser = ScriptParser(__doc__, statuses={1: 'the verdict is "fail"'})
    parser.add_argument("bundle", type=Path, help="its folder")
    parser.add_argument("--checkpoint", type=Path, help="default: the one shipped in weights/")
    parser.add_argument("--data", default="street", help="street, or a COCO, VOC or YOLO folder")
    parser.add_argument(
        "--verify", choices=("quick", "full"), default="quick", help="how many images"
    )
    parser.add_argument("--images", type=int, help=f"quick: {QUICK_IMAGES}; full: the whole split")
    parser.add_argument(
        "--max-ap-drop", type=float, default=MAX_AP_DROP, help="of 0..1; else: fail"
    )
    args = parser.parse_args()
    if args.images is None and args.verify == "quick":
        args.images = QUICK_IMAGES
    if args.images is not None and args.images < 1:
        raise KestrelError(f"--images {args.images} is not positive. Give a number above 0.")
    check_ap_drop(args.max_ap_drop)
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
