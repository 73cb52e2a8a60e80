"""The manifest: what a bundle is, what its graphs take and give, and what it scored.

`Manifest` is read by the runtime and written by the export; its JSON has the same field names.
`EXPECTED` in `runtime/engines/audit.py` says what a precision means on each backend.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

from runtime.contract.errors import ManifestError
from runtime.contract.outputs import CHANGE, KEY, NONKEY, TASKS, TensorSpec

SCHEMA = 1
MANIFEST_NAME = "manifest.json"
METADATA_KEY = "kestrel.manifest"  # the manifest's place in an ONNX file's metadata_props
PRECISIONS = ("fp32", "fp16", "int8", "mixed")
DTYPES = ("uint8", "int8", "int32", "int64", "float16", "float32", "bool")  # of inputs and outputs
_MOST_SHOWN = 120  # characters of a wrong value


@dataclass(frozen=True, slots=True)
class InputGeometry:
    """How a frame becomes the network's input (`runtime/preprocess.py` is the definition).

    Attributes:
        height, width: of the network input, in pixels.
        dtype: always uint8.
        colour: order of the channels the graph takes; always bgr.
        resize: "letterbox" keeps the aspect and pads; "stretch" does not.
        interpolation: "linear", as OpenCV's INTER_LINEAR.
        alignment: "centre" pads both sides, "top_left" pads right and bottom.
        pad_value: 0..255, for every channel.
    """

    height: int
    width: int
    dtype: str = "uint8"
    colour: str = "bgr"
    resize: str = "letterbox"
    interpolation: str = "linear"
    alignment: str = "centre"
    pad_value: int = 114


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph of a bundle: its files and their hashes.

    Attributes:
        files: precision -> file name, e.g. {"fp32": "model.fp32.onnx"}.
        plugin_files: precision -> the same graph with KestrelSelect and KestrelNms as nodes.
        cpu_files: precision -> a file for CPUs only (int8 with uint8 activations).
        sha256: file name -> hexadecimal hash, external data files included.
    """

    files: dict[str, str]
    plugin_files: dict[str, str] = field(default_factory=dict)
    cpu_files: dict[str, str] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Defaults:
    """Thresholds where the caller gives none: 0..1; a score must exceed its own."""

    score_threshold: float = 0.3
    iou_threshold: float = 0.5


