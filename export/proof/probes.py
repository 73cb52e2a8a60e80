"""Probes for faults that parity on default settings cannot see.

Each gives the reasons, in words, for which an artifact fails; an empty list is a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.contract.joint_matching import TOLD
from runtime.contract.limits import judge, limits_of
from runtime.contract.manifest import Joints, Manifest
from runtime.contract.matching import Comparison, Rows, compare_detections, pairwise_iou
from runtime.contract.outputs import TensorSpec
from runtime.contract.samples import Samples
from runtime.preprocess import Letterbox
from runtime.sessions.base import Session
from training.data.sample import Sample
from training.models.base import KeypointSpec, Spec
from training.tasks.detection import fit_input

SAME_SCORE = 1e-4  # between runs of one graph at other thresholds or batches
SAME_BOX_PX = 0.05
SAME_JOINT_PX, SAME_JOINTS = 0.1, 0.98  # distance, and the share of joints that keep it
STRICT_IOU = 0.2


def probe_manifest(manifest: Manifest, spec: Spec) -> list[str]:
    """Names, ids and defaults of the manifest against the checkpoint's."""
    pairs = {
        "classes": (manifest.classes, spec.classes),
        "category_ids": (manifest.category_ids, spec.category_ids),
        "max_detections": (manifest.max_detections, spec.max_detections),
        "num_candidates": (manifest.num_candidates, spec.num_candidates),
        "score_threshold": (manifest.defaults.score_threshold, spec.score_threshold),
        "iou_threshold": (manifest.defaults.iou_threshold, spec.iou_threshold),
        "colour": (manifest.geometry.colour, "bgr"),
        "joints": (manifest.joints, _joints_of(spec)),
        "crop_margin": (manifest.crop_margin, getattr(spec, "crop_margin", 0.0)),
    }
    return [
        f"manifest {name} is {found}; the checkpoint has {expected}"
        for name, (found, expected) in pairs.items()
        if found != expected
    ]


def _joints_of(spec: Spec) -> Joints | None:
    if not isinstance(spec, KeypointSpec):
        return None
    return Joints(spec.joints, spec.skeleton, spec.flip_pairs, spec.sigmas)


def probe_letterbox(manifest: Manifest, spec: Spec, samples: Sequence[Sample]) -> list[str]:
    """The manifest's geometry against the one the network was trained with, to the pixel."""
    geometry = manifest.geometry
    for sample in samples:
        trained = fit_input(sample, spec)
        fitted = Letterbox.fit(sample.image_hw, geometry)
        if not np.array_equal(trained.image, fitted.apply(sample.image)):
            return [f"the letterbox of {sample.file_name} differs from training's"]
        boxes = fitted.to_source(trained.boxes_xyxy)
        if len(boxes) and np.abs(boxes - sample.boxes_xyxy).max() > SAME_BOX_PX:
            return [f"the letterbox of {sample.file_name} does not map boxes back"]
    return []


def probe_sample_shapes(
    manifest: Manifest, samples: Samples, outputs: Sequence[TensorSpec] | None = None
) -> list[str]:
    """Types and shapes of samples.npz against the manifest's; `outputs` None are all of its."""
    sizes = manifest.sizes(len(samples))
    for spec in (*manifest.inputs, *(manifest.outputs if outputs is None else outputs)):
        array = samples.feeds.get(spec.name, samples.results.get(spec.name))
        found = "absent" if array is None else f"{array.dtype} {array.shape}"
        expected = f"{spec.dtype} {spec.resolved(sizes)}"
        if found != expected:
            return [f"the samples' {spec.name} is {found}; expected {expected}"]
    return []


def probe_samples(samples: Samples, results: Rows) -> list[str]:
    """The results in samples.npz, which engines are held against, against PyTorch's own."""
    comparison = Comparison()
    compare_detections(results, samples.results, samples.feeds, comparison)
    limits = limits_of("fp32")
    faults = judge(comparison.summary(limits.near), limits)
    return [f"the samples are not PyTorch's results: {fault}" for fault in faults]


def probe_thresholds(
    session: Session, manifest: Manifest, frames: NDArray[np.uint8], feeds: Rows
) -> list[str]:
    """Whether the thresholds act: raised, one class off, and a strict suppression.

    A task that takes none has nothing to probe, nor has suppression where there is none.

    Args:
        frames: (N, H, W, 3) with detections at the default thresholds.
        feeds: score_threshold (N, K) of the defaults, and iou_threshold (N,) if it is taken.
    """
    reasons: list[str] = []
    for index in range(len(frames) if feeds else 0):
        base = {name: value[index : index + 1].copy() for name, value in feeds.items()}
        base["image"] = frames[index : index + 1]
        rows = _rows(session.run(base))
        if len(rows["scores"]) < 3:
            continue
        reasons += _probe_score(session, base, rows)
        reasons += _probe_class(session, base, rows, manifest)
        if "iou_threshold" in base:
            reasons += _probe_iou(session, base)
        if reasons:
            return reasons
    return reasons


