"""TensorRT: which flavours are there, whether they load, and parts of different versions."""

from __future__ import annotations

import re
from collections.abc import Iterator

from runtime.doctoring.distributions import Package, find_packages, version_key
from runtime.doctoring.findings import Finding
from runtime.doctoring.import_cures import cure_for
from runtime.doctoring.survey import FLAVOURS, Survey
from runtime.doctoring.wheels import TAKEN, check_version, requirements

_SUBJECT = "TensorRT"
_PARTS = r"tensorrt(?P<flavour>-rtx|-lean|-dispatch)?(-cu(?P<cuda>\d+))?(-libs|-bindings)?"
_RUN_ONLY = ("-lean", "-dispatch")
_OLDEST_CAPABILITY = 7.5  # Turing: the oldest that TensorRT 10.3 and later, and RTX, compile for


def check_parts(survey: Survey) -> Iterator[Finding]:
    """Meta package, bindings and libraries of one flavour: one version, for one CUDA."""
    packages = find_packages(survey.machine, _PARTS)
    for flavour in ("", "-rtx", *_RUN_ONLY):
        parts = [each for each in packages if _flavour_of(each) == flavour]
        if not parts:
            continue
        name = f"tensorrt{flavour}"
        versions = sorted({each.version for each in parts}, key=version_key)
        cudas = sorted({each.name for each in parts if re.fullmatch(rf"{name}-cu\d+", each.name)})
        remove = f"pip uninstall -y {' '.join(dict.fromkeys(each.name for each in parts))}"
        if len(cudas) > 1:
            yield Finding(
                _SUBJECT,
                "tensorrt-two-cudas",
                "error",
                f"{' and '.join(cudas)} overwrite each other's files",
                f"{remove} && pip install {cudas[-1]} (or that for the driver's CUDA)",
            )
        elif len(versions) > 1:
            listed = ", ".join(dict.fromkeys(map(str, parts)))
            yield Finding(
                _SUBJECT,
                "tensorrt-mixed-versions",
                "error",
                f"parts of different versions: {listed}",
                f"{remove} && pip install {name}=={versions[-1]}",
            )
        elif len({each.folder for each in parts}) > 1:
            folders = " and ".join(dict.fromkeys(str(each.folder) for each in parts))
            yield Finding(
                _SUBJECT,
                "tensorrt-hidden",
                "warning",
                f"{name} {versions[0]} lies in {folders}; Python's path alone says which is taken",
                f"keep one: {remove}",
            )


def check_flavours(survey: Survey) -> Iterator[Finding]:
    """Load each flavour that is installed as a session would."""
    has_any = False
    for name in FLAVOURS:
        if survey.machine.finds_module(name) is None:
            continue
        has_any = True
        answer = survey.ask("tensorrt", name)
        if answer.fault:
            yield Finding(
                _SUBJECT,
                f"{name.replace('_', '-')}-broken",
                "error",
                answer.fault.split(" Repair it:")[0].rstrip("."),
                _cure(survey, name),
            )
            continue
        version = answer.data["version"]
        package = name.replace("_", "-")
        findings = list(check_version(_SUBJECT, package, name, version, package))
        yield from findings or [Finding(_SUBJECT, package, "ok", f"{name} {version}")]
    if not has_any:
        yield from _judge_absence(survey)
    yield from _judge_gpus(survey)


def _judge_absence(survey: Survey) -> Iterator[Finding]:
    run_only = [
        str(each)
        for each in find_packages(survey.machine, _PARTS)
        if _flavour_of(each) in _RUN_ONLY and re.fullmatch(r"tensorrt-(lean|dispatch)", each.name)
    ]
    libraries = survey.machine.glob("/usr/lib/*/libnvinfer.so.*.*")
    if survey.jetson is not None:
        return  # `jetson.py` says it
    if survey.gpus and libraries:
        yield Finding(
            _SUBJECT,
            "tensorrt-no-python",
            "warning",
            f"the system has {libraries[-1].name}, and this Python has no tensorrt",
            "sudo apt install python3-libnvinfer and an environment with --system-site-packages, "
            f"or pip install {requirements('tensorrt')}",
        )
    elif survey.gpus:
        also = f"; {', '.join(run_only)} cannot build engines" if run_only else ""
        yield Finding(
            _SUBJECT,
            "tensorrt-none",
            "warning",
            f"a GPU is there, and no TensorRT{also}",
            f"pip install {requirements('tensorrt', 'cuda')} "
            "--extra-index-url https://pypi.nvidia.com",
        )
    else:
        yield Finding(_SUBJECT, "tensorrt-none", "ok", "none, and without an NVIDIA GPU of no use")


def _judge_gpus(survey: Survey) -> Iterator[Finding]:
    for gpu in survey.gpus:
        if float(gpu.compute_capability) < _OLDEST_CAPABILITY:
            yield Finding(
                _SUBJECT,
                "gpu-too-old",
                "error",
                f"{gpu} is older than Turing (sm_75), the oldest that TensorRT {TAKEN['tensorrt']} "
                "builds for",
                "pip uninstall -y onnxruntime && pip install "
                f"{requirements('onnxruntime-gpu')}, and --backend onnxruntime",
            )


def _cure(survey: Survey, name: str) -> str:
    answer = survey.ask("tensorrt", name)
    if "Update it" in answer.fault:
        if survey.jetson is not None:
            return "install JetPack 6 or 7, which has TensorRT 10.3 or newer"
        return f"pip install {requirements(name)} --extra-index-url https://pypi.nvidia.com"
    return cure_for(answer, name)


def _flavour_of(package: Package) -> str:
    match = re.fullmatch(_PARTS, package.name)
    return (match["flavour"] or "") if match else ""
