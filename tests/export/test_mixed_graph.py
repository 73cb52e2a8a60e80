"""The mixed graph: int8 products as chosen, half elsewhere in the trunk, a float32 tail."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.adding import GRAPH, float_graph
from export.graph.lint import lint
from export.graph.operators import attach_functions
from export.graph.types_audit import audit_types
from export.precision.half import to_half
from export.precision.int8.calibration import Calibration
from export.precision.int8.placement import find_last_products, plan_placement
from export.precision.mixed import (
    ASSIGNMENT_NAME,
    Assignment,
    find_int8,
    read_assignment,
    write_assignments,
)
from export.precision.search.grouping import group_products
from export.precision.writing import convert_again
from runtime.contract.bundle import Bundle
from runtime.contract.errors import KestrelError
from runtime.sessions import open_session


@pytest.fixture(scope="module")
def base(written_bundle: Path) -> onnx.ModelProto:
    return float_graph(Bundle.open(written_bundle))


@pytest.fixture(scope="module")
def assignment(base: onnx.ModelProto, with_mixed: Path) -> Assignment:
    """Of `with_mixed`: every second group in float."""
    return read_assignment(with_mixed / ASSIGNMENT_NAME, GRAPH, base)


@pytest.fixture(scope="module")
def calibration(assignment: Assignment) -> Calibration:
    return assignment.calibration


def float_products(model: onnx.ModelProto) -> dict[str, int]:
    """First output of each product that is not int8 -> type of the weights that it reads."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    int8 = find_int8(model)
    return {
        node.output[0].removesuffix(".half"): kinds[node.input[1]]
        for node in model.graph.node
        if node.op_type == "Conv" and node.output[0] not in int8
    }


def test_products_are_int8_as_chosen_and_half_elsewhere(base, assignment):
    mixed = assignment.to_mixed(base)
    planned = plan_placement(base, float_nodes=assignment.float_nodes)
    assert find_int8(mixed) == {*planned.products}
    others = float_products(mixed)
    assert others.keys() == {*assignment.float_nodes} | find_last_products(base)
    assert {*others.values()} == {onnx.TensorProto.FLOAT16}


def test_half_of_the_groups_are_float_in_the_bundle_of_these_tests(base, assignment):
    groups = group_products(base)
    assert len(groups) > 10
    assert {*assignment.float_nodes} == {n for group in groups[::2] for n in group.products}


def test_file_for_cpus_has_float32_in_place_of_half(base, assignment, with_mixed):
    cpu = onnx.load(Bundle.open(with_mixed).file("model", "mixed", "cpu"))
    kinds = {tensor.data_type for tensor in cpu.graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in kinds
    assert onnx.TensorProto.UINT8 in kinds
    assert find_int8(cpu) == find_int8(assignment.to_mixed(base))


def test_nothing_in_half_lies_between_int8_products(base, calibration):
    mixed = Assignment(calibration=calibration, float_nodes=()).to_mixed(base)
    for node in mixed.graph.node:
        if node.op_type == "Cast" and node.output[0].endswith((".half", ".float32")):
            assert ".q" not in node.input[0]
    makers = {name: node.op_type for node in mixed.graph.node for name in node.output}
    quantised = [n.input[0] for n in mixed.graph.node if n.op_type == "QuantizeLinear"]
    assert "Cast" not in {makers.get(name) for name in quantised}


def test_all_in_float_is_the_fp16_graph(base, calibration):
    everything = tuple(name for group in group_products(base) for name in group.products)
    mixed = Assignment(calibration=calibration, float_nodes=everything).to_mixed(base)
    half = to_half(base)
    assert [n.SerializeToString() for n in mixed.graph.node] == [
        n.SerializeToString() for n in half.graph.node
    ]


def test_audit_of_the_files_agrees_with_the_plan(base, assignment, with_mixed):
    bundle = Bundle.open(with_mixed)
    groups = group_products(base)
    int8 = sum(g.macs for g in groups if not {*g.products} & {*assignment.float_nodes})
    audits = {
        kind: audit_types(onnx.load(bundle.file("model", "mixed", kind)), "mixed")
        for kind in ("portable", "cpu")
    }
    assert {audit.verdict for audit in audits.values()} == {"pass"}
    assert {audit.macs["int8"] for audit in audits.values()} == {int8}
    assert audits["portable"].macs["fp16"] == audits["cpu"].macs["fp32"]
    assert {*audits["portable"].tail} == {"fp32"}


@pytest.mark.parametrize("target", ["portable", "plugin"])
def test_mixed_graph_breaks_no_rule(base, assignment, target):
    is_plugin = target == "plugin"
    proto = attach_functions(
        assignment.to_mixed(base), early_exit=not is_plugin, inline=not is_plugin
    )
    assert lint(proto, target=target) == []


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_cpu_backends_run_mixed_and_find_what_int8_finds(with_mixed, backend):
    bundle = Bundle.open(with_mixed)
    feeds = {name: value[:4] for name, value in bundle.samples().feeds.items()}
    found = {}
    for precision in ("fp32", "mixed"):
        session = open_session(bundle, backend, precision)
        found[precision] = session.run(feeds)["scores"]
        session.close()
    assert found["mixed"].shape == found["fp32"].shape
    assert 0 < np.abs(found["mixed"] - found["fp32"]).mean() < 0.05


def test_onnx_runtime_takes_the_file_with_half_as_well(with_mixed):
    import onnxruntime

    bundle = Bundle.open(with_mixed)
    session = onnxruntime.InferenceSession(
        bundle.file("model", "mixed"), providers=["CPUExecutionProvider"]
    )
    feeds = {name: value[:1] for name, value in bundle.samples().feeds.items()}
    assert len(session.run(None, feeds)) == len(bundle.manifest.outputs)


def test_assignment_is_read_as_it_was_written(base, assignment, tmp_path):
    path = tmp_path / ASSIGNMENT_NAME
    write_assignments(path, {GRAPH: assignment})
    assert read_assignment(path, GRAPH, base) == assignment


def test_assignment_of_another_network_is_refused(base, assignment, tmp_path):
    other = dataclasses.replace(assignment.calibration, network_sha256="0" * 64)
    path = tmp_path / ASSIGNMENT_NAME
    write_assignments(path, {GRAPH: dataclasses.replace(assignment, calibration=other)})
    with pytest.raises(KestrelError, match="another network"):
        read_assignment(path, GRAPH, base)


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 9, "graphs": {}}', "[1]"])
def test_damaged_assignment_is_refused(base, text, tmp_path):
    path = tmp_path / ASSIGNMENT_NAME
    path.write_text(text)
    with pytest.raises(KestrelError, match="Search again"):
        read_assignment(path, GRAPH, base)


def test_fresh_export_of_mixed_is_what_the_bundle_holds(base, with_mixed):
    fresh = convert_again(base, GRAPH, "mixed", with_mixed)
    written = onnx.load(Bundle.open(with_mixed).file("model", "mixed"))
    expected = attach_functions(fresh, early_exit=True, inline=True)
    assert written.graph == expected.graph
