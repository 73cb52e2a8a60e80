"""Float32 matrix products are built for Turing too, where TensorRT-RTX has none."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from runtime.engines.build import BuildOptions, build_plan
from runtime.engines.flavour import load_flavour
from runtime.engines.turing import replace_float32_products

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build real engines")

SHAPES = {b: {"left": (b, 5, 8), "right": (b, 8, 12)} for b in (1, 4)}
PRODUCTS = {
    "plain": "product = MatMul(left, right)",
    "of a transposed left": (
        "turned = Transpose<perm = [0, 2, 1]>(left) back = Transpose<perm = [0, 2, 1]>(turned)"
        " product = MatMul(back, right)"
    ),
}


def write(folder: Path, product: str) -> Path:
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
    masks (float[B, 5, 8] left, float[B, 8, 12] right) => (float[B, 5, 12] soft)
    {{ {product} soft = Sigmoid(product) }}"""
    path = folder / "masks.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def parsed(path: Path):
    trt = load_flavour("tensorrt_rtx").module
    flavour = load_flavour("tensorrt_rtx")
    builder = trt.Builder(flavour.logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, flavour.logger)
    assert parser.parse_from_file(str(path))
    return trt, builder, network, parser


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_a_float32_product_builds_for_turing(product, tmp_path):
    path = write(tmp_path, product)
    flavour = load_flavour("tensorrt_rtx")
    options = BuildOptions(targets=("SM75",))
    plan = build_plan(path, flavour=flavour, precision="fp32", shapes=SHAPES, options=options)
    assert plan.data


def test_the_sum_has_the_product_s_shape_and_feeds_what_read_it(tmp_path):
    trt, _builder, network, _parser = parsed(write(tmp_path, PRODUCTS["plain"]))
    assert replace_float32_products(trt, network) == 1
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    (total,) = [layer for layer in layers if layer.type == trt.LayerType.REDUCE]
    assert tuple(total.get_output(0).shape) == (-1, 5, 12)
    (reader,) = [layer for layer in layers if layer.type == trt.LayerType.ACTIVATION]
    assert reader.get_input(0).name == total.get_output(0).name


def test_a_half_product_is_left_alone(tmp_path):
    text = """<ir_version: 9, opset_import: ["" : 18]>
    masks (float16[B, 5, 8] left, float16[B, 8, 12] right) => (float16[B, 5, 12] product)
    { product = MatMul(left, right) }"""
    path = tmp_path / "half.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    trt, _builder, network, _parser = parsed(path)
    assert replace_float32_products(trt, network) == 0