@dataclass(frozen=True, slots=True)
class Joints:
    """Names, skeleton (pairs of joint indices), left-right pairs and COCO sigmas."""

    names: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle is. Field names are the keys of manifest.json.

    Attributes:
        schema: of this file; a runtime reads up to its own SCHEMA.
        model, variant: names for people; nothing branches on them.
        task: one of runtime.contract.outputs.TASKS; this is what code branches on.
        classes: names by index. category_ids: the data set's own ids, gaps allowed.
        inputs, outputs: what a caller feeds and gets; see `outputs_of_graph`.
        geometry: the network input.
        graphs: "model", or "key" and "nonkey".
        batches: batch sizes that sessions specialise to.
        state: of temporal models, an output of graph "key" -> the input of "nonkey" that it feeds.
        precisions: those that the graphs hold files for.
        max_detections: M. num_candidates: T, rows that enter suppression.
        mask_hw: h and w of masks; empty where the task has none.
        joints: of tasks with joints. crop_margin: of bundles that take crops, sides of the crop
            over those of the box that it is made for (`runtime/crops.py`); else 0.
        calibration: {images_sha256, method} or empty.
        training: {data, checkpoint_sha256, ...}.
        scores: {"street val AP": 0.5, ...}. created: ISO 8601. version: of Kestrel.
    """

    schema: int
    model: str
    variant: str
    task: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    geometry: InputGeometry
    graphs: dict[str, Graph]
    precisions: tuple[str, ...]
    batches: tuple[int, ...] = (1, 4)
    state: dict[str, str] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)
    max_detections: int = 100
    num_candidates: int = 300
    mask_hw: tuple[int, ...] = ()
    joints: Joints | None = None
    crop_margin: float = 0.0
    calibration: dict[str, str] = field(default_factory=dict)
    training: dict[str, str] = field(default_factory=dict)
    licence: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    created: str = ""
    version: str = ""

    def sizes(self, batch: int) -> dict[str, int]:
        """The letters of `runtime.contract.outputs` in numbers, for one batch size."""
        sizes = {
            "B": batch,
            "H": self.geometry.height,
            "W": self.geometry.width,
            "K": len(self.classes),
            "M": self.max_detections,
            "T": self.num_candidates,
        }
        if self.mask_hw:
            sizes["h"], sizes["w"] = self.mask_hw
        if self.joints is not None:
            sizes["J"] = len(self.joints.names)
        return sizes

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The constants of the joints, of tasks with joints."""
        return () if self.joints is None else self.joints.sigmas

    def outputs_of_graph(self, graph: str) -> tuple[TensorSpec, ...]:
        """What a caller gets of one graph: only "nonkey" says how far a frame has moved."""
        return tuple(spec for spec in self.outputs if graph == NONKEY or spec != CHANGE)

    def to_json(self, *, is_complete: bool = True) -> str:
        """The manifest as JSON; the copy inside an ONNX file leaves out hashes and scores."""
        document = dataclasses.asdict(self)
        if not is_complete:
            document.pop("scores")
            document["graphs"] = {
                name: {**graph, "sha256": {}} for name, graph in document["graphs"].items()
            }
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, origin: str) -> Manifest:
        """Read and check a manifest; `origin` names it in errors.

        Raises:
            ManifestError: not JSON, a newer schema, a missing, unknown or wrong field.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ManifestError(
                f"{origin} is not JSON ({error}); expected a bundle's manifest. Export again."
            ) from None
        if not isinstance(document, dict):
            raise ManifestError(f"{origin} holds no JSON object. Export the bundle again.")
        schema = document.get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise ManifestError(
                f"{origin} has manifest schema {schema!r}; expected 1 to {SCHEMA}. Export again."
            )
        if schema > SCHEMA:
            raise ManifestError(
                f"{origin} has manifest schema {schema}; this runtime reads up to {SCHEMA}. "
                "Upgrade the runtime, or export again with this version."
            )
        manifest: Manifest = _build(cls, document, origin, "")
        manifest.check(origin)
        return manifest

    @classmethod
    def from_file(cls, path: Path) -> Manifest:
        """Read manifest.json."""
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ManifestError(f"{path} is not UTF-8 text. Export the bundle again.") from None
        return cls.from_json(text, origin=str(path))

    def check(self, origin: str) -> None:
        """Raise ManifestError where fields contradict each other."""
        problems = (
            (self.task not in TASKS, f"task {self.task!r}; expected one of {', '.join(TASKS)}"),
            (not self.classes, "no classes; expected at least one name"),
            (
                len(self.category_ids) != len(self.classes),
                f"{len(self.category_ids)} category_ids for {len(self.classes)} classes",
            ),
            (
                self.geometry.height < 1 or self.geometry.width < 1,
                f"input size {self.geometry.width}x{self.geometry.height}",
            ),
            (
                self.geometry.resize not in ("letterbox", "stretch"),
                f"resize {self.geometry.resize!r}; expected letterbox or stretch",
            ),
            (
                self.geometry.alignment not in ("centre", "top_left"),
                f"alignment {self.geometry.alignment!r}; expected centre or top_left",
            ),
            (
                (self.geometry.dtype, self.geometry.colour, self.geometry.interpolation)
                != ("uint8", "bgr", "linear"),
                f"input {self.geometry.dtype} {self.geometry.colour}, resized "
                f"{self.geometry.interpolation}; expected uint8 bgr, resized linear",
            ),
            (
                not 0 <= self.geometry.pad_value <= 255,
                f"pad_value {self.geometry.pad_value}; expected 0 to 255",
            ),
            (not self.graphs, "no graphs; expected at least 'model'"),
            (
                NONKEY in self.graphs and (KEY not in self.graphs or not self.state),
                f"the graphs {', '.join(self.graphs)} and {len(self.state)} states; expected "
                "'key' beside 'nonkey', and what is passed between them",
            ),
            (
                not self.batches or min(self.batches) < 1,
                f"batches {self.batches}; expected positive sizes",
            ),
            (self.max_detections < 1, f"max_detections {self.max_detections}; expected 1 or more"),
            (
                any("h" in spec.shape for spec in self.outputs)
                and (len(self.mask_hw) != 2 or min(self.mask_hw) < 1),
                f"mask_hw {list(self.mask_hw)}; expected height and width of the masks",
            ),
            *self._check_joints(),
            *self._check_defaults(),
        )
        for is_wrong, what in problems:
            if is_wrong:
                raise ManifestError(f"{origin} has {what}. Export the bundle again.")
        self._check_files(origin)

    def _check_joints(self) -> list[tuple[bool, str]]:
        has_joints = any("J" in spec.shape for spec in self.outputs)
        takes_crops = self.task == "pose_crop"
        known = self.joints or Joints(())
        num = len(known.names)
        places = [place for pair in (*known.skeleton, *known.flip_pairs) for place in pair]
        return [
            (has_joints and num < 1, "no joints; expected their names"),
            (
                any(not 0 <= place < num for place in places),
                f"limbs or pairs of joints beyond the {num} that have names",
            ),
            (
                len(known.sigmas) not in (0, num) or min(known.sigmas, default=1.0) <= 0,
                f"{len(known.sigmas)} sigmas for {num} joints; expected one above 0 for each",
            ),
            (
                takes_crops and not self.crop_margin >= 1,
                f"crop_margin {self.crop_margin}; expected 1 or more",
            ),
        ]

    def _check_defaults(self) -> list[tuple[bool, str]]:
        given = dataclasses.asdict(self.defaults).items()
        return [(not 0 <= v <= 1, f"default {name} {v}; expected 0 to 1") for name, v in given]

    def _check_files(self, origin: str) -> None:
        for spec in (*self.inputs, *self.outputs):
            if spec.dtype not in DTYPES:
                raise ManifestError(
                    f"{origin}: {spec.name!r} has type {spec.dtype!r}; expected one of "
                    f"{', '.join(DTYPES)}. Export again."
                )
        for name, graph in self.graphs.items():
            absent = [p for p in self.precisions if p not in graph.files]
            if absent:
                raise ManifestError(
                    f"{origin}: graph {name!r} has no file for {', '.join(absent)}. Export again."
                )
            files = (*graph.files.values(), *graph.plugin_files.values(), *graph.cpu_files.values())
            outside = [file for file in files if Path(file).name != file]
            if outside:
                raise ManifestError(
                    f"{origin} names {outside[0]!r}; expected a file's name without a folder. "
                    "Export again."
                )


def _build(kind: type, document: object, origin: str, where: str) -> Any:
    """Make a dataclass of JSON; a missing, unknown or wrong key is an error that names it."""
    if not isinstance(document, dict):
        raise ManifestError(f"{origin}: {where or 'manifest'} is no JSON object. Export again.")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in document:
        if key not in fields:
            near = difflib.get_close_matches(str(key), list(fields), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ManifestError(f"{origin} has unknown field {where}{key!r}{hint} Export again.")
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, definition in fields.items():
        if name not in document:
            is_required = (
                definition.default is dataclasses.MISSING
                and definition.default_factory is dataclasses.MISSING
            )
            if is_required:
                raise ManifestError(f"{origin} lacks field {where}{name!r}. Export again.")
            continue
        try:
            values[name] = _read_value(hints[name], document[name], origin, f"{where}{name}.")
        except TypeError:
            found = repr(document[name])
            shown = found if len(found) <= _MOST_SHOWN else f"{found[:_MOST_SHOWN]}..."
            raise ManifestError(
                f"{origin} has a wrong value for {where}{name!r}: {shown}. Export again."
            ) from None
    return kind(**values)


def _read_value(hint: Any, value: Any, origin: str, where: str) -> Any:
    """A JSON value as the type that a field has; TypeError where it is of another."""
    kind, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(cast("type", hint), value, origin, where)
    if kind is dict:
        items = _as(dict, value).items()
        return {key: _read_value(inner[1], item, origin, f"{where}{key}.") for key, item in items}
    if kind is tuple:
        many = _as(list, value)
        if inner[-1] is not Ellipsis and len(many) != len(inner):
            raise TypeError
        return tuple(_read_value(inner[0], item, origin, where) for item in many)
    if inner:  # one type or another, such as Joints | None, or str | int
        if value is None and type(None) in inner:
            return None
        known = [each for each in inner if each is not type(None)]
        if len(known) > 1:
            known = [each for each in known if _is_of(each, value)] or known
        return _read_value(known[0], value, origin, where)
    return _as(hint, value)


def _as(kind: type, value: Any) -> Any:
    if not _is_of(kind, value):
        raise TypeError
    return value


def _is_of(kind: type, value: Any) -> bool:
    """Whether JSON gave such a value; true and false are no numbers, and NaN is none either."""
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, kind)
