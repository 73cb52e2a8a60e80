"""OpenVINO: whether it imports, and the devices it finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runtime.doctoring.distributions import Package
from runtime.doctoring.findings import Finding
from runtime.doctoring.import_cures import cure_for
from runtime.doctoring.survey import Survey
from runtime.doctoring.wheels import TAKEN, Family, check_family

_SUBJECT = "OpenVINO"


def _choose(packages: Sequence[Package]) -> str:
    return f"'openvino{TAKEN['openvino']}'"


FAMILY = Family(_SUBJECT, "openvino", "openvino", (r"openvino(-nightly|-dev)?",), _choose)


def check_openvino(survey: Survey) -> Iterator[Finding]:
    """Its wheels, its import, its CPU plugin."""
    yield from check_family(survey.machine, FAMILY)
    if survey.machine.finds_module("openvino") is None:
        yield Finding(
            _SUBJECT,
            "openvino-none",
            "note",
            "not installed; it is the fastest backend on CPUs",
            f"pip install 'openvino{TAKEN['openvino']}'",
        )
        return
    answer = survey.ask("openvino")
    if answer.fault:
        yield Finding(
            _SUBJECT,
            "openvino-broken",
            "error",
            f"it does not start: {answer.fault}",
            cure_for(answer, "openvino"),
        )
        return
    devices = answer.data["devices"]
    version = answer.data["version"].split("-")[0]
    if "CPU" not in devices:
        yield Finding(
            _SUBJECT,
            "openvino-no-cpu",
            "error",
            f"{version} finds no CPU device (it finds {', '.join(devices) or 'none'})",
            "its CPU plugin is missing: pip install --force-reinstall openvino",
        )
        return
    listed = ", ".join(f"{name} ({full})" for name, full in devices.items())
    yield Finding(_SUBJECT, "openvino", "ok", f"{version}: {listed}")
