"""Writing a bundle: from a checkpoint to a folder of checked graphs, whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from export.graph.batch_norm import fold_batch_norms
from export.graph.end_to_end import (
    MODEL,
    end_to_end,
    inputs_of_model,
    outputs_of_model,
    state_of,
    trace,
    trace_frames,
)
from export.placing import check_target, replacing_folder
from export.precision.int8.calibration import (
    CALIBRATION_NAME,
    NUM_IMAGES,
    calibrate_graphs,
    summarise,
    write_calibrations,
)
from export.precision.int8.images import CalibrationFrames
from export.precision.int8.rewriting import to_int8
from export.precision.writing import CONVERSIONS, name_files, write_files
from export.proof.clips import clip_results, network_clips
from export.proof.frames import network_frames, opener_for
from export.tasks import task_module
from runtime.contract.errors import BundleError
from runtime.contract.manifest import (
    MANIFEST_NAME,
    SCHEMA,
    Defaults,
    Graph,
    InputGeometry,
    Manifest,
)
from runtime.contract.matching import Rows
from runtime.contract.outputs import INPUTS, KEY, NONKEY, SCORE_THRESHOLD, outputs_of
from runtime.contract.samples import SAMPLES_NAME, Samples, write_samples
from training.errors import TrainingError
from training.loop.checkpoint import file_sha256, load_release, shipped_checkpoint
from training.models import model_variant
from training.models.base import Model, Spec, TemporalModel

NUM_SAMPLES = 16
NUM_CLIPS, CLIP_LENGTH = 4, 4  # of the samples of a model for video
BATCHES = (1, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export.

    Attributes:
        model: a registered name. variant: None is the model's first.
        checkpoint: None is the one that the project ships.
        size_hw: None is the checkpoint's.
        out: the bundle's folder.
        data: frames for the samples: "street", or the path of a data set.
        precisions: keys of export.precision.writing.CONVERSIONS, and "int8".
        calibration_data: frames for int8, as of CalibrationFrames; None is the training split of
            `data`. calibration_images: how many.
    """

    model: str
    variant: str | None
    checkpoint: Path | None
    size_hw: tuple[int, int] | None
    out: Path
    data: str = "street"
    precisions: tuple[str, ...] = ("fp32", "fp16")
    calibration_data: str | None = None
    calibration_images: int = NUM_IMAGES


def find_checkpoint(options: ExportOptions) -> Path:
    """The checkpoint to export.

    Raises:
        BundleError: the project ships none for this variant.
    """
    variant = model_variant(options.model, options.variant)
    if options.checkpoint is not None:
        return options.checkpoint
    path = shipped_checkpoint(options.model, variant.spec.variant)
    if not path.is_file():
        raise BundleError(
            f"no checkpoint of {options.model} {variant.spec.variant} is shipped; expected "
            f"--checkpoint FILE. Train one: python training/train.py --model {options.model} "
            f"--variant {variant.spec.variant} --data PATH"
        )
    return path


def write_bundle(options: ExportOptions, report: Callable[[str], None]) -> Manifest:
    """Export a checkpoint; what stood at `options.out` is replaced only when all is done.

    Args:
        report: told each step, for the screen.

    Raises:
        BundleError, CheckpointError: see their messages.
    """
    check_target(options.out)
    path = find_checkpoint(options)
    model, header = load_release(path, options.model)
    if options.variant is not None and model.spec.variant != options.variant:
        raise BundleError(
            f"{path} is of variant {model.spec.variant!r}; expected {options.variant!r}. "
            "Leave --variant out, or give another --checkpoint."
        )
    if options.size_hw is not None:
        resize_input(model, options.size_hw)
    model.spec = with_fitting_candidates(model)
    report(f"checkpoint {path} ({', '.join(model.spec.classes)})")
    samples = make_samples(model, options.data)  # before tracing: bad data is told at once
    frames = _calibration_frames(model, options)
    with replacing_folder(options.out, report) as folder:
        manifest = _write_graphs(model, options, header, path, folder, frames)
        names = [name for graph in manifest.graphs.values() for name in graph.sha256]
        report(f"graphs {', '.join(names)}")
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        write_samples(folder / SAMPLES_NAME, samples)
        count = sum(len(each) for each in samples.values())
        report(f"samples: {count} frames with PyTorch's results")
    return manifest


