"""ONNX Runtime: its many wheels, and the providers that are really there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runtime.doctoring.distributions import Package
from runtime.doctoring.findings import Finding
from runtime.doctoring.import_cures import cure_for
from runtime.doctoring.survey import Survey
from runtime.doctoring.wheels import TAKEN, Family, check_family, requirements

_SUBJECT = "ONNX Runtime"
_SHOWN = "ExecutionProvider"


def _choose(packages: Sequence[Package]) -> str:
    names = [each.name for each in packages]
    name = "onnxruntime-gpu" if "onnxruntime-gpu" in names else "onnxruntime"
    return f"'{name}{TAKEN['onnxruntime']}'"


FAMILY = Family(_SUBJECT, "onnxruntime", "onnxruntime", (r"onnxruntime(-.+)?", r"ort-.+"), _choose)


def check_wheels(survey: Survey) -> Iterator[Finding]:
    """Several in one environment, files that are gone, versions."""
    yield from check_family(survey.machine, FAMILY)


def check_providers(survey: Survey) -> Iterator[Finding]:
    """Import it, and load CUDA's provider where there is one."""
    if survey.machine.finds_module("onnxruntime") is None:
        yield Finding(
            _SUBJECT,
            "onnxruntime-none",
            "note",
            "not installed; it is the backend that runs everywhere",
            f"pip install {requirements('onnxruntime')} (for a GPU: onnxruntime-gpu)",
        )
        return
    answer = survey.ask("onnxruntime")
    if answer.fault:
        yield Finding(
            _SUBJECT,
            "onnxruntime-broken",
            "error",
            f"it does not import: {answer.fault}",
            cure_for(answer, "onnxruntime"),
        )
        return
    data = answer.data
    names = [each.removesuffix(_SHOWN) for each in data["providers"]]
    yield Finding(_SUBJECT, "onnxruntime", "ok", f"{data['version']}: {', '.join(names)}")
    if survey.gpus and data["cuda_fault"]:
        yield Finding(
            _SUBJECT,
            "onnxruntime-cuda-broken",
            "warning",
            f"its CUDA provider does not load, so it computes on the CPU: {data['cuda_fault']}",
            f"pip install 'onnxruntime-gpu[cuda,cudnn]{TAKEN['onnxruntime-gpu']}', of a version "
            "for this driver's CUDA",
        )
    elif survey.gpus and "CUDA" not in names and not _has_tensorrt(survey):
        yield Finding(
            _SUBJECT,
            "onnxruntime-no-cuda",
            "warning",
            "a GPU is there, and neither TensorRT nor ONNX Runtime can use it",
            f"pip uninstall -y onnxruntime && pip install {requirements('onnxruntime-gpu')}, or "
            "install TensorRT",
        )


def _has_tensorrt(survey: Survey) -> bool:
    return any(survey.tensorrt_version(name) for name in ("tensorrt", "tensorrt_rtx"))
