"""TensorRT comes in two flavours with one interface: `tensorrt` 10.3 to 11.4, `tensorrt_rtx` 1.x.

What a module can do is asked of its attributes, not of its version number. In `runtime/engines`
and `runtime/sessions/trt*.py` a flavour's module is always called `trt`, and a variable that
holds one of its objects has the name in `tests/runtime/test_engines_api.py`, which checks every
attribute that is touched against the modules that are installed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from runtime.contract.errors import EngineError

FLAVOUR_NAMES = ("tensorrt", "tensorrt_rtx")
_INSTALL = {
    "tensorrt": "pip install tensorrt (its libraries come from NVIDIA's index, "
    "https://pypi.nvidia.com; a Jetson has it from JetPack)",
    "tensorrt_rtx": "pip install tensorrt-rtx",
}
_LIBRARY_LOG_LINES = 50

# Without these nothing works; everything else is guarded by hasattr where it is used.
_REQUIRED = {
    "Builder": (
        "create_network",
        "create_builder_config",
        "create_optimization_profile",
        "build_serialized_network",
    ),
    "OnnxParser": ("parse_from_file", "num_errors", "get_error"),
    "Runtime": ("deserialize_cuda_engine",),
    "ICudaEngine": ("num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_dtype"),
    "IExecutionContext": (
        "set_tensor_address",
        "set_input_shape",
        "set_optimization_profile_async",
        "execute_async_v3",
    ),
    "ILogger": ("Severity",),
    "BuilderFlag": ("TF32",),
}

log = logging.getLogger("kestrel.runtime")


class NoFlavourError(EngineError):
    """No TensorRT that could build or run an engine here; scripts exit with EXIT_NO_ENGINE."""


class LibraryLog:
    """What TensorRT's logger said: errors are kept for our messages, warnings go to our log."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=_LIBRARY_LOG_LINES)

    def add(self, *, is_error: bool, message: str) -> None:
        """Take a line in; called from TensorRT's threads."""
        if is_error:
            self._errors.append(" ".join(message.split()))
        log.debug("TensorRT: %s", message)

    def take(self) -> list[str]:
        """The errors since the last call, oldest first."""
        errors = []
        while self._errors:
            errors.append(self._errors.popleft())
        return errors


@dataclass(frozen=True)
class Flavour:
    """One usable TensorRT.

    Attributes:
        name: "tensorrt" or "tensorrt_rtx".
        module: the Python module.
        version: as the module says it.
        library_log: what TensorRT said.
        logger: the object that TensorRT logs to; it must outlive everything made with it.
    """

    name: str
    module: Any
    version: str = ""
    library_log: LibraryLog = field(default_factory=LibraryLog)
    logger: Any = None

    @property
    def needs_gpu_to_build(self) -> bool:
        """TensorRT times kernels on the device; RTX compiles ahead for any device."""
        return self.name != "tensorrt_rtx"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one flavour: version, empty where absent; reason, empty where usable."""

    name: str
    version: str
    reason: str

    @property
    def is_usable(self) -> bool:
        return not self.reason


def make_flavour(name: str, module: Any) -> Flavour:
    """Check that a module can do what is needed, and give it a logger.

    Raises:
        NoFlavourError: it is too old, or lacks something.
    """
    version = str(getattr(module, "__version__", "unknown"))
    reason = _why_unusable(module)
    if reason:
        raise NoFlavourError(f"{name} {version} {reason}")
    library_log = LibraryLog()
    return Flavour(name, module, version, library_log, _make_logger(module, library_log))


@functools.cache
def load_flavour(name: str) -> Flavour:
    """Import a flavour; the same object every time.

    Raises:
        NoFlavourError: unknown name, not installed, cannot be imported, or unusable.
    """
    if name not in FLAVOUR_NAMES:
        raise NoFlavourError(
            f"unknown TensorRT flavour {name!r}; expected {' or '.join(FLAVOUR_NAMES)}."
        )
    if importlib.util.find_spec(name) is None:
        raise NoFlavourError(f"{name} is not installed: {_INSTALL[name]}.")
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # a missing library
        raise NoFlavourError(
            f"{name} is installed but cannot be imported ({error}). "
            f"Repair it: {_INSTALL[name]}, of the version that the driver supports."
        ) from None
    return make_flavour(name, module)


def probe_flavours() -> list[Finding]:
    """Both flavours, in order of preference: what is there, and why not where it is not."""
    findings = []
    for name in FLAVOUR_NAMES:
        try:
            findings.append(Finding(name, load_flavour(name).version, ""))
        except NoFlavourError as error:
            findings.append(Finding(name, _installed_version(name), str(error)))
    return findings


def _installed_version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _why_unusable(trt: Any) -> str:
    for owner, attributes in _REQUIRED.items():
        if not hasattr(trt, owner):
            return f"has no {owner}; expected TensorRT 10.3 to 11.4 or TensorRT-RTX 1.x. Update it."
        for attribute in attributes:
            if not hasattr(getattr(trt, owner), attribute):
                return f"has no {owner}.{attribute}; expected TensorRT 10.3 or newer. Update it."
    flags = getattr(trt, "NetworkDefinitionCreationFlag", None)
    if hasattr(trt.BuilderFlag, "FP16") and not hasattr(flags, "STRONGLY_TYPED"):
        return (
            "cannot build strongly typed networks, and our precisions stand in the ONNX files; "
            "expected TensorRT 10.3 or newer. Update it."
        )
    return ""


def _make_logger(trt: Any, library_log: LibraryLog) -> Any:
    severities = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
    warning = trt.ILogger.Severity.WARNING

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base exists at run time only
        def __init__(self) -> None:
            super().__init__()  # pybind11 needs it

        def log(self, severity: Any, message: str) -> None:
            is_error = severity in severities
            if is_error or severity == warning:
                library_log.add(is_error=is_error, message=message)

    return Logger()