def resize_input(model: Model, size_hw: tuple[int, int]) -> None:
    """Give a model another network input, after a trial run.

    Raises:
        BundleError: it cannot take that size.
    """
    model.spec = dataclasses.replace(model.spec, size_hw=size_hw)
    height, width = size_hw
    try:
        model.check_size()
        with torch.no_grad():
            blank = torch.zeros(1, 3, height, width)
            model.candidates(model(blank))
            if isinstance(model, TemporalModel):
                model.nonkey(blank, model.key(blank)[1])
    except (RuntimeError, TrainingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BundleError(
            f"--size {width}x{height} does not fit this network: {reason} "
            "Sides that are multiples of 64 fit every network that is not too small."
        ) from None


def with_fitting_candidates(model: Model) -> Spec:
    """The model's spec, with no more candidates than its head has (anchor, class) pairs."""
    if SCORE_THRESHOLD not in INPUTS[model.task]:  # nothing is selected
        return model.spec
    height, width = model.spec.size_hw
    with torch.no_grad():
        found = model.candidates(model(torch.zeros(1, 3, height, width)))
    num_pairs = found.logits.shape[1] * found.logits.shape[2]
    return dataclasses.replace(model.spec, num_candidates=min(model.spec.num_candidates, num_pairs))


def _calibration_frames(model: Model, options: ExportOptions) -> CalibrationFrames | None:
    if "int8" not in options.precisions:
        return None
    data = options.calibration_data or options.data
    opened = opener_for(model.spec, model.task)
    return CalibrationFrames(data, _geometry(model.spec), options.calibration_images, opened)


def _write_graphs(
    model: Model,
    options: ExportOptions,
    header: dict[str, Any],
    path: Path,
    folder: Path,
    frames: CalibrationFrames | None,
) -> Manifest:
    bases = trace_bases(model)
    graphs = {name: name_files(name, options.precisions) for name in bases}
    manifest = describe(model, options, header, path, graphs)
    ranges: dict[str, dict[str, float]] = {}
    if frames is not None:
        checkpoint_sha256 = manifest.training["checkpoint_sha256"]
        calibrations = calibrate_graphs(
            bases, frames, state=manifest.state, checkpoint_sha256=checkpoint_sha256
        )
        write_calibrations(folder / CALIBRATION_NAME, calibrations)
        manifest = dataclasses.replace(manifest, calibration=summarise(calibrations))
        ranges = {name: each.ranges for name, each in calibrations.items()}
    complete = {}
    for name, base in bases.items():
        conversions = dict(CONVERSIONS)
        if name in ranges:
            conversions["int8"] = functools.partial(to_int8, ranges=ranges[name])
        complete[name] = write_files(base, name, manifest, folder, conversions)
    return dataclasses.replace(manifest, graphs=complete)


def trace_bases(model: Model) -> dict[str, onnx.ModelProto]:
    """The float32 graphs that every precision is made of, by name."""
    bases = trace_frames(model) if isinstance(model, TemporalModel) else {MODEL: trace(model)}
    for base in bases.values():
        fold_batch_norms(base)
    return bases


def describe(
    model: Model,
    options: ExportOptions,
    header: dict[str, Any],
    checkpoint: Path,
    graphs: Mapping[str, Graph],
) -> Manifest:
    """The manifest of a model, but for the hashes of its files."""
    spec = model.spec
    training = {k: str(v) for k, v in header["training"].items()}
    training["checkpoint_sha256"] = file_sha256(checkpoint)
    scores = {k: float(v) for k, v in header["scores"].items() if np.isfinite(v)}
    return Manifest(
        schema=SCHEMA,
        model=options.model,
        variant=spec.variant,
        task=model.task,
        classes=spec.classes,
        category_ids=spec.category_ids,
        inputs=inputs_of_model(model),
        outputs=outputs_of_model(model),
        geometry=_geometry(spec),
        graphs=dict(graphs),
        state=state_of(model),
        precisions=options.precisions,
        batches=BATCHES,
        defaults=Defaults(spec.score_threshold, spec.iou_threshold),
        max_detections=spec.max_detections,
        num_candidates=spec.num_candidates,
        **task_module(model.task).describe_outputs(model),
        training=training,
        licence=str(header["training"].get("licence", "")),
        scores=scores,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        version=version(),
    )


def _geometry(spec: Spec) -> InputGeometry:
    return InputGeometry(spec.size_hw[0], spec.size_hw[1], resize=spec.resize)


def version() -> str:
    """Kestrel's version, as installed."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("kestrel-vision")
    return "unknown"


def make_samples(model: Model, data: str) -> dict[str, Samples]:
    """Network-size frames and what PyTorch answers, for each graph of a model."""
    if not isinstance(model, TemporalModel):
        opened = opener_for(model.spec, model.task)
        frames = network_frames(data, model.spec, NUM_SAMPLES, opened)
        feeds = _sample_feeds(model, frames)
        return {MODEL: Samples(feeds=feeds, results=torch_results(model, feeds))}
    frames = network_clips(data, model.spec, NUM_CLIPS, CLIP_LENGTH)
    fed = {
        graph: _sample_feeds(model, each) for graph, each in zip((KEY, NONKEY), frames, strict=True)
    }
    return {graph: Samples(fed[graph], each) for graph, each in clip_results(model, fed).items()}


def _sample_feeds(model: Model, frames: np.ndarray) -> Rows:
    """Frames with thresholds that vary from one to the next.

    Of four frames one runs at the defaults, one with scores from half of the default, one with
    half of the classes switched off, one with a strict suppression: an engine that ignores its
    thresholds shows.
    """
    count, num_classes = len(frames), len(model.spec.classes)
    scores = np.full((count, num_classes), model.spec.score_threshold, np.float32)
    ious = np.full((count,), model.spec.iou_threshold, np.float32)
    scores[1::4] *= 0.5
    scores[2::4, ::2] = 1.1
    ious[3::4] = 0.2
    feeds = {"image": frames, "score_threshold": scores, "iou_threshold": ious}
    return {spec.name: feeds[spec.name] for spec in inputs_of_model(model)}


def torch_results(model: Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What PyTorch answers, one frame at a time, by the names of the graph's outputs."""
    module = end_to_end(model, is_folded=False)
    rows: list[list[np.ndarray]] = []
    count = len(next(iter(feeds.values())))
    with torch.no_grad():
        for index in range(count):
            one = [torch.from_numpy(value[index : index + 1]) for value in feeds.values()]
            rows.append([output.numpy() for output in module(*one)])
    names = [spec.name for spec in outputs_of(model.task, model.optional_outputs)]
    return {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(names)}
