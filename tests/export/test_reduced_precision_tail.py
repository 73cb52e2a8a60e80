"""Exported graphs in OpenVINO under every reduced precision: results stay float32."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.contract.bundle import Bundle
from runtime.engines.openvino_layers import audit_openvino
from runtime.sessions import open_session
from runtime.sessions.cpu_flags import is_bf16_fast, is_int8_exact

HINTS = [
    "f32",
    pytest.param("bf16", marks=pytest.mark.skipif(not is_bf16_fast(), reason="CPU without bf16")),
]


@pytest.mark.skipif(not is_int8_exact(), reason="a CPU without VNNI runs the float file")
@pytest.mark.parametrize("hint", HINTS)
def test_int8_leaves_selection_boxes_and_scores_in_float32(with_int8: Path, hint: str):
    session = open_session(
        Bundle.open(with_int8), "openvino", "int8", inference_precision=hint, cache=False
    )
    for batch in Bundle.open(with_int8).manifest.batches:
        compiled = session.compiled("model", batch)  # type: ignore[attr-defined]
        audit = audit_openvino(compiled, "int8", inference_precision=hint)
        assert audit.shares["int8"] > 0.3
        assert ("bf16" in audit.shares) is (hint == "bf16")  # heads end in float
        assert set(audit.tail) == {"fp32"}
        assert audit.tail["fp32"] > 10
    session.close()
