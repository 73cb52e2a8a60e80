"""An engine proves itself on the device it runs on: against PyTorch's results in samples.npz.

That takes about a second, once: the verdict is kept in the engine's JSON, with the device, the
TensorRT and the samples that it was given for. Where one of these is another, it is given anew.
What the engine's layers compute in is looked at, too: what was asked for and not built is a fail.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from runtime.contract.bundle import Bundle, Verdict, hash_file
from runtime.contract.errors import EngineError
from runtime.contract.limits import judge, limits_of
from runtime.contract.matching import Comparison, compare_detections
from runtime.contract.outputs import KEY, NONKEY
from runtime.contract.samples import SAMPLES_NAME, Samples
from runtime.engines.audit import Audit
from runtime.engines.cache import EngineFile, record_verdict
from runtime.sessions.base import Session

CHECKED_TASKS = ("detection", "instance", "keypoints", "pose_crop", "panoptic")

log = logging.getLogger("kestrel.engines")


class EngineSession(Session, Protocol):
    """A session whose graphs are engines."""

    @property
    def toolkit(self) -> str:
        """Which TensorRT loaded them, with its version."""
        ...

    def audit(self, graph: str = "model") -> Audit:
        """What an engine's layers compute in; types are known after a first inference."""
        ...


def check_engines(session: EngineSession, bundle: Bundle, engines: dict[str, EngineFile]) -> None:
    """Run the samples through every engine that has not passed here yet, and keep the verdicts.

    Args:
        session: that has the engines loaded.
        bundle: where the samples lie.
        engines: graph name to its engine; entries are replaced by those with the new verdict.

    Raises:
        EngineError: an engine disagrees with PyTorch or computes in another precision than was
            asked for, and the bundle does not allow that.
    """
    for graph, built in list(engines.items()):
        samples = bundle.samples(graph) if bundle.manifest.task in CHECKED_TASKS else None
        keys = bundle.samples(KEY) if graph == NONKEY else None
        if not samples or (graph == NONKEY and not keys):
            log.warning("engine of graph %r: not checked, the bundle has no samples for it", graph)
            continue
        given_for = {
            "device": session.device,
            "toolkit": session.toolkit,
            "samples_sha256": hash_file(bundle.folder / SAMPLES_NAME),
        }
        if built.verdict == "pass" and given_for.items() <= built.record["check"].items():
            continue
        reasons = [
            f"it disagrees with PyTorch: {fault}"
            for fault in find_faults(session, graph, samples, keys)
        ]
        audit = session.audit(graph)
        reasons += audit.reasons if audit.verdict == "fail" else ()
        verdict: Verdict = "fail" if reasons else "pass"
        found = {**given_for, "reasons": reasons, "audit": audit.to_json()}
        engines[graph] = record_verdict(built, verdict, found)
        if reasons and not bundle.allow_unverified:
            raise EngineError(
                f"the {session.precision} engine of graph {graph!r} fails its check on "
                f"{session.device}: {'; '.join(reasons)}. Use another precision or backend, or "
                "load it all the same with --allow-unverified."
            )


def find_faults(
    session: Session, graph: str, samples: Samples, keys: Samples | None = None
) -> list[str]:
    """Why a session's detections differ too much from the samples'; empty where they do not.

    Args:
        keys: of a graph that takes state, the samples that leave it; each is run before those that
            lean on it.
    """
    comparison = Comparison()
    num_each = len(samples) // len(keys) if keys else 0
    for index in range(len(samples)):
        if keys and index % num_each == 0:
            session.run(_row(keys.feeds, index // num_each), KEY)
        feeds = _row(samples.feeds, index)
        expected = _row(samples.results, index)
        compare_detections(expected, session.run(feeds, graph), feeds, comparison, index)
    limits = limits_of(session.precision)
    figures: dict[str, Any] = comparison.summary(limits.near)
    # Sixteen frames hold some hundred results: one at a threshold must not fail an engine.
    allowed = max(limits.unmatched, 1.5 / max(1, figures["matched"]))
    if figures["unexplained"] == 0 and figures["unmatched"] <= allowed * figures["matched"]:
        figures["unmatched"] = 0
    return judge(figures, limits)


def _row(arrays: dict[str, Any], index: int) -> dict[str, Any]:
    return {name: array[index : index + 1] for name, array in arrays.items()}
