"""What an engine depends on, as one short name: any difference makes another engine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.contract.bundle import Bundle, hash_file
from runtime.contract.errors import EngineError
from runtime.contract.onnx_metadata import read_external_files
from runtime.engines.build import BuildOptions, Shape
from runtime.engines.flavour import Flavour

_HEX_DIGITS = 16
_ANY_DEVICE = "any"
_AMPERE = 8.0  # the compute capability from which engines can be built for several GPUs


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU: its name, and its compute capability such as "8.7"."""

    name: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} (sm_{self.compute_capability.replace('.', '')})"


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that an engine depends on.

    Attributes:
        onnx_sha256: hashes of the ONNX file (key "model") and of its external data files.
        precision: of the bundle. flavour, flavour_version: of TensorRT.
        device, compute_capability: "any" and "" where the engine is compiled for many.
        platform: operating system and processor of the machine, such as "Linux aarch64".
        plugin_sha256: of our plugin's code; empty where none is used.
        shapes: batch size -> input name -> shape, one optimisation profile each.
        flags: BuildOptions.flags().
    """

    onnx_sha256: dict[str, str]
    precision: str
    flavour: str
    flavour_version: str
    device: str
    compute_capability: str
    platform: str
    plugin_sha256: str
    shapes: dict[str, dict[str, list[int]]]
    flags: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return dataclasses.asdict(self)

    def fingerprint(self) -> str:
        """16 hexadecimal digits."""
        text = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:_HEX_DIGITS]


def engine_file(bundle: Bundle, graph: str, precision: str) -> Path:
    """The ONNX file that TensorRT builds: the one with our operators as nodes where there is one.

    Raises:
        BundleError: missing, damaged, or no such graph or precision.
    """
    kind = "plugin" if bundle.has_file(graph, precision, "plugin") else "portable"
    return bundle.file(graph, precision, "plugin" if kind == "plugin" else "portable")


def input_shapes(bundle: Bundle) -> dict[int, dict[str, Shape]]:
    """Batch size -> {input name: shape}, from the manifest.

    Raises:
        EngineError: a letter in a shape has no number.
    """
    manifest = bundle.manifest
    shapes: dict[int, dict[str, Shape]] = {}
    for batch in manifest.batches:
        sizes = manifest.sizes(batch)
        try:
            shapes[batch] = {spec.name: spec.resolved(sizes) for spec in manifest.inputs}
        except KeyError as error:
            raise EngineError(
                f"{bundle.folder}: an input's shape has the letter {error.args[0]!r}, which the "
                "manifest gives no number. Export the bundle again."
            ) from None
    return shapes


def identify(
    bundle: Bundle,
    graph: str,
    precision: str,
    flavour: Flavour,
    *,
    device: Device | None,
    options: BuildOptions,
    plugin_sha256: str = "",
) -> Identity:
    """What the engine of this graph would depend on here.

    Args:
        bundle: its file is checked against the manifest's hash on the way.
        graph: of the manifest's.
        precision: of the manifest's.
        flavour: of TensorRT.
        device: the GPU; engines of TensorRT-RTX are for any, so None is right there.
        options: of the build.
        plugin_sha256: hash of our plugin's code, where it is registered.
    """
    onnx_path = engine_file(bundle, graph, precision)
    known = bundle.manifest.graphs[graph].sha256
    hashes = {"model": _hash(onnx_path, known)}
    for name in read_external_files(onnx_path):
        hashes[name] = _hash(onnx_path.parent / name, known)
    is_portable = not flavour.needs_gpu_to_build and "CURRENT" not in options.targets
    if device is None and not is_portable:
        raise EngineError(f"{flavour} builds on the GPU it builds for, and there is none here.")
    return Identity(
        onnx_sha256=hashes,
        precision=precision,
        flavour=flavour.name,
        flavour_version=flavour.version,
        device=_ANY_DEVICE if is_portable or device is None else device.name,
        compute_capability="" if is_portable or device is None else device.compute_capability,
        platform=f"{platform.system()} {platform.machine()}",
        plugin_sha256=plugin_sha256,
        shapes={
            str(batch): {name: list(shape) for name, shape in shapes.items()}
            for batch, shapes in input_shapes(bundle).items()
        },
        flags=options.flags(),
    )


def serves(recorded: Mapping[str, Any], wanted: Identity, device: Device | None) -> bool:
    """Whether an engine that was built with other flags may run where `wanted` would.

    TensorRT has the last word: what it does not load is built anew.

    Args:
        recorded: `Identity.to_dict` of the engine.
        wanted: what would be built here with no flags.
        device: the GPU; None where there is none, and any will do.
    """
    same = ("onnx_sha256", "precision", "flavour", "platform", "plugin_sha256", "shapes")
    ours = wanted.to_dict()
    try:
        return (
            all(recorded[name] == ours[name] for name in same)
            and _serves_version(recorded, wanted.flavour_version)
            and _serves_device(recorded, device)
        )
    except (KeyError, TypeError, ValueError):
        return False


def _serves_version(recorded: Mapping[str, Any], version: str) -> bool:
    if recorded["flavour_version"] == version:
        return True
    older, newer = (
        [int(part) for part in each.split(".")] for each in (recorded["flavour_version"], version)
    )
    return bool(recorded["flags"]["is_version_compatible"]) and older <= newer


def _serves_device(recorded: Mapping[str, Any], device: Device | None) -> bool:
    targets = recorded["flags"]["targets"]
    if device is None:
        return bool(recorded["device"] == _ANY_DEVICE)
    if recorded["device"] == _ANY_DEVICE:
        return not targets or f"SM{device.compute_capability.replace('.', '')}" in targets
    if (recorded["device"], recorded["compute_capability"]) == dataclasses.astuple(device):
        return True
    capabilities = (recorded["compute_capability"], device.compute_capability)
    is_ampere = all(float(each) >= _AMPERE for each in capabilities)
    return bool(recorded["flags"]["is_hardware_compatible"]) and is_ampere


def _hash(path: Path, known: Mapping[str, str]) -> str:
    """The manifest's hash, which the bundle has just checked, or our own of a lone file."""
    return known.get(path.name, "").lower() or hash_file(path)
