"""Whether anything here can run a bundle."""

from __future__ import annotations

from collections.abc import Iterator

from runtime.doctoring.findings import Finding
from runtime.doctoring.survey import Survey
from runtime.doctoring.wheels import requirements


def check_backends(survey: Survey) -> Iterator[Finding]:
    """Backends that load; without one no bundle runs, whatever else is fine."""
    if survey.backends:
        listed = ", ".join(f"{name} {version}" for name, version in survey.backends.items())
        yield Finding("Backends", "backends", "ok", listed)
        return
    yield Finding(
        "Backends",
        "backend-none",
        "error",
        "no backend loads here, so no bundle runs",
        cure_for_none(survey),
    )


def cure_for_none(survey: Survey) -> str:
    """What to install where no backend loads."""
    if survey.jetson is not None:
        return "sudo apt install tensorrt python3-libnvinfer, and an environment that sees them"
    cpu = f"pip install {requirements('onnxruntime', 'openvino')}"
    if not survey.gpus:
        return cpu
    gpu = requirements("tensorrt", "cuda")
    return f"pip install {gpu} --extra-index-url https://pypi.nvidia.com; for the CPU: {cpu}"
