"""Engines: built where they run (TensorRT) or anywhere (TensorRT-RTX), and cached."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.contract.bundle import Bundle
from runtime.contract.errors import BundleError, SessionError
from runtime.engines.build import BuildOptions, check_options
from runtime.engines.cache import EngineFile, find_or_build, record_verdict
from runtime.engines.fingerprint import Device
from runtime.engines.flavour import (
    FLAVOUR_NAMES,
    Finding,
    Flavour,
    NoFlavourError,
    load_flavour,
    probe_flavours,
)
from runtime.engines.plugins import with_plugins

if TYPE_CHECKING:
    from runtime.engines.progress import Progress

__all__ = [
    "BuildOptions",
    "Device",
    "EngineFile",
    "Finding",
    "Flavour",
    "NoFlavourError",
    "build_all",
    "check_build",
    "choose_flavour",
    "find_or_build",
    "load_flavour",
    "probe_flavours",
    "record_verdict",
]


def build_all(
    bundle_path: str | Path,
    precisions: Sequence[str] | None = None,
    *,
    flavour: str | None = None,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> list[EngineFile]:
    """Build, or find in the cache, the engines of a bundle for this machine.

    Args:
        bundle_path: the bundle's folder.
        precisions: some of the manifest's; None is all of them.
        flavour: "tensorrt" or "tensorrt_rtx"; None is the first that can build here.
        options: of the build; None takes what runs here, see `find_or_build`.
        progress: called with (fraction 0..1, phase); None shows a bar on a terminal.

    Returns:
        One for each precision and graph, in that order; each says whether it `is_new`.

    Raises:
        NoFlavourError: no TensorRT here can build; exit with EXIT_NO_ENGINE.
        EngineError: TensorRT refuses a graph.
        BundleError: no bundle, no such precision, a damaged file.
    """
    bundle = Bundle.open(bundle_path)
    wanted = tuple(precisions) if precisions is not None else bundle.manifest.precisions
    for precision in wanted:
        if precision not in bundle.manifest.precisions:
            raise BundleError(
                f"{bundle.folder} has no precision {precision!r}; it has "
                f"{', '.join(bundle.manifest.precisions)}. Choose of these, or export it."
            )
    toolkit, device = choose_flavour(flavour, targets=options.targets if options else ())

    def find(graph: str, precision: str, code: str) -> EngineFile:
        return find_or_build(
            bundle,
            graph,
            precision,
            toolkit,
            device=device,
            options=options,
            plugin_sha256=code,
            progress=progress,
        )

    return [
        with_plugins(partial(find, graph, precision), toolkit, device, options).without_plan()
        for precision in wanted
        for graph in bundle.manifest.graphs
    ]


def check_build(options: BuildOptions, *, flavour: str | None = None) -> None:
    """Say whether `build_all` would take these options here, before it is needed.

    Raises:
        NoFlavourError: no TensorRT here can build.
        EngineError: it cannot build with these options.
    """
    toolkit, _ = choose_flavour(flavour, targets=options.targets)
    check_options(toolkit, options)


def choose_flavour(
    name: str | None = None, *, targets: Sequence[str] = ()
) -> tuple[Flavour, Device | None]:
    """The TensorRT to build with here, and the GPU where it needs one.

    Args:
        name: one of FLAVOUR_NAMES; None takes `tensorrt` where it and a GPU are there, else
            `tensorrt_rtx`.
        targets: of the build; for "CURRENT" TensorRT-RTX needs a GPU, too.

    Raises:
        NoFlavourError: none can build here; the message says what was found and what to install.
    """
    reasons = []
    for each in FLAVOUR_NAMES if name is None else (name,):
        try:
            flavour = load_flavour(each)
            needs_gpu = flavour.needs_gpu_to_build or "CURRENT" in targets
            return flavour, _find_device(flavour) if needs_gpu else None
        except NoFlavourError as error:
            reasons.append(str(error).rstrip("."))
    raise NoFlavourError(f"no TensorRT can build engines here: {'; '.join(reasons)}.")


def _find_device(flavour: Flavour) -> Device:
    from runtime.sessions.buffers import Cuda
    from runtime.sessions.gpu import why_no_gpu

    reason = why_no_gpu()  # asked first: TensorRT ends the process where there is no driver
    if reason:
        raise NoFlavourError(f"{flavour} builds on the GPU it builds for, and there is {reason}")
    try:
        return Cuda.load().device()
    except SessionError as error:
        raise NoFlavourError(str(error)) from None
