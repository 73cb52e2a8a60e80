"""Opening a bundle on a backend. Backends are strings here and imported when they are tried."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from runtime.contract.bundle import Bundle
from runtime.contract.errors import BundleError, SessionError
from runtime.sessions.base import Session
from runtime.sessions.cpu_flags import sound_precision
from runtime.sessions.gpu import why_no_gpu

log = logging.getLogger("kestrel.runtime")


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to run a bundle.

    Attributes:
        name: what the user calls it.
        module: ours, with `open_session(bundle, precision, **options) -> Session`.
        package: theirs, without which the module is of no use.
        fixed: options that belong to this entry and are not the user's.
        needs_gpu: an NVIDIA GPU.
    """

    name: str
    module: str
    package: str
    fixed: dict[str, Any] = field(default_factory=dict)
    needs_gpu: bool = False


# In the order in which "auto" tries them.
BACKENDS = (
    Backend("tensorrt", "runtime.sessions.trt", "tensorrt", {"flavour": "tensorrt"}, True),
    Backend(
        "tensorrt_rtx", "runtime.sessions.trt", "tensorrt_rtx", {"flavour": "tensorrt_rtx"}, True
    ),
    Backend("onnxruntime", "runtime.sessions.ort", "onnxruntime", {"device": "cuda"}, True),
    Backend("openvino", "runtime.sessions.openvino_session", "openvino"),
    Backend("onnxruntime", "runtime.sessions.ort", "onnxruntime", {"device": "cpu"}),
)
BACKEND_NAMES = tuple(dict.fromkeys(backend.name for backend in BACKENDS))


