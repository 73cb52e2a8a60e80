"""What a CPU computes in: the choice by its flags, and that results stay float32."""

import numpy as np
import pytest
from tiny_bundle import write_tiny_bundle

from runtime.contract.bundle import Bundle
from runtime.contract.errors import SessionError
from runtime.engines.openvino_layers import audit_openvino
from runtime.sessions import cpu_flags, open_session

FLAGS = {
    "avx2 alone": "sse2 avx2",
    "avx512 without vnni": "sse2 avx512f avx512bw",
    "vnni": "sse2 avx512f avx512_vnni",
    "vnni of small cores": "sse2 avx2 avx_vnni",
    "bf16 without amx": "sse2 avx512f avx512_vnni avx512_bf16",
    "amx": "sse2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16",
    "arm": "fp asimd asimddp",
}
HAS_BF16 = {"bf16 without amx", "amx"}
HAS_EXACT_INT8 = set(FLAGS) - {"avx2 alone", "avx512 without vnni"}


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Make the system list other flags; None: no list at all."""

    def set_flags(flags):
        info = tmp_path / "cpuinfo"
        info.unlink(missing_ok=True)
        if flags is not None:
            key = "Features" if "asimd" in flags else "flags"
            info.write_text(f"processor\t: 0\nmodel name\t: Some\n{key}\t\t: {flags}\n\n")
        monkeypatch.setattr(cpu_flags, "_CPU_INFO", info)
        cpu_flags.cpu_flags.cache_clear()

    yield set_flags
    cpu_flags.cpu_flags.cache_clear()


def hint_of(session):
    compiled = session.compiled("model", 1)
    return compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()


@pytest.mark.parametrize("name", FLAGS)
def test_auto_is_bf16_where_the_cpu_computes_it_in_hardware(tmp_path, pretend, name):
    pretend(FLAGS[name])
    folder = write_tiny_bundle(tmp_path / "tiny")
    session = open_session(Bundle.open(folder), "openvino", inference_precision="auto", cache=False)
    assert session._config["INFERENCE_PRECISION_HINT"] == ("bf16" if name in HAS_BF16 else "f32")
    session.close()


def test_auto_is_float32_where_flags_are_not_listed(tmp_path, pretend):
    folder = write_tiny_bundle(tmp_path / "tiny")
    pretend(None)
    session = open_session(Bundle.open(folder), "openvino", inference_precision="auto", cache=False)
    assert hint_of(session) == "f32"
    session.close()


def test_float32_is_what_is_computed_unless_asked(tmp_path):
    folder = write_tiny_bundle(tmp_path / "tiny")
    assert hint_of(open_session(Bundle.open(folder), "openvino", cache=False)) == "f32"


def test_emulated_bf16_is_refused_with_what_to_use(tmp_path, pretend):
    pretend(FLAGS["vnni"])
    folder = write_tiny_bundle(tmp_path / "tiny")
    with pytest.raises(SessionError, match="would emulate it.*Use inference_precision='f32'"):
        open_session(Bundle.open(folder), "openvino", inference_precision="bf16")


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("name", FLAGS)
def test_int8_gives_way_to_float_where_its_sums_overflow(tmp_path, pretend, caplog, name, backend):
    pretend(FLAGS[name])
    folder = write_tiny_bundle(
        tmp_path / "tiny", precisions=("fp32", "int8"), cpu_precisions=("int8",)
    )
    session = open_session(Bundle.open(folder), backend, "int8")
    is_exact = name in HAS_EXACT_INT8
    assert session.precision == ("int8" if is_exact else "fp32")
    assert ("no VNNI, so int8 sums overflow" in caplog.text) is not is_exact
    session.close()


def test_fallback_is_held_to_its_own_verdict(tmp_path, pretend):
    pretend(FLAGS["avx2 alone"])
    verdicts = {("int8", "openvino"): "pass", ("fp32", "openvino"): "fail"}
    folder = write_tiny_bundle(tmp_path / "tiny", precisions=("fp32", "int8"), verdicts=verdicts)
    with pytest.raises(ValueError, match="the verdict on fp32 with openvino is 'fail'"):
        open_session(Bundle.open(folder), "openvino", "int8")


def test_bundle_of_int8_alone_is_loaded_with_a_warning(tmp_path, pretend, caplog):
    pretend(FLAGS["avx2 alone"])
    folder = write_tiny_bundle(tmp_path / "tiny", precisions=("int8",))
    session = open_session(Bundle.open(folder), "openvino")
    assert session.precision == "int8"
    assert "the bundle has nothing else" in caplog.text
    session.close()


def test_flags_of_this_machine_are_read():
    flags = cpu_flags.cpu_flags()
    assert {"sse2", "asimd"} & flags


needs_bf16 = pytest.mark.skipif(not cpu_flags.is_bf16_fast(), reason="this CPU has no bf16")


@needs_bf16
@pytest.mark.parametrize("start", ["cold", "from the cache"])
def test_bf16_leaves_selection_boxes_and_scores_in_float32(tiny_exported, start):
    bundle = Bundle.open(tiny_exported)
    for _ in range(1 if start == "cold" else 2):
        session = open_session(bundle, "openvino", inference_precision="bf16")
        compiled = [session.compiled("model", batch) for batch in bundle.manifest.batches]
        session.close()
    for each in compiled:
        audit = audit_openvino(each, "fp32", inference_precision="bf16")
        assert audit.verdict == "pass", audit.reasons
        assert audit.shares["bf16"] > 0.95
        assert set(audit.tail) == {"fp32"}
        assert audit.tail["fp32"] > 10


@needs_bf16
def test_boxes_and_scores_under_bf16_are_finer_than_bf16(written_bundle):
    bundle = Bundle.open(written_bundle)
    results = {}
    for hint in ("f32", "bf16"):
        session = open_session(bundle, "openvino", inference_precision=hint, cache=False)
        feeds = {name: array[:4] for name, array in bundle.samples().feeds.items()}
        results[hint] = session.run(feeds)
        session.close()
    found = results["bf16"]
    assert not np.array_equal(found["scores"], results["f32"]["scores"])  # bf16 was computed
    for name in ("boxes_xyxy", "scores"):
        values = found[name][np.nonzero(found[name])]
        is_rounded = (values.view(np.uint32) & 0xFFFF) == 0  # what bf16 can hold
        assert len(values) > 20
        assert is_rounded.mean() < 0.5, name


def test_frames_reach_the_engine_as_they_are(written_bundle):
    bundle = Bundle.open(written_bundle)
    session = open_session(bundle, "openvino", cache=False)
    compiled = session.compiled("model", 1)
    place = session.name_ports(compiled.inputs).index("image")
    assert compiled.input(place).get_element_type().get_type_name() == "u8"
    feeds = {name: array[:1].copy() for name, array in bundle.samples().feeds.items()}
    stream = session.open_stream()
    stream.submit(feeds).result()
    request = stream._rings["model", 1][-1]
    assert request.handle.get_input_tensor(place).data.ctypes.data == feeds["image"].ctypes.data
    stream.close()
    session.close()
