"""What TensorRT-RTX cannot compile for Turing (SM75), said in other layers.

There it has no float32 matrix product ("FP32 GEMM is not supported"), although convolutions and all
else compile. Masks are such a product, in float32 in every precision: prototypes x coefficients.
It becomes a product of broadcast values and a sum, which the compiler fuses.
"""

from __future__ import annotations

from typing import Any

TURING = "SM75"


def replace_float32_products(trt: Any, network: Any) -> int:
    """Rewrite float32 matrix products of rank 3 in place.

    Args:
        trt: the module, of a flavour that has no float32 matrix product for Turing.
        network: parsed. Only the batch, the first side, may be open.

    Returns:
        How many there were.
    """
    found = [network.get_layer(index) for index in range(network.num_layers)]
    found = [layer for layer in found if _is_float32_product(trt, layer)]
    for layer in found:
        _rewire(network, layer.get_output(0), _multiply_and_sum(trt, network, layer))
    return len(found)


def _is_float32_product(trt: Any, layer: Any) -> bool:
    if layer.type != trt.LayerType.MATRIX_MULTIPLY:
        return False
    return all(
        layer.get_input(index).dtype == trt.float32 and len(layer.get_input(index).shape) == 3
        for index in range(2)
    )


def _multiply_and_sum(trt: Any, network: Any, layer: Any) -> Any:
    """(B, N, P) x (B, P, Q) as the sum over P of (B, N, P, 1) * (B, 1, P, Q)."""
    layer.__class__ = trt.IMatrixMultiplyLayer  # the network hands layers out as their base class
    rows = _as_rank4(network, layer.get_input(0), 3, layer.op0 == trt.MatrixOperation.TRANSPOSE)
    columns = _as_rank4(network, layer.get_input(1), 1, layer.op1 == trt.MatrixOperation.TRANSPOSE)
    product = network.add_elementwise(rows, columns, trt.ElementWiseOperation.PROD).get_output(0)
    return network.add_reduce(product, trt.ReduceOperation.SUM, 1 << 2, False).get_output(0)


def _as_rank4(network: Any, tensor: Any, place: int, is_transposed: bool) -> Any:
    """A tensor of rank 3 with a side of 1 put in at `place`."""
    sides = list(tensor.shape)
    shuffle = network.add_shuffle(tensor)
    if is_transposed:
        shuffle.first_transpose = (0, 2, 1)
        sides = [sides[0], sides[2], sides[1]]
    sides.insert(place, 1)
    shuffle.reshape_dims = tuple(sides)
    return shuffle.get_output(0)


def _rewire(network: Any, old: Any, new: Any) -> None:
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for place in range(layer.num_inputs):
            source = layer.get_input(place)
            if source is not None and source.name == old.name:
                layer.set_input(place, new)
