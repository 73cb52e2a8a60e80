"""Which TensorRT is there, and why one is not taken."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fake_bench import COLOURS
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT, Severity
from tiny_bundle import write_tiny_bundle

from runtime.contract.errors import BundleError, EngineError
from runtime.engines import build_all, choose_flavour, flavour, probe_flavours
from runtime.engines.flavour import NoFlavourError, load_flavour, make_flavour
from runtime.sessions.gpu import why_no_gpu


def _fake():
    return FakeTensorRT(FakeCuda(), {"model": COLOURS})


def test_probe_reports_both_flavours_with_a_reason_or_a_version():
    findings = probe_flavours()
    assert [finding.name for finding in findings] == ["tensorrt", "tensorrt_rtx"]
    for finding in findings:
        assert finding.is_usable == (finding.reason == "")
        assert finding.version or finding.reason


def test_missing_flavour_says_what_to_install(monkeypatch):
    monkeypatch.setattr(flavour.importlib.util, "find_spec", lambda name: None)
    for name, command in (
        ("tensorrt", "pip install tensorrt "),
        ("tensorrt_rtx", "pip install tensorrt-rtx"),
    ):
        with pytest.raises(NoFlavourError, match=command):
            load_flavour.__wrapped__(name)


def test_flavour_that_does_not_import_says_why(monkeypatch):
    def fail(name):
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(flavour.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(flavour.importlib, "import_module", fail)
    with pytest.raises(NoFlavourError, match="libnvinfer.so.10"):
        load_flavour.__wrapped__("tensorrt")


def test_no_flavour_is_an_engine_error_which_scripts_can_tell_apart():
    assert issubclass(NoFlavourError, EngineError)


@pytest.mark.parametrize("missing", ["OnnxParser", "Builder", "ICudaEngine"])
def test_module_without_a_class_is_refused_by_its_name(missing):
    trt = _fake()
    module = SimpleNamespace(
        **{name: getattr(trt, name) for name in dir(trt) if name != missing and name[0] != "_"}
    )
    with pytest.raises(NoFlavourError, match=f"has no {missing}"):
        make_flavour("tensorrt", module)


def test_tensorrt_8_with_weak_types_only_is_refused():
    trt = _fake()
    trt.BuilderFlag = SimpleNamespace(TF32=7, FP16=0)
    trt.NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0)
    with pytest.raises(NoFlavourError, match="strongly typed"):
        make_flavour("tensorrt", trt)


def test_later_tensorrt_without_the_flag_is_taken():
    trt = _fake()
    trt.NetworkDefinitionCreationFlag = SimpleNamespace()  # 11.x may drop it: it is always on
    assert make_flavour("tensorrt", trt).needs_gpu_to_build


def test_library_log_keeps_errors_until_they_are_taken():
    made = make_flavour("tensorrt", _fake())
    made.logger.log(Severity.ERROR, "first\n  line")
    made.logger.log(Severity.WARNING, "not an error")
    made.logger.log(Severity.VERBOSE, "chatter")
    made.logger.log(Severity.INTERNAL_ERROR, "second")
    assert made.library_log.take() == ["first line", "second"]
    assert made.library_log.take() == []


def test_building_with_tensorrt_needs_a_gpu_and_says_so(monkeypatch):
    if not why_no_gpu():
        pytest.skip("this machine has an NVIDIA GPU")
    monkeypatch.setattr(
        "runtime.engines.load_flavour", lambda name: make_flavour("tensorrt", _fake())
    )
    with pytest.raises(NoFlavourError, match="builds on the GPU.*NVIDIA driver"):
        choose_flavour("tensorrt")


def test_without_any_flavour_all_reasons_are_given(monkeypatch):
    def refuse(name):
        raise NoFlavourError(f"{name} is not installed: pip install {name}.")

    monkeypatch.setattr("runtime.engines.load_flavour", refuse)
    with pytest.raises(NoFlavourError, match="pip install tensorrt; .*pip install tensorrt_rtx"):
        choose_flavour()


def test_build_all_refuses_an_unknown_precision_before_it_looks_for_tensorrt(tmp_path):
    folder = write_tiny_bundle(tmp_path, num_samples=0)
    with pytest.raises(BundleError, match="no precision 'int8'; it has fp32"):
        build_all(folder, ["int8"])