def open_session(
    bundle: Bundle, backend: str = "auto", precision: str | None = None, **options: Any
) -> Session:
    """Load a bundle on a backend.

    Args:
        bundle: what to load.
        backend: one of BACKEND_NAMES, or "auto" for the first of BACKENDS that is present and
            works; which, and why not those before it, is logged to "kestrel.runtime", as a
            warning where one is present and yet does not work. With
            device="cpu" or "cuda", auto keeps to CPUs or GPUs.
        precision: one of the manifest's; None takes fp16 on a GPU and fp32 on a CPU where the
            bundle has it, else its first.
        **options: the backend's own, such as threads=2 (CPU backends), device="cpu"
            (onnxruntime) or inference_precision="bf16" (openvino).

    Raises:
        SessionError: the backend is unknown, absent, or refuses the graph; an unknown option.
        BundleError: the file is damaged, lacks that precision, or failed its verification.
    """
    if backend == "auto":
        return _open_first(bundle, precision, options)
    candidates = [entry for entry in BACKENDS if entry.name == backend]
    if not candidates:
        near = difflib.get_close_matches(backend, BACKEND_NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SessionError(
            f"unknown backend {backend!r}; expected auto, {', '.join(BACKEND_NAMES)}{hint}"
        )
    device = options.pop("device", None)
    if device is not None and all("device" not in entry.fixed for entry in candidates):
        raise SessionError(f"backend {backend!r} has no option 'device'. Leave it out.")
    if device is not None:
        candidates = [entry for entry in candidates if entry.fixed["device"] == device]
    if not candidates:
        raise SessionError(f"unknown device {device!r} of {backend!r}; expected cpu or cuda.")
    for entry in candidates[:-1]:  # onnxruntime without a device: CUDA where it works
        try:
            return _open(entry, bundle, precision, options)
        except SessionError as error:
            log.info("%s: not taken: %s", _describe(entry), error)
    return _open(candidates[-1], bundle, precision, options)


def choose_precision(bundle: Bundle, precision: str | None, *, on_gpu: bool) -> str:
    """The precision to load; BundleError where the bundle has not the one asked for."""
    have = bundle.manifest.precisions
    if precision is None:
        wanted = ("fp16", "fp32") if on_gpu else ("fp32",)
        return next((each for each in wanted if each in have), have[0])
    if precision not in have:
        raise BundleError(
            f"{bundle.folder} has no precision {precision!r}; it has {', '.join(have)}. "
            "Choose one of these, or export that precision."
        )
    return precision


def _open_first(bundle: Bundle, precision: str | None, options: dict[str, Any]) -> Session:
    choose_precision(bundle, precision, on_gpu=False)  # a wrong one is no backend's fault
    if options:
        _refuse_unknown_options(options)
    reasons = []
    device = options.get("device")
    for entry in BACKENDS:
        if device is not None and entry.needs_gpu != (device != "cpu"):
            continue
        try:
            session = _open(entry, bundle, precision, options, is_auto=True)
        except (SessionError, BundleError) as error:
            level = logging.INFO if why_absent(entry) else logging.WARNING
            log.log(level, "%s: not taken: %s", _describe(entry), error)
            reasons.append((entry, error))
            continue
        log.info("%s: taken (%s, %s)", entry.name, session.device, session.precision)
        return session
    refusals = [error for _, error in reasons if isinstance(error, BundleError)]
    if refusals:
        raise refusals[0]
    listed = "; ".join(f"{_describe(entry)}: {error}" for entry, error in reasons)
    raise SessionError(
        f"no backend can run {bundle.folder}: {listed}. "
        "Install one, e.g. pip install 'kestrel-vision[cpu]'; python runtime/doctor.py says what "
        "is wrong here."
    )


def _open(
    entry: Backend,
    bundle: Bundle,
    precision: str | None,
    options: dict[str, Any],
    *,
    is_auto: bool = False,
) -> Session:
    """Open one entry of the table; SessionError where it is absent or does not work."""
    reason = why_absent(entry)
    if reason:
        raise SessionError(reason)
    chosen = choose_precision(bundle, precision, on_gpu=entry.needs_gpu)
    if not entry.needs_gpu:
        chosen = sound_precision(bundle, chosen)
    bundle.refuse_failed(chosen, entry.name)
    opener = _opener(entry)
    accepted = _options_of(opener)
    known = {
        name: value
        for name, value in options.items()
        if name not in entry.fixed and (accepted is None or name in accepted)
    }
    unknown = [name for name in options if name not in known]
    if unknown and not is_auto:
        have = ", ".join(sorted(set(accepted or ()) - set(entry.fixed))) or "none"
        raise SessionError(
            f"backend {entry.name!r} has no option {unknown[0]!r}; it has {have}. Leave it out."
        )
    try:
        session = opener(bundle, chosen, **entry.fixed, **known)
    except ImportError as error:
        raise SessionError(
            f"{entry.package} is installed but cannot be imported ({error}). Install it again."
        ) from None
    is_proven_on_load = "flavour" in entry.fixed  # engines are, against the bundle's samples
    is_wanted = is_proven_on_load or bundle.allow_unverified
    if not is_wanted and bundle.verdict(chosen, entry.name) == "not run":
        cure = "open its bundle's folder" if bundle.is_single_file else "run export/verify.py on it"
        log.warning("%s: %s on %s was never verified; %s", bundle.name, chosen, entry.name, cure)
    return session


def why_absent(entry: Backend) -> str:
    """Empty where the backend's package (and GPU) are there, else why not; imports nothing big."""
    if importlib.util.find_spec(entry.package) is None:
        return f"the Python package {entry.package!r} is not installed"
    if importlib.util.find_spec(entry.module) is None:
        return f"this installation has no {entry.module}"
    return why_no_gpu() if entry.needs_gpu else ""


def _opener(entry: Backend) -> Callable[..., Session]:
    try:
        module = importlib.import_module(entry.module)
    except ImportError as error:
        raise SessionError(f"{entry.name} cannot be imported: {error}") from None
    opener: Callable[..., Session] = module.open_session
    return opener


def _options_of(opener: Callable[..., Session]) -> set[str] | None:
    """The options a module's open_session takes; None where it takes any."""
    parameters = inspect.signature(opener).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def _refuse_unknown_options(options: dict[str, Any]) -> None:
    """In "auto" an option may be meant for one backend only, but for none is a mistake."""
    known = {"device"}
    for entry in BACKENDS:
        if importlib.util.find_spec(entry.module) is not None:
            accepted = _options_of(_opener(entry))
            if accepted is None:
                return
            known |= accepted - set(entry.fixed)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SessionError(
                f"no backend has an option {name!r}; there are {', '.join(sorted(known))}{hint}"
            )


def _describe(entry: Backend) -> str:
    device = entry.fixed.get("device")
    return f"{entry.name} ({device})" if device else entry.name
