"""Check a graph against the rules that every backend must be able to rely on.

The rules are what TensorRT 10.3 to 11.4, TensorRT-RTX, ONNX Runtime and OpenVINO all accept, and
what keeps results equal between them. A finding names the rule, the node and what to do; a clean
graph gives none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.defs
import onnx.helper
import onnx.numpy_helper
from onnx import TensorProto

from export.graph.lint_scales import QUANTISERS, check_scales
from export.graph.select import DOMAIN
from export.graph.shapes import STANDARD, known_integers
from export.graph.subject import Subject, Target
from export.graph.walking import attribute, label, reads, walk

IMAGE = "image"
MIN_OPSET, MAX_OPSET = 17, 19
MAX_TOPK = 3840  # TensorRT: "K exceeds the maximum value allowed (3840)", at build
GRID_SAMPLE_CHANGED = 20  # renamed its modes and took volumes; TensorRT before 11.2.1 knows neither

# Data-dependent shapes, ops that no TensorRT has, and ops that it has only as a plugin.
UNSUPPORTED = {
    *("NonMaxSuppression", "NonZero", "Unique", "Compress", "RoiAlign", "DeformConv"),
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
    *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"),
    *("SequenceLength", "SequenceMap", "SplitToSequence", "ConcatFromSequence"),
    *("Optional", "OptionalGetElement", "OptionalHasElement"),
    *("CenterCropPad", "Col2Im", "AffineGrid", "MaxUnpool", "BitShift", "Bernoulli"),
    *("ImageDecoder", "DFT"),
}
RESIZE_MODES = {"nearest", "linear", "cubic"}
RESIZE_COORDINATES = {
    *("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"),
    "tf_half_pixel_for_nn",
}
ELEMENT_TYPES = {
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BOOL),
    *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64),
}
OTHER_FLOATS = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
GATHERS = {"Gather", "GatherElements", "GatherND"}  # move values and compute nothing
# Under a bf16 hint OpenVINO computes all that feeds one of these in bf16.
BF16_SINKS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "RNN", "GRU", "LSTM", "Resize"}


@dataclass(frozen=True)
class Finding:
    """A broken rule.

    Attributes:
        rule: its name, a key of RULES.
        node: name of the node, tensor, function or domain that breaks it.
        message: what was found, what was expected, what to do.
    """

    rule: str
    node: str
    message: str


# -------------------------------------------------------------------------------- the model's frame


def _check_opset(subject: Subject) -> Iterator[tuple[str, str]]:
    if not MIN_OPSET <= subject.opset <= MAX_OPSET:
        yield "", f"opset {subject.opset}, expected {MIN_OPSET} to {MAX_OPSET}. Export with 18."


def _check_function_opset(subject: Subject) -> Iterator[tuple[str, str]]:
    for function in subject.model.functions:
        opset = next((e.version for e in function.opset_import if e.domain in STANDARD), 0)
        if opset != subject.opset:
            yield (
                function.name,
                f"its body is of opset {opset}, the model of {subject.opset}; ONNX Runtime wants "
                "them equal. Build the function for the model's opset.",
            )


def _check_function_name(subject: Subject) -> Iterator[tuple[str, str]]:
    standard = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    counts = Counter(function.name for function in subject.model.functions)
    for name, count in counts.items():
        if count > 1:
            yield name, f"{count} functions have this name. TensorRT ignores domains: rename."
        if name in standard:
            yield name, "this is an operator of ONNX, and TensorRT ignores domains. Rename it."


def _check_optional_input(subject: Subject) -> Iterator[tuple[str, str]]:
    sizes = {(f.domain, f.name): len(f.input) for f in subject.model.functions}
    for node in subject.written:
        size = sizes.get((node.domain, node.op_type))
        if size is not None and (len(node.input) != size or "" in node.input):
            yield (
                label(node),
                f"its function has {size} inputs and is given {sum(map(bool, node.input))}; "
                "TensorRT knows no optional inputs of functions. Connect all of them.",
            )


def _check_domain(subject: Subject) -> Iterator[tuple[str, str]]:
    allowed = {*STANDARD} if subject.target == "portable" else {*STANDARD, DOMAIN}
    advice = f"a {subject.target} graph has {' and '.join(sorted(repr(d) for d in allowed))}"
    for entry in subject.model.opset_import:
        if entry.domain not in allowed:
            yield entry.domain, f"imports this domain; {advice}. Remove the import."
    if subject.target == "portable":
        for function in subject.model.functions:
            yield function.name, "a portable graph has no local functions. Inline it."
    defined = {(function.domain, function.name) for function in subject.model.functions}
    for node in subject.written:
        if node.domain not in allowed:
            yield label(node), f"{node.domain}.{node.op_type}; {advice}. Use standard operators."
        elif node.domain == DOMAIN and (node.domain, node.op_type) not in defined:
            yield label(node), f"{node.op_type} has no body. Run attach_functions on the model."


def _check_batch(subject: Subject) -> Iterator[tuple[str, str]]:
    firsts: set[str] = set()
    for info in (*subject.inputs(), *subject.model.graph.output):
        kind = info.type.tensor_type
        if not kind.elem_type or not kind.HasField("shape") or not kind.shape.dim:
            yield info.name, "no type or rank. Infer shapes before saving."
            continue
        firsts.add(kind.shape.dim[0].dim_param)
        if not kind.shape.dim[0].dim_param:
            yield info.name, "its first size has no name, expected the batch. Export it dynamic."
        if not all(dim.HasField("dim_value") for dim in kind.shape.dim[1:]):
            yield info.name, "a size after the batch is not fixed. Export with fixed sizes."
    if len(firsts - {""}) > 1:
        yield "", f"the batch has the names {', '.join(sorted(firsts))}. Use one."


def _check_types(subject: Subject) -> Iterator[tuple[str, str]]:
    if subject.typed[1]:
        yield "", f"types cannot be inferred: {subject.typed[1]} Make the graph valid."


def _check_image_input(subject: Subject) -> Iterator[tuple[str, str]]:
    images = [info for info in subject.inputs() if info.name == IMAGE]
    if not images:
        yield IMAGE, f"the graph has no input {IMAGE!r}. Name the frame's input so."
        return
    kind = images[0].type.tensor_type
    sizes = [dim.dim_value for dim in kind.shape.dim]
    if kind.elem_type != TensorProto.UINT8 or len(sizes) != 4 or sizes[-1] != 3:
        name = TensorProto.DataType.Name(kind.elem_type)
        yield IMAGE, f"{name} of sizes {sizes}, expected UINT8 (B, H, W, 3). Convert in the graph."
    for node in subject.nodes:
        if IMAGE in node.input and node.op_type != "Cast":
            yield label(node), f"{node.op_type} reads {IMAGE!r}; TensorRT allows Cast only there."


def _check_unread_input(subject: Subject) -> Iterator[tuple[str, str]]:
    read = {name for node in subject.model.graph.node for name in reads(node)}
    for info in subject.inputs():
        if info.name not in read:
            yield info.name, "nothing reads this input, so it has no effect. Connect or drop it."


def _check_finite(subject: Subject) -> Iterator[tuple[str, str]]:
    products = {
        name for n in walk(subject.model.graph.node) if n.op_type in BF16_SINKS for name in n.input
    }
    for tensor in subject.model.graph.initializer:
        is_float = tensor.data_type in (TensorProto.FLOAT, *OTHER_FLOATS)
        if not is_float or tensor.data_location == TensorProto.EXTERNAL:
            continue
        value = onnx.numpy_helper.to_array(tensor).astype("float64")
        is_wrong = ~np.isfinite(value) if tensor.name in products else np.isnan(value)
        if is_wrong.any():
            found = f"{np.count_nonzero(is_wrong)} of {value.size} values are NaN or infinite"
            yield tensor.name, f"{found}, expected numbers. Train again, or mend the checkpoint."


# -------------------------------------------------------------------------------------- operators


def _check_unsupported(subject: Subject) -> Iterator[tuple[str, str]]:
    for node in subject.written:
        if node.op_type in UNSUPPORTED:
            yield (
                label(node),
                f"{node.op_type} has data-dependent shapes or no TensorRT implementation. "
                "Write it in other operators (KestrelNms, GridSample, masks).",
            )


def _check_topk(subject: Subject) -> Iterator[tuple[str, str]]:
    values = known_integers(subject.inlined)
    for node in subject.nodes:
        if node.op_type != "TopK":
            continue
        count = values.get(node.input[1])
        if count is None:
            yield label(node), "its K is not fixed. Compute it from fixed sizes only."
        elif count.item() > MAX_TOPK:
            yield label(node), f"K = {count.item()}, TensorRT ends at {MAX_TOPK}. Take fewer."


def _check_grid_sample(subject: Subject) -> Iterator[tuple[str, str]]:
    for node in (n for n in subject.nodes if n.op_type == "GridSample"):
        if subject.opset >= GRID_SAMPLE_CHANGED:
            yield label(node), f"GridSample of opset {subject.opset}, expected below 20."
        if node.input[0] in subject.types and len(subject.types[node.input[0]].shape.dim) == 5:
            yield label(node), "GridSample of volumes needs TensorRT 11.2.1. Sample planes."


def _check_resize(subject: Subject) -> Iterator[tuple[str, str]]:
    for node in (n for n in subject.nodes if n.op_type == "Resize"):
        mode = attribute(node, "mode", "nearest")
        coordinates = attribute(node, "coordinate_transformation_mode", "half_pixel")
        if mode not in RESIZE_MODES or coordinates not in RESIZE_COORDINATES:
            known = ", ".join(sorted(RESIZE_COORDINATES))
            yield label(node), f"{mode} with {coordinates}; TensorRT has {known}. Choose one."
        if attribute(node, "antialias", 0):
            yield label(node), "antialias = 1, TensorRT has none. Resize before the graph."


def _check_scatter(subject: Subject) -> Iterator[tuple[str, str]]:
    for node in subject.nodes:
        reduction = attribute(node, "reduction", "none")
        if node.op_type in ("ScatterND", "ScatterElements") and reduction != "none":
            yield label(node), f"reduction = {reduction}, TensorRT has 'none' only. Rewrite it."


# ------------------------------------------------------------------------------------------- types


def _check_element_type(subject: Subject) -> Iterator[tuple[str, str]]:
    for name, kind in subject.types.items():
        if kind.elem_type and kind.elem_type not in ELEMENT_TYPES:
            found = TensorProto.DataType.Name(kind.elem_type)
            yield name, f"{found} is not on every target. Cast it to float32 or int64."


def _check_uint8(subject: Subject) -> Iterator[tuple[str, str]]:
    inputs = {info.name for info in subject.inputs()}
    outputs = {info.name for info in subject.model.graph.output}
    allowed = {"Cast"} | (QUANTISERS if subject.is_cpu_int8 else set())
    for node in subject.nodes:
        read = {name for name in node.input if subject.kind(name) == TensorProto.UINT8}
        written = {name for name in node.output if subject.kind(name) == TensorProto.UINT8}
        at_border = read <= inputs and written <= outputs
        if (read or written) and (
            node.op_type not in allowed or (node.op_type == "Cast" and not at_border)
        ):
            yield (
                label(node),
                f"{node.op_type} on uint8 ({', '.join(sorted(read | written))}); expected Cast "
                "beside the graph's inputs and outputs only. Compute in float32.",
            )


def _check_int32_bias(subject: Subject) -> Iterator[tuple[str, str]]:
    for node in subject.nodes:
        if node.op_type == "DequantizeLinear" and subject.kind(node.input[0]) == TensorProto.INT32:
            yield label(node), "dequantises int32; TensorRT refuses it. Leave the bias in float."


def _check_zero_point(subject: Subject) -> Iterator[tuple[str, str]]:
    if subject.is_cpu_int8:
        return
    constants = {t.name: t for t in subject.model.graph.initializer}
    for node in subject.written:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for node in subject.nodes:
        if node.op_type in QUANTISERS and len(node.input) > 2 and node.input[2]:
            tensor = constants.get(node.input[2])
            if tensor is None or onnx.numpy_helper.to_array(tensor).any():
                yield label(node), "zero point not 0; TensorRT refuses it. Quantise symmetrically."


def _check_float32_path(subject: Subject) -> Iterator[tuple[str, str]]:
    chosen: set[str] = set()  # tensors that depend on a TopK
    for node in subject.inlined.graph.node:
        if node.op_type == "TopK" or chosen & reads(node):
            chosen.update(node.output)
    needed = {output.name for output in subject.inlined.graph.output}
    for node in reversed(subject.inlined.graph.node):
        if not needed & {*node.output}:
            continue
        needed |= reads(node)
        if node.op_type != "TopK" and not (chosen & {*node.output}):
            continue
        checked = [*node.input, *node.output] if node.op_type == "TopK" else [*node.output]
        checked += [name for n in walk([node]) if n is not node for name in n.output]
        narrow = [name for name in checked if subject.kind(name) in OTHER_FLOATS]
        if narrow and node.op_type not in GATHERS:
            found = TensorProto.DataType.Name(subject.kind(narrow[0]))
            yield (
                label(node),
                f"{narrow[0]} is {found}; selection, decoding and suppression are float32 in "
                "every precision. Cast before the selection, exclude what follows it.",
            )


def _check_bf16_reach(subject: Subject) -> Iterator[tuple[str, str]]:
    graph = subject.inlined.graph
    safe = {output.name for output in graph.output}
    for node in reversed(graph.node):
        if safe & {*node.output} and node.op_type not in BF16_SINKS:
            safe |= reads(node)
    for node in graph.node:
        if node.op_type == "TopK" and not safe & {*node.output}:
            yield (
                label(node),
                "no output can be reached from it without a Conv, MatMul or Resize: under its "
                "default bf16 hint OpenVINO would select in bf16. Make what it selects an output.",
            )


RULES: dict[str, Callable[[Subject], Iterator[tuple[str, str]]]] = {
    "opset": _check_opset,
    "function-opset": _check_function_opset,
    "function-name": _check_function_name,
    "optional-input": _check_optional_input,
    "domain": _check_domain,
    "batch": _check_batch,
    "types": _check_types,
    "image-input": _check_image_input,
    "unread-input": _check_unread_input,
    "finite": _check_finite,
    "unsupported-op": _check_unsupported,
    "topk-limit": _check_topk,
    "grid-sample": _check_grid_sample,
    "resize": _check_resize,
    "scatter": _check_scatter,
    "element-type": _check_element_type,
    "uint8": _check_uint8,
    "int32-bias": _check_int32_bias,
    "zero-point": _check_zero_point,
    "scale": check_scales,
    "float32-path": _check_float32_path,
    "bf16-reach": _check_bf16_reach,
}


def lint(model: onnx.ModelProto, *, target: Target, is_cpu_int8: bool = False) -> list[Finding]:
    """Check a model against all rules.

    Args:
        model: is not changed. Its symbolic sizes are the batch only.
        target: "portable" allows standard operators only, "plugin" also our two nodes with their
            functions.
        is_cpu_int8: the file is model.int8.cpu.onnx: uint8 activations and zero points are allowed.

    Returns:
        Findings in the order of RULES; empty if the model is fit for every backend.
    """
    subject = Subject(model, target, is_cpu_int8)
    return [
        Finding(rule, node, message)
        for rule, check in RULES.items()
        for node, message in check(subject)
    ]
