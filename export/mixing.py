"""Adding mixed to a bundle that stands: int8 as far as a budget of AP allows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx

from export.adding import (
    GRAPH,
    MIXED,
    PLOT_NAME,
    expect_same,
    find_calibrations,
    float_graph,
    write_added,
)
from export.placing import replacing_folder
from export.precision.int8.calibration import CALIBRATION_NAME, Calibration
from export.precision.mixed import Assignment
from export.precision.search.choosing import Choice, choose, find_drop
from export.precision.search.grouping import Group, group_products
from export.precision.search.measuring import LATENCY_RUNS, PROXY_FRAMES, Measuring
from export.precision.search.progress import Progress, SearchState, TimeUp
from export.precision.search.scoring import LabelledFrames, scoring_backend
from export.proof.search_plot import draw_search
from runtime.contract.bundle import VERIFY_NAME, VERIFY_SCHEMA, Bundle
from runtime.contract.errors import BundleError, KestrelError, one_line
from runtime.contract.files import write_json
from runtime.contract.manifest import Manifest
from training.data import DataError
from training.models import model_class
from training.models.base import TemporalModel

SEARCH_IMAGES = 500
COST = "macs"  # what makes one choice faster than another

Report = Callable[[str], None]
Document = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search.

    Attributes:
        budget: how far AP (0..1) may fall on the frames of the search.
        data: labelled frames; searched on its validation split, reported on its test split.
        num_images: frames of each at most.
        minutes: None: as long as it takes.
        state: file that keeps what was measured; None is `BUNDLE.search.json` beside the bundle.
    """

    budget: float
    data: str
    num_images: int = SEARCH_IMAGES
    minutes: float | None = None
    state: Path | None = None

    def check(self) -> None:
        """Raise KestrelError where a number is none of its kind."""
        if not 0 <= self.budget <= 1:
            raise KestrelError(f"--ap-budget {self.budget} is no share. Give 0 to 1.")
        if self.num_images < 1:
            raise KestrelError(f"--search-images {self.num_images} is too few. Give 1 or more.")
        if self.minutes is not None and not self.minutes > 0:
            raise KestrelError(f"--search-minutes {self.minutes} is no time. Give more than 0.")


def add_mixed(
    path: Path,
    options: SearchOptions,
    *,
    data: str = "",
    count: int,
    method: str | None = None,
    stored: Path | None = None,
    heads: str | None = None,
    report: Report,
) -> Choice:
    """Search, then write int8 and mixed beside what a bundle holds; the search is in verify.json.

    Args:
        path: the bundle's folder; untouched until the search is done.
        options: of the search.
        data, count, method, stored, heads: of int8's ranges, as of `add_int8`.
        report: told each step, for the screen.

    Raises:
        BundleError, DataError, KestrelError: as of `add_int8` and LabelledFrames.
        KeyboardInterrupt: stopped; what was measured is kept, the bundle is as it was.
    """
    options.check()
    bundle = Bundle.open(path, allow_unverified=True)
    base, manifest = float_graph(bundle), bundle.manifest
    frames = LabelledFrames(options.data, "val", manifest, options.num_images)
    calibrations = find_calibrations(
        manifest,
        {GRAPH: base},
        data=data,
        count=count,
        method=method,
        stored=stored,
        heads=heads,
        report=report,
    )
    search = _Search(base, manifest, calibrations[GRAPH], frames, options, path, report)
    choice, document = search.run()
    with replacing_folder(path, report) as folder:
        expect_same(path, manifest)
        assignment = search.assign(choice.floats)
        write_added(manifest, {GRAPH: base}, calibrations, path, folder, assignment)
        _write_search(folder / VERIFY_NAME, document)
        draw_search(document, folder / PLOT_NAME)
    report(f"int8 and mixed added to {path}; the search is drawn in {PLOT_NAME}")
    return choice


