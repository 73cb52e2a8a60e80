"""Engines that were built with options of their own are found again where they can run."""

from __future__ import annotations

import json

import pytest
from fake_bench import COLOURS, bench, colour_bundle
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT

from runtime.contract.bundle import Bundle
from runtime.contract.errors import EngineError
from runtime.engines import choose_flavour
from runtime.engines.build import BuildOptions, check_options
from runtime.engines.cache import find_or_build
from runtime.engines.fingerprint import Device
from runtime.engines.flavour import NoFlavourError, make_flavour
from runtime.sessions.gpu import why_no_gpu

ORIN, THOR, TURING = Device("Orin", "8.7"), Device("Thor", "11.0"), Device("T4", "7.5")
ADA = Device("RTX 4060", "8.9")


@pytest.fixture(autouse=True)
def _no_user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return colour_bundle(tmp_path / "bundle")


def flavour_of(version: str = "10.3.0", name: str = "tensorrt"):
    trt = FakeTensorRT(FakeCuda(), {"model": COLOURS})
    trt.__version__ = version
    if name == "tensorrt_rtx":
        trt.ComputeCapability = type(
            "ComputeCapability", (), {"__members__": {"SM86": 1, "SM89": 2}}
        )
    return make_flavour(name, trt)


def build(bundle, device=ORIN, version="10.3.0", name="tensorrt", **options):
    given = BuildOptions(**options) if options else None
    flavour = flavour_of(version, name)
    return find_or_build(bundle, "model", "fp32", flavour, device=device, options=given)


