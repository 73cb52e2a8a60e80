"""Ranges with a record of what they were found on, so that they are not used for anything else."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper
from tqdm import tqdm

from export.precision.int8.images import CalibrationFrames
from export.precision.int8.leaning import leaning_feeds
from export.precision.int8.observing import Feeds, observe
from export.precision.int8.placement import plan_placement
from export.precision.int8.ranges import METHODS, choose_amax
from runtime.contract.errors import BundleError, KestrelError
from runtime.contract.files import write_json
from runtime.contract.outputs import KEY, NONKEY

CALIBRATION_NAME = "calibration.json"
SCHEMA = 1
METHOD = "mse"
NUM_IMAGES = 128
IMAGE = "image"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The ranges of one graph.

    Attributes:
        method: how they were chosen, a key of `ranges.METHODS`.
        network_sha256: of the float32 graph and its weights; see `hash_network`.
        images_sha256: of the pixels that were fed. num_images: how many frames.
        data: where they came from, as it was named.
        checkpoint_sha256: of the checkpoint that the graph was traced from.
        ranges: tensor -> the largest magnitude that is kept, for every choice of int8 nodes.
        heads: what the last product of each head was written as with them: "float" or "int8".
    """

    method: str
    network_sha256: str
    images_sha256: str
    num_images: int
    data: str
    checkpoint_sha256: str
    ranges: dict[str, float]
    heads: str = "float"

    def summary(self) -> dict[str, str]:
        """What the manifest keeps of it."""
        return {
            "method": self.method,
            "heads": self.heads,
            "images": str(self.num_images),
            "data": self.data,
            "images_sha256": self.images_sha256,
            "checkpoint_sha256": self.checkpoint_sha256,
        }

    def refuse_other(
        self, base: onnx.ModelProto, *, method: str = "", images_sha256: str = ""
    ) -> None:
        """Raise KestrelError where the ranges belong to another network, method or other images.

        Args:
            base: the float32 graph that is to be quantised.
            method, images_sha256: what is asked for; empty accepts any.
        """
        checks = (
            ("another network", self.network_sha256, hash_network(base)),
            ("other images", self.images_sha256, images_sha256 or self.images_sha256),
            ("another method", self.method, method or self.method),
        )
        for what, found, expected in checks:
            if found != expected:
                raise KestrelError(
                    f"this calibration is of {what}: it has {_short(found)}, expected "
                    f"{_short(expected)}. Calibrate anew."
                )


def calibrate_graphs(
    bases: Mapping[str, onnx.ModelProto],
    frames: CalibrationFrames,
    *,
    state: Mapping[str, str],
    method: str = METHOD,
    checkpoint_sha256: str = "",
) -> dict[str, Calibration]:
    """Find the ranges of each graph of a model; see `calibrate`.

    Args:
        bases: float32 graphs by name; NONKEY is fed the state that KEY leaves of earlier frames.
        state: of the manifest.
    """
    calibrations = {}
    for name, base in bases.items():
        make_feeds = functools.partial(leaning_feeds, bases[KEY], state) if name == NONKEY else None
        calibrations[name] = calibrate(
            base,
            frames,
            method=method,
            checkpoint_sha256=checkpoint_sha256,
            make_feeds=make_feeds,
        )
    return calibrations


def summarise(calibrations: Mapping[str, Calibration]) -> dict[str, str]:
    """What the manifest keeps of the calibrations of one bundle: they share frames and method."""
    return next(iter(calibrations.values())).summary()


def _image_feeds(frames: Iterable[Any]) -> Iterable[Feeds]:
    return ({IMAGE: frame[None]} for frame in frames)


def calibrate(
    base: onnx.ModelProto,
    frames: CalibrationFrames,
    *,
    method: str = METHOD,
    checkpoint_sha256: str = "",
    make_feeds: Callable[[Iterable[Any]], Iterable[Feeds]] | None = None,
) -> Calibration:
    """Find the ranges of every tensor that any choice of int8 nodes may quantise.

    Args:
        base: the float32 graph.
        frames: to run it on, with a progress bar on a terminal.
        method: a key of `ranges.METHODS`.
        checkpoint_sha256: for the record.
        make_feeds: frames (H, W, 3) to the feeds of the part up to the last product; None where
            that reads the image alone.

    Raises:
        KestrelError: an unknown method, or a tensor that is not finite on some frame.
    """
    if method not in METHODS:
        raise KestrelError(f"method {method!r} is unknown; expected {', '.join(METHODS)}.")
    tensors = plan_placement(base, quantise_heads=True).tensors
    shown = tqdm(frames, "calibrating", unit="frame", disable=None)
    histograms = observe(base, tensors, (make_feeds or _image_feeds)(shown))
    return Calibration(
        method=method,
        network_sha256=hash_network(base),
        images_sha256=frames.sha256,
        num_images=frames.num_frames,
        data=frames.data,
        checkpoint_sha256=checkpoint_sha256,
        ranges={name: choose_amax(each, method) for name, each in histograms.items()},
    )


def hash_network(base: onnx.ModelProto) -> str:
    """The sha256 of what a graph computes: its nodes and weights, not its notes."""
    digest = hashlib.sha256()
    for node in base.graph.node:
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        plain.ClearField("doc_string")
        plain.ClearField("metadata_props")
        digest.update(plain.SerializeToString(deterministic=True))
    for tensor in sorted(base.graph.initializer, key=lambda each: each.name):
        value = numpy_helper.to_array(tensor)
        digest.update(f"{tensor.name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def write_calibrations(path: Path, calibrations: Mapping[str, Calibration]) -> None:
    """Write the calibration of each graph, by its name."""
    graphs = {name: dataclasses.asdict(each) for name, each in calibrations.items()}
    write_json(path, {"schema": SCHEMA, "graphs": graphs})


def read_calibrations(path: Path) -> dict[str, Calibration]:
    """Read what `write_calibrations` wrote.

    Raises:
        BundleError: no such file, or it is damaged or of a newer schema.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema = document["schema"]
        calibrations = {
            name: _check(Calibration(**entry)) for name, entry in document["graphs"].items()
        }
    except OSError:
        raise BundleError(f"{path} cannot be read; expected a calibration. Calibrate.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleError(f"{path} is damaged; expected a calibration. Calibrate anew.") from None
    if schema != SCHEMA:
        raise BundleError(f"{path} has schema {schema!r}, expected {SCHEMA}. Calibrate anew.")
    return calibrations


def _check(calibration: Calibration) -> Calibration:
    expected: dict[str, Any] = {"int": int, "str": str, "dict[str, float]": dict}
    for field in dataclasses.fields(calibration):
        if not isinstance(getattr(calibration, field.name), expected[str(field.type)]):
            raise TypeError(field.name)
    return calibration


def _short(text: str) -> str:
    return text if len(text) <= 16 else f"{text[:16]}..."