def refuse_temporal(name: str) -> None:
    """Raise KestrelError where a registered model has several graphs, which are not searched."""
    if issubclass(model_class(name), TemporalModel):
        raise KestrelError(
            f"--ap-budget: {name} has several graphs; {MIXED} is searched on one. Leave it out: "
            "int8 works with several."
        )


def add_mixed_by_stored(path: Path, options: SearchOptions, *, report: Report) -> Choice:
    """As `add_mixed`, with the ranges of the int8 that the bundle has."""
    stored = path / CALIBRATION_NAME
    return add_mixed(path, options, count=0, stored=stored, report=report)


class _Search:
    """One search, and what is said of it."""

    def __init__(
        self,
        base: onnx.ModelProto,
        manifest: Manifest,
        calibration: Calibration,
        frames: LabelledFrames,
        options: SearchOptions,
        path: Path,
        report: Report,
    ) -> None:
        self._base, self._manifest = base, manifest
        self._calibration, self._frames = calibration, frames
        self._options, self._report = options, report
        self._groups = group_products(base, quantise_heads=calibration.heads == "int8")
        if not self._groups:
            raise BundleError(f"{path} has no product that could be int8: there is no choice.")
        self._products = {group.name: group.products for group in self._groups}
        self._state = SearchState(
            options.state or path.resolve().with_name(f"{path.resolve().name}.search.json"),
            _key(manifest, calibration, self._groups, frames),
        )
        if self._state.is_other:
            report(f"{self._state.path} is of another search; it is begun anew")
        elif self._state.num_found:
            report(f"{self._state.num_found} measurements taken from {self._state.path}")

    def assign(self, floats: Iterable[str]) -> Assignment:
        """The assignment with some groups in float."""
        nodes = [name for group in floats for name in self._products[group]]
        return Assignment(calibration=self._calibration, float_nodes=tuple(sorted(nodes)))

    def run(self) -> tuple[Choice, Document]:
        """Search, score the result on other frames, and give the record of both."""
        num_groups = len(self._groups)
        num_trials = 2 + math.ceil(math.log2(num_groups + 1))
        total = len(self._frames) * (num_trials + 3) + num_groups * PROXY_FRAMES
        progress = Progress(total, self._options.minutes)
        measuring = Measuring(
            self._base,
            self._manifest,
            self._groups,
            self.assign,
            self._frames,
            self._state,
            progress,
        )
        try:
            choice = choose(
                self._groups, self._options.budget, score=measuring.score, error=measuring.error
            )
            choices = {"float": [*self._products], "int8": [], MIXED: [*choice.floats]}
            reported = self._report_scores(measuring, choices)
            latencies_ms = measuring.latencies_ms(choices)
        except KeyboardInterrupt:
            self._report(f"stopped; measurements are kept in {self._state.path}: search again")
            raise
        finally:
            progress.close()
        document = self._describe(choice) | reported
        document["latency_ms"] = {name: round(each, 3) for name, each in latencies_ms.items()}
        self._report(document["conclusion"])
        for key in ("searched_on", "reported_on"):
            self._report(_show_scores(document[key]))
        return choice, document

    def _report_scores(self, measuring: Measuring, choices: dict[str, list[str]]) -> Document:
        """Scores on frames that nothing was chosen by."""
        frames, note = self._frames, "no test split: these are the frames that were searched on"
        try:
            options = self._options
            frames = LabelledFrames(options.data, "test", self._manifest, options.num_images)
            note = "no frame of these was calibrated or searched on"
        except (DataError, KestrelError) as error:  # none there, or nothing on it
            self._report(one_line(error))
        scores: dict[str, Any] = {}
        try:
            for name, floats in choices.items():
                scores[name] = measuring.score(floats, frames)
        except TimeUp:
            note += "; time was up before all were scored"
        described = _describe_frames(frames) | {"note": note, "scores": scores}
        return {"reported_on": described}

    def _describe(self, choice: Choice) -> Document:
        total = sum(group.macs for group in self._groups)
        places = {name: place for place, name in enumerate(choice.order)}
        rows = sorted(self._groups, key=lambda group: places.get(group.name, 0))
        num_groups = len(self._groups)
        reference = choice.trials.get(num_groups, {})
        floats = {*choice.floats}
        return {
            "budget": self._options.budget,
            "cost": COST,
            "backend": scoring_backend(),
            "calibrated_on": {
                "data": self._calibration.data,
                "images": self._calibration.num_images,
                "images_sha256": self._calibration.images_sha256,
            },
            "searched_on": _describe_frames(self._frames)
            | {
                "scores": {
                    name: scores
                    for name, place in (("float", num_groups), ("int8", 0))
                    if (scores := choice.trials.get(place))
                }
                | ({MIXED: choice.scores} if choice.scores else {}),
            },
            "groups": [
                {
                    "name": group.name,
                    "products": list(group.products),
                    "macs_share": round(group.macs / max(1, total), 6),
                    "error": choice.errors.get(group.name),
                    "precision": "float" if group.name in floats else "int8",
                }
                for group in rows
            ],
            "trials": [
                {"num_float": place, "scores": scores, "drop": find_drop(reference, scores)}
                for place, scores in sorted(choice.trials.items())
            ],
            "is_complete": choice.is_complete,
            "conclusion": self._conclude(choice),
            "latency_of": f"one frame on {scoring_backend()} here, median of {LATENCY_RUNS}; "
            "float groups are float32 there",
        }

    def _conclude(self, choice: Choice) -> str:
        num_groups, budget = len(self._groups), self._options.budget
        macs = {group.name: group.macs for group in self._groups}
        kept = sum(macs.values()) - sum(macs[name] for name in choice.floats)
        share = kept / max(1, sum(macs.values()))
        until = "" if choice.is_complete else "time was up before the search was done: "
        if not choice.floats:
            return f"{until}int8 throughout is within the budget of {budget}: no group is float"
        if len(choice.floats) == num_groups:
            found = "is" if choice.is_complete else "was found to be"
            return (
                f"{until}no group {found} int8 within the budget of {budget}; mixed is fp16 "
                "throughout"
            )
        drop = find_drop(choice.trials[num_groups], choice.scores)
        return (
            f"{until}{len(choice.floats)} of {num_groups} groups are float, int8 has {share:.1%} "
            f"of the multiply-adds that it could have; the drop is {drop:.4f} of {budget}"
        )