FLAGS = {
    "a workspace": {"workspace_bytes": 1 << 20},
    "a level": {"optimisation_level": 5},
    "version-compatible": {"is_version_compatible": True},
    "hardware-compatible": {"is_hardware_compatible": True},
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_session_takes_the_engine_that_was_built_with_flags(bundle, flags):
    with bench(bundle, build=BuildOptions(**flags)) as each:
        made = each.session.engine_files["model"]
        assert each.trt.num_builds == 1
    with bench(bundle) as each:
        found = each.session.engine_files["model"]
        assert (found.fingerprint, each.trt.num_builds) == (made.fingerprint, 0)


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_engine_is_not_taken_where_other_options_are_asked_for(bundle, flags):
    made = build(bundle, **flags)
    other = build(bundle, optimisation_level=0)
    assert other.is_new
    assert other.fingerprint != made.fingerprint


def test_newest_of_several_is_taken(bundle):
    build(bundle)
    newest = build(bundle, optimisation_level=5)
    assert build(bundle).fingerprint == newest.fingerprint


def test_damaged_engine_is_passed_over_for_an_older_one(bundle):
    older = build(bundle, optimisation_level=1)
    newest = build(bundle, optimisation_level=5)
    newest.path.write_bytes(b"damaged")
    found = build(bundle)
    assert (found.fingerprint, found.is_new) == (older.fingerprint, False)


PLACES = {
    "a later TensorRT": ({"is_version_compatible": True}, {"version": "10.9.0"}, True),
    "the next major one": ({"is_version_compatible": True}, {"version": "11.4.0"}, True),
    "an earlier TensorRT": ({"is_version_compatible": True}, {"version": "10.2.9"}, False),
    "a later one, not compatible": ({"optimisation_level": 3}, {"version": "10.9.0"}, False),
    "another GPU": ({"is_hardware_compatible": True}, {"device": THOR}, True),
    "a GPU before Ampere": ({"is_hardware_compatible": True}, {"device": TURING}, False),
    "another GPU, not compatible": ({"optimisation_level": 3}, {"device": THOR}, False),
}


@pytest.mark.parametrize(("flags", "place", "is_found"), PLACES.values(), ids=PLACES)
def test_engine_is_found_on(bundle, flags, place, is_found):
    made = build(bundle, **flags)
    found = build(bundle, **place)
    assert found.is_new != is_found
    assert (found.fingerprint == made.fingerprint) == is_found


@pytest.mark.parametrize(
    ("targets", "is_found"),
    [(("SM89",), True), (("SM86", "SM89"), True), (("SM86",), False)],
    ids=["for it", "for several", "for another"],
)
def test_rtx_engine_for_chosen_gpus_is_found_on_these(bundle, targets, is_found):
    _store_rtx(bundle, targets)
    assert build(bundle, ADA, "1.7.0", "tensorrt_rtx").is_new != is_found


def _store_rtx(bundle, targets) -> None:
    """A fake build without options, its record rewritten as if built for `targets`."""
    made = build(bundle, ADA, "1.7.0", "tensorrt_rtx", optimisation_level=2)
    path = made.path.with_suffix(".json")
    record = json.loads(path.read_text())
    record["identity"]["flags"]["targets"] = list(targets)
    path.write_text(json.dumps(record))


def test_engine_that_does_not_load_here_is_built_anew_and_found_the_next_time(bundle):
    trt = FakeTensorRT(FakeCuda(), {"model": COLOURS})
    flavour = make_flavour("tensorrt", trt)
    options = BuildOptions(is_version_compatible=True)
    find_or_build(bundle, "model", "fp32", flavour, device=ORIN, options=options)
    forced = find_or_build(bundle, "model", "fp32", flavour, device=ORIN, is_forced=True)
    found = find_or_build(bundle, "model", "fp32", flavour, device=ORIN)
    assert forced.is_new
    assert (found.fingerprint, found.is_new) == (forced.fingerprint, False)


@pytest.mark.parametrize("text", ["[]", '{"schema": 1, "fingerprint": 1, "verdict": 3}', "{"])
def test_foreign_json_beside_the_engines_is_passed_over(bundle, text):
    (bundle.folder / "engines").mkdir()
    (bundle.folder / "engines" / "notes.json").write_text(text)
    assert build(bundle).is_new


WRONG = {
    "level": ({"optimisation_level": 6}, "optimisation level 6; expected 0 to 5"),
    "workspace": ({"workspace_bytes": 0}, "workspace of 0 bytes"),
    "targets of TensorRT": ({"targets": ("SM89",)}, "for tensorrt_rtx only"),
}


@pytest.mark.parametrize(("flags", "says"), WRONG.values(), ids=WRONG)
def test_wrong_options_are_told_before_anything_is_built(flags, says):
    with pytest.raises(EngineError, match=says):
        check_options(flavour_of(), BuildOptions(**flags))


def test_rtx_needs_a_gpu_to_build_for_the_current_one():
    if not why_no_gpu():
        pytest.skip("this machine has an NVIDIA GPU")
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    with pytest.raises(NoFlavourError, match="builds on the GPU it builds for"):
        choose_flavour("tensorrt_rtx", targets=("CURRENT",))


def test_options_reach_tensorrt(tmp_path, bundle):
    seen = []
    trt = FakeTensorRT(FakeCuda(), {"model": COLOURS})

    class Builder(trt.Builder):
        def create_builder_config(self):
            seen.append(super().create_builder_config())
            return seen[-1]

    trt.Builder = Builder
    options = BuildOptions(
        workspace_bytes=5,
        optimisation_level=4,
        is_version_compatible=True,
        is_hardware_compatible=True,
        timing_cache=tmp_path / "timings",
    )
    flavour = make_flavour("tensorrt", trt)
    find_or_build(bundle, "model", "fp32", flavour, device=ORIN, options=options)
    (config,) = seen
    assert config.limits == {"workspace": 5}
    assert config.builder_optimization_level == 4
    assert config.hardware_compatibility_level == "ampere+"
    flags = trt.BuilderFlag
    assert config.flags == [flags.VERSION_COMPATIBLE, flags.EXCLUDE_LEAN_RUNTIME]
    assert (tmp_path / "timings").read_bytes() == b"timings"
