"""The NVIDIA driver, its GPUs, and CUDA's packages against it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from runtime.contract.errors import EngineError
from runtime.doctoring.distributions import find_packages, version_key
from runtime.doctoring.findings import Finding, from_error
from runtime.doctoring.import_cures import cure_for
from runtime.doctoring.machine import Machine
from runtime.doctoring.permissions import cure_for_node
from runtime.doctoring.survey import Survey
from runtime.doctoring.wheels import check_version

_SUBJECT = "NVIDIA driver"
_VENDOR, _DISPLAY_CLASSES = "0x10de", ("0x0300", "0x0302")  # of PCI: VGA and 3D controllers
_OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}  # CUDA's major version -> the driver's (its notes)
_VERSION = re.compile(r"\b(\d{3}\.\d+(?:\.\d+)?)\b")
# cuInit's status -> what it means, what to do
_STATUSES = {
    100: (
        "it shows no GPU",
        "look at CUDA_VISIBLE_DEVICES and nvidia-smi; start a container with --gpus all",
    ),
    802: (
        "the GPUs are not ready",
        "sudo systemctl start nvidia-fabricmanager (machines with NVSwitch)",
    ),
    803: (
        "the kernel's module and the driver's library are of different versions",
        "reboot: the driver was updated while its module was loaded",
    ),
    804: (
        "a CUDA compatibility library is used that this GPU does not support",
        "sudo apt remove 'cuda-compat-*', take it out of LD_LIBRARY_PATH, and update the driver",
    ),
    999: (
        "it does not start (unknown error)",
        "sudo modprobe nvidia_uvm; after a suspend, or if that does not help: reboot",
    ),
}
_ANY_STATUS = (
    "it does not start",
    "reboot; if that does not help, install the driver again; sudo dmesg | grep -i nvrm says more",
)


def check_driver(survey: Survey) -> Iterator[Finding]:
    """Whether the driver starts, and which GPUs it shows."""
    answer = survey.driver
    if answer.kind == "OSError":
        yield from _judge_absence(survey, answer.fault)
        return
    if answer.fault:
        yield Finding(
            _SUBJECT,
            "driver-broken",
            "error",
            f"asked for its GPUs: {answer.fault}",
            _ANY_STATUS[1],
        )
        return
    status = answer.data["status"]
    if status != 0:
        meaning, cure = _STATUSES.get(status, _ANY_STATUS)
        text = f"{meaning} (cuInit gave {status})"
        yield Finding(_SUBJECT, "driver-does-not-start", "error", text, cure)
    elif not survey.gpus:
        yield Finding(
            _SUBJECT, "driver-no-gpu", "error", "it starts and shows no GPU", _STATUSES[100][1]
        )
    else:
        version = _module_version(survey.machine)
        gpus = ", ".join(map(str, survey.gpus))
        text = f"{version or 'version unknown'}, CUDA {_dotted(answer.data['version'])}: {gpus}"
        yield Finding(_SUBJECT, "driver", "ok", text)


def check_driver_files(survey: Survey) -> Iterator[Finding]:
    """Versions of the kernel's module and the library, and permission for the GPU's nodes."""
    machine = survey.machine
    module = _module_version(machine)
    libraries = sorted({
        path.name.removeprefix("libcuda.so.")
        for pattern in ("/usr/lib/*/libcuda.so.*.*", "/usr/lib64/libcuda.so.*.*")
        for path in machine.glob(pattern)
    })  # fmt: skip
    if module and libraries and module not in libraries:
        yield Finding(
            _SUBJECT,
            "driver-mismatch",
            "error",
            f"the kernel's module is {module}, the library {', '.join(libraries)}",
            _STATUSES[803][1],
        )
    nodes = machine.glob("/dev/nvidia[0-9]*") + machine.glob("/dev/nvidiactl")
    nodes += machine.glob("/dev/nvidia-uvm") + machine.glob("/dev/nvmap")
    closed = [node for node in nodes if not machine.user.may(node, os.R_OK | os.W_OK)]
    if closed:
        yield Finding(
            _SUBJECT,
            "gpu-permission",
            "error",
            f"this user may not open {', '.join(f'/dev/{node.name}' for node in closed)}",
            _cure_permission(machine, closed),
        )


def check_cuda_packages(survey: Survey) -> Iterator[Finding]:
    """CUDA of installed packages against what the driver can run."""
    machine = survey.machine
    packages = find_packages(machine, r"cuda-(python|bindings)", r"tensorrt(-rtx)?-cu\d+")
    newest = survey.driver.data.get("version", 0) // 1000
    for package in packages:
        major = _cuda_major(package.name, package.version)
        if not newest or major <= newest:
            continue
        yield Finding(
            "CUDA",
            "cuda-too-new",
            "error",
            f"{package} is made for CUDA {major}; this driver runs up to CUDA "
            f"{_dotted(survey.driver.data['version'])}",
            f"update the driver to {_OLDEST_DRIVER.get(major, 'the newest')} or later, or "
            f"pip install {_older(package.name, newest)}",
        )
    yield from _check_bindings(survey)


def check_kernels(survey: Survey) -> Iterator[Finding]:
    """Our own CUDA kernels: whether their PTX is whole, and made for each GPU and its driver."""
    from runtime.engines.kernels.shipped import KERNELS, read_ptx, readable_isa  # needs NumPy

    for gpu in survey.gpus:
        major, minor = (int(part) for part in gpu.compute_capability.split("."))
        cuda = survey.driver.data["version"]
        isa = readable_isa((cuda // 1000, cuda % 1000 // 10))
        try:
            for kernel in KERNELS:
                read_ptx(kernel, (major, minor), isa)
        except EngineError as error:
            yield from_error("CUDA", "kernels-none", error, "warning")
        else:
            yield Finding("CUDA", "kernels", "ok", f"our kernels are there for {gpu}")


def _check_bindings(survey: Survey) -> Iterator[Finding]:
    machine = survey.machine
    found = find_packages(machine, r"cuda-bindings") or find_packages(machine, r"cuda-python")
    if not found:
        if survey.gpus:
            major = survey.driver.data["version"] // 1000
            yield Finding(
                "CUDA",
                "cuda-python-missing",
                "warning",
                "cuda-python is not installed; TensorRT's sessions need it",
                f"pip install 'cuda-python>=12.6,<{major + 1}'",
            )
        return
    answer = survey.ask("import", "cuda.bindings.runtime")
    if answer.kind in ("ModuleNotFoundError",):  # before 12.6.1
        answer = survey.ask("import", "cuda.cudart")
    if answer.fault:
        yield Finding(
            "CUDA",
            "cuda-python-broken",
            "error" if survey.gpus else "warning",
            f"{found[0]} does not import: {answer.fault}",
            cure_for(answer, found[0].name),
        )
        return
    findings = list(check_version("CUDA", "cuda-python", "cuda", found[0].version, found[0].name))
    yield from findings or [Finding("CUDA", "cuda-python", "ok", str(found[0]))]


def _judge_absence(survey: Survey, fault: str) -> Iterator[Finding]:
    """No libcuda that loads: why, by what the kernel knows."""
    machine = survey.machine
    is_there = "cannot open shared object file" not in fault or "libcuda.so.1:" not in fault
    has_kernel_part = bool(_module_version(machine)) or bool(machine.glob("/dev/nvidia[0-9]*"))
    cards = _find_cards(machine)
    if is_there and os.name != "nt":
        yield Finding(
            _SUBJECT,
            "driver-library-broken",
            "error",
            f"its library does not load: {fault}",
            "install the driver again, of one version (sudo apt install --reinstall), and reboot",
        )
    elif machine.is_in_container and (has_kernel_part or cards or survey.jetson):
        yield Finding(
            _SUBJECT,
            "driver-not-in-container",
            "error",
            "this machine has an NVIDIA GPU, and this container does not get it",
            "start it with --gpus all (Jetson: --runtime nvidia); the host needs the NVIDIA "
            "Container Toolkit",
        )
    elif has_kernel_part or survey.jetson:
        yield Finding(
            _SUBJECT,
            "driver-library-missing",
            "error",
            "the kernel has the driver, and its library libcuda.so.1 is missing",
            "sudo apt install --reinstall "
            + ("nvidia-l4t-cuda" if survey.jetson else "libnvidia-compute-XXX of the same version"),
        )
    elif cards:
        has_nouveau = machine.path("/sys/module/nouveau").is_dir()
        rival = "; nouveau holds it" if has_nouveau else ""
        yield Finding(
            _SUBJECT,
            "driver-missing",
            "error",
            f"an NVIDIA GPU is there (PCI {', '.join(cards)}) and no driver{rival}",
            "sudo ubuntu-drivers install (Debian: sudo apt install nvidia-driver), and reboot",
        )
    else:
        yield Finding(_SUBJECT, "driver-none", "ok", "no NVIDIA GPU here; bundles run on the CPU")


def _cure_permission(machine: Machine, closed: list[Path]) -> str:
    cures = dict.fromkeys(cure_for_node(machine, node) for node in closed)
    return "; ".join(cures)


def _find_cards(machine: Machine) -> list[str]:
    return [
        vendor.parent.name
        for vendor in machine.glob("/sys/bus/pci/devices/*/vendor")
        if machine.read(vendor) == _VENDOR
        and machine.read(vendor.with_name("class"))[:6] in _DISPLAY_CLASSES
    ]


def _module_version(machine: Machine) -> str:
    lines = machine.read("/proc/driver/nvidia/version").splitlines()
    match = _VERSION.search(lines[0]) if lines else None
    return match[1] if match else ""


def _cuda_major(name: str, version: str) -> int:
    match = re.search(r"-cu(\d\d)", name)
    return int(match[1]) if match else (version_key(version) or (0,))[0]


def _older(name: str, major: int) -> str:
    if "-cu" in name:
        return re.sub(r"-cu\d+", f"-cu{major}", name)
    return f"'{name}>=12.6,<{max(major, 12) + 1}'"


def _dotted(version: int) -> str:
    """CUDA's 12080 -> "12.8"."""
    return f"{version // 1000}.{version % 1000 // 10}"
