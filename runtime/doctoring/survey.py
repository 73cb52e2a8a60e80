"""What several checks need to know of a machine, each asked once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runtime.doctoring.machine import Machine
from runtime.doctoring.probing import Answer, ask

_RELEASE = re.compile(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_JETPACKS = {32: "4", 35: "5", 36: "6", 38: "7", 39: "7"}  # L4T's major version -> JetPack's


FLAVOURS = ("tensorrt", "tensorrt_rtx")  # as `runtime.engines.flavour`, which needs NumPy


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU: its name, and its compute capability such as "8.7"."""

    name: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} (sm_{self.compute_capability.replace('.', '')})"


@dataclass(frozen=True, slots=True)
class Jetson:
    """A Jetson: its name, and the major and minor version of L4T, such as (36, "4.7")."""

    name: str
    major: int
    minor: str

    @property
    def jetpack(self) -> str:
        """Such as "6"; empty where this version of L4T is not known."""
        return _JETPACKS.get(self.major, "")


class Survey:
    """A machine and the bundles to look at; answers of libraries are kept.

    Args:
        machine: what the checks look at.
        bundles: folders of bundles.
    """

    def __init__(self, machine: Machine, bundles: Sequence[Path] = ()) -> None:
        self.machine = machine
        self.bundles = tuple(bundles)
        self._answers: dict[tuple[Any, ...], Answer] = {}

    def ask(self, probe: str, *arguments: Any) -> Answer:
        """`probing.ask`, once for the same question."""
        key = (probe, *arguments)
        if key not in self._answers:
            self._answers[key] = ask(self.machine, probe, *arguments)
        return self._answers[key]

    @property
    def driver(self) -> Answer:
        """What the NVIDIA driver says: `probes.probe_cuda_driver`."""
        return self.ask("cuda_driver")

    @cached_property
    def gpus(self) -> list[Gpu]:
        """The NVIDIA GPUs that work; empty where the driver does not."""
        return [Gpu(**each) for each in self.driver.data.get("devices", ())]

    @cached_property
    def cpu_flags(self) -> frozenset[str]:
        """The processor's flags, such as "avx512_vnni"; needs NumPy."""
        from runtime.sessions.cpu_flags import read_flags

        return read_flags(self.machine.path("/proc/cpuinfo"))

    @cached_property
    def jetson(self) -> Jetson | None:
        """None where this machine is no Jetson."""
        match = _RELEASE.search(self.machine.read("/etc/nv_tegra_release"))
        if match is None:
            return None
        name = self.machine.read("/proc/device-tree/model") or "NVIDIA Jetson"
        return Jetson(name, int(match[1]), match[2])

    @cached_property
    def backends(self) -> dict[str, str]:
        """Backend -> its version where it can run bundles here.

        Backends are those of `runtime.sessions`; "onnxruntime-cuda" is ONNX Runtime on the GPU.
        """
        found = {}
        if self.gpus:
            for name in FLAVOURS:
                if version := self.tensorrt_version(name):
                    found[name] = version
        for name in ("openvino", "onnxruntime"):
            if self.machine.finds_module(name) is not None and not self.ask(name).fault:
                found[name] = str(self.ask(name).data["version"])
        data = self.ask("onnxruntime").data if "onnxruntime" in found else {}
        has_cuda = "CUDAExecutionProvider" in data.get("providers", ())
        if self.gpus and has_cuda and not data["cuda_fault"]:
            found["onnxruntime-cuda"] = found["onnxruntime"]
        return found

    def tensorrt_version(self, flavour: str) -> str:
        """Of a TensorRT that loads; empty where it is absent or broken."""
        if self.machine.finds_module(flavour) is None:
            return ""
        return str(self.ask("tensorrt", flavour).data.get("version", ""))