def _show_scores(described: Document) -> str:
    named = [
        f"{score} {name} {value:.4f}"
        for name, scores in described["scores"].items()
        for score, value in scores.items()
    ]
    return f"{described['images']} frames of {described['data']} {described['split']}: " + (
        ", ".join(named) or "not scored"
    )


def _describe_frames(frames: LabelledFrames) -> Document:
    return {"data": frames.data, "split": frames.split, "images": len(frames)}


def _key(
    manifest: Manifest, calibration: Calibration, groups: Sequence[Group], frames: LabelledFrames
) -> Document:
    """What measurements hold for."""
    ranges = json.dumps(dataclasses.asdict(calibration), sort_keys=True)
    products = json.dumps([dataclasses.asdict(group) for group in groups])
    return {
        "checkpoint_sha256": manifest.training.get("checkpoint_sha256", ""),
        "network_sha256": calibration.network_sha256,
        "calibration_sha256": hashlib.sha256(ranges.encode()).hexdigest(),
        "groups_sha256": hashlib.sha256(products.encode()).hexdigest(),
        "frames": _describe_frames(frames),
        "frames_sha256": frames.sha256,
        "backend": scoring_backend(),
    }


def _write_search(path: Path, document: Document) -> None:
    """Put the search into verify.json, beside what was proven."""
    known: Document = {"schema": VERIFY_SCHEMA, "artifacts": []}
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, known | {"search": document})