def _probe_score(session: Session, base: Rows, rows: Rows) -> list[str]:
    middle = float(np.sort(rows["scores"])[len(rows["scores"]) // 2])
    raised = np.full_like(base["score_threshold"], middle)
    found = _rows(session.run({**base, "score_threshold": raised}))
    if (found["scores"] <= middle - SAME_SCORE).any():
        return [f"score_threshold {middle:.3f} let a score of {found['scores'].min():.3f} pass"]
    expected = int((rows["scores"] > middle + SAME_SCORE).sum())
    if len(found["scores"]) < expected:
        return [f"score_threshold {middle:.3f} left {len(found['scores'])} of {expected} results"]
    return []


def _probe_class(session: Session, base: Rows, rows: Rows, manifest: Manifest) -> list[str]:
    label = int(np.bincount(rows["classes"]).argmax())
    limits = base["score_threshold"].copy()
    limits[:, label] = 1.1
    found = _rows(session.run({**base, "score_threshold": limits}))
    if (found["classes"] == label).any():
        return [f"class {manifest.classes[label]!r} was switched off and still came"]
    others = rows["classes"] != label
    if len(found["classes"]) < int(others.sum()):
        return [f"switching {manifest.classes[label]!r} off cost results of other classes"]
    return []


def _probe_iou(session: Session, base: Rows) -> list[str]:
    strict = np.full_like(base["iou_threshold"], STRICT_IOU)
    found = _rows(session.run({**base, "iou_threshold": strict}))
    overlap = pairwise_iou(found["boxes_xyxy"], found["boxes_xyxy"])
    same = found["classes"][:, None] == found["classes"][None]
    np.fill_diagonal(same, False)
    worst = float(np.where(same, overlap, 0).max(initial=0))
    if worst > STRICT_IOU + 1e-3:
        return [f"iou_threshold {STRICT_IOU} let two boxes of one class overlap by {worst:.3f}"]
    return []


def probe_batches(session: Session, manifest: Manifest, feeds: Rows) -> list[str]:
    """Whether a batch gives what its frames give alone, for every batch size of the manifest.

    Each frame has thresholds of its own, so that a graph that takes the first frame's shows.
    """
    feeds = _with_own_thresholds(_filled_up(feeds, max(manifest.batches)))
    for batch in manifest.batches:
        if batch == 1:
            continue
        together = session.run({name: value[:batch] for name, value in feeds.items()})
        for index in range(batch):
            alone = _rows(session.run({n: v[index : index + 1] for n, v in feeds.items()}))
            found = _rows({name: value[index : index + 1] for name, value in together.items()})
            if not _are_same(alone, found):
                return [
                    f"frame {index} of a batch of {batch}, each with thresholds of its own, "
                    "differs from the same frame alone"
                ]
    return []


def _filled_up(feeds: Rows, count: int) -> Rows:
    """At least `count` frames: where there are fewer, they come again mirrored, to differ."""
    num = len(feeds["image"])
    places = np.arange(max(num, count)) % num
    filled = {name: value[places].copy() for name, value in feeds.items()}
    for index in range(num, len(places)):
        turn = index // num
        frame = filled["image"][index]
        frame = frame[:, ::-1] if turn % 2 else frame
        filled["image"][index] = (frame[::-1] if turn // 2 % 2 else frame).copy()
    return filled


def _with_own_thresholds(feeds: Rows) -> Rows:
    """Of four frames the second has a strict suppression, the third every other class off."""
    if "score_threshold" not in feeds:
        return feeds
    own = {name: value if name == "image" else value.copy() for name, value in feeds.items()}
    own["score_threshold"][2::4, ::2] = 1.1
    if "iou_threshold" in own:
        own["iou_threshold"][1::4] = STRICT_IOU
    return own


def _rows(outputs: dict[str, Any]) -> Rows:
    if "num_detections" not in outputs:
        return {name: value[0] for name, value in outputs.items()}
    count = int(outputs["num_detections"][0])
    names = ("boxes_xyxy", "scores", "classes", "keypoints_xyc")
    return {name: outputs[name][0][:count] for name in names if name in outputs}


def _are_same(ours: Rows, theirs: Rows) -> bool:
    """Equal but for rounding; a result within it of a threshold may be missing."""
    if "scores" not in ours:
        return _are_same_joints(ours["keypoints_xyc"], theirs["keypoints_xyc"])
    if abs(len(ours["scores"]) - len(theirs["scores"])) > 1:
        return False
    if len(ours["scores"]) != len(theirs["scores"]):
        return True
    order = [np.lexsort((r["boxes_xyxy"][:, 0], r["classes"])) for r in (ours, theirs)]
    boxes = [r["boxes_xyxy"][o] for r, o in zip((ours, theirs), order, strict=True)]
    scores = [r["scores"][o] for r, o in zip((ours, theirs), order, strict=True)]
    if "keypoints_xyc" in ours:
        joints = [r["keypoints_xyc"][o] for r, o in zip((ours, theirs), order, strict=True)]
        if not _are_same_joints(*joints):
            return False
    return bool(
        np.allclose(boxes[0], boxes[1], atol=SAME_BOX_PX, rtol=0)
        and np.allclose(scores[0], scores[1], atol=1e-3, rtol=0)
    )


def _are_same_joints(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """Equal but for rounding; of two equal peaks of a heatmap a joint may be at either."""
    is_told = ours[..., 2] >= TOLD
    gaps = np.abs(ours.astype(np.float64) - theirs)[is_told]
    is_same = (gaps <= (SAME_JOINT_PX, SAME_JOINT_PX, 1e-2)).all(axis=-1)
    return bool(is_same.size == 0 or is_same.mean() >= SAME_JOINTS)
