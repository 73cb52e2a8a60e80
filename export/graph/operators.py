"""kestrel::select and kestrel::nms in PyTorch, and their way into an ONNX file.

    scores, anchors, classes = torch.ops.kestrel.select(logits, score_threshold, T, "sigmoid")
    num_detections, boxes, scores, classes, indices = torch.ops.kestrel.nms(
        boxes, scores, classes, iou_threshold, M, "greedy", 200)

Both run in eager mode (the torch side of verification) and trace with a symbolic batch. Export:

    program = torch.onnx.export(
        model, ..., opset_version=18, custom_translation_table=translation_table())
    model = attach_functions(program.model_proto, early_exit=True, inline=True)

The first leaves single nodes kestrel.KestrelSelect and kestrel.KestrelNms, the second gives
them their definition in standard operators (`export/graph/select.py`, `export/graph/nms.py`, where
the semantics are written down).
"""

from collections.abc import Callable
from typing import Any

import onnx
import onnx.checker
import onnx.helper
import onnx.inliner
import torch
from onnx import TensorProto
from onnx.defs import OpSchema
from onnxscript.values import Op as OnnxOp
from onnxscript.values import Opset
from torch import Tensor

from export.graph import nms, select
from export.graph.shapes import drop_unread, fold_shapes, infer_shapes
from export.graph.walking import attribute, walk
from training.layers.suppression import PER_CLASS_LIMIT, keep_rows

PLUGIN_NAMESPACE = "plugin_namespace"  # an attribute that TensorRT reads, and nobody else
MINIMUM_IR_VERSION = 9  # default values of function attributes


# ----------------------------------------------------------------------------------- PyTorch side


@torch.library.custom_op("kestrel::select", mutates_args=())
def select_pairs(
    logits: Tensor, score_threshold: Tensor, candidates: int, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Pick the T best (anchor, class) pairs; the definition stands in `export/graph/select.py`.

    Args:
        logits: (B, A, K) f32.
        score_threshold: (B, K) f32, in units of a score.
        candidates: T.
        activation: "sigmoid" or "none".

    Returns:
        scores (B, T) f32, anchors (B, T) i64, classes (B, T) i64; empty rows are 0.
    """
    _check_select(logits, score_threshold, candidates, activation)
    lowest = torch.finfo(torch.float32).min
    cut = _cut(score_threshold, activation)  # (B, K)
    masked = torch.where(logits > cut[:, None, :], logits, lowest).flatten(1)  # (B, A * K)
    # topk breaks ties at will, but its values are right: use the last one and sort what reaches it.
    least = masked.topk(candidates, dim=1).values[:, -1]
    scores = logits.new_zeros(logits.shape[0], candidates)
    flat = torch.zeros_like(scores, dtype=torch.int64)
    for row, values in enumerate(masked):
        at = ((values >= least[row]) & (values > lowest)).nonzero()[:, 0]
        order = values[at].sort(descending=True, stable=True).indices[:candidates]
        top = values[at[order]]
        scores[row, : len(order)] = _score(top, activation)
        flat[row, : len(order)] = at[order]
    return scores, flat // logits.shape[2], flat % logits.shape[2]


@select_pairs.register_fake
def _(
    logits: Tensor, score_threshold: Tensor, candidates: int, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    _check_select(logits, score_threshold, candidates, activation)
    rows = (logits.shape[0], candidates)
    return (
        logits.new_empty(rows),
        logits.new_empty(rows, dtype=torch.int64),
        logits.new_empty(rows, dtype=torch.int64),
    )


@torch.library.custom_op("kestrel::nms", mutates_args=())
def suppress(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    iou_threshold: Tensor,
    max_detections: int,
    method: str = "greedy",
    per_class_limit: int = PER_CLASS_LIMIT,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Suppress overlapping boxes per class; `export/graph/nms.py` has the definition.

    Args:
        boxes: (B, T, 4) f32 as (x1, y1, x2, y2).
        scores: (B, T) f32, falling, 0 in empty rows.
        classes: (B, T) i64.
        iou_threshold: (B) f32, at least 0.
        max_detections: M.
        method: "greedy" or "fast".
        per_class_limit: rows of a class that Fast NMS looks at.

    Returns:
        num_detections (B) i32, boxes (B, M, 4) f32, scores (B, M) f32, classes (B, M) i32 with -1
        in padding, and indices (B, M) i64 into the T rows.
    """
    _check_nms(boxes, scores, classes, iou_threshold, max_detections)
    nms.check_method(method)
    batch = boxes.shape[0]
    kept_boxes = boxes.new_zeros(batch, max_detections, 4)
    kept_scores = boxes.new_zeros(batch, max_detections)
    kept_classes = classes.new_full((batch, max_detections), -1, dtype=torch.int32)
    indices = classes.new_zeros(batch, max_detections)
    num_detections = classes.new_zeros(batch, dtype=torch.int32)
    for row in range(batch):
        frame = (boxes[row], scores[row], classes[row], iou_threshold[row])
        kept = keep_rows(*frame, method, per_class_limit)[:max_detections]
        num = len(kept)
        num_detections[row] = num
        indices[row, :num] = kept
        kept_boxes[row, :num] = boxes[row, kept]
        kept_scores[row, :num] = scores[row, kept]
        kept_classes[row, :num] = classes[row, kept].int()
    return num_detections, kept_boxes, kept_scores, kept_classes, indices


@suppress.register_fake
def _(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    iou_threshold: Tensor,
    max_detections: int,
    method: str = "greedy",
    per_class_limit: int = PER_CLASS_LIMIT,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_nms(boxes, scores, classes, iou_threshold, max_detections)
    rows = (boxes.shape[0], max_detections)
    return (
        boxes.new_empty(rows[0], dtype=torch.int32),
        boxes.new_empty(*rows, 4),
        boxes.new_empty(rows),
        boxes.new_empty(rows, dtype=torch.int32),
        boxes.new_empty(rows, dtype=torch.int64),
    )


def _cut(score_threshold: Tensor, activation: str) -> Tensor:
    """Give the threshold (B, K) in the units of the logits."""
    if activation == "none":
        return score_threshold.clamp(min=0)
    cut = (score_threshold / (1 - score_threshold)).log()
    cut = torch.where(score_threshold > 0, cut, torch.finfo(torch.float32).min)
    return torch.where(score_threshold < 1, cut, torch.inf)


def _score(logits: Tensor, activation: str) -> Tensor:
    """Turn the logits of candidates into scores, which are above 0."""
    tiny = torch.finfo(torch.float32).tiny
    return logits.sigmoid().clamp(min=tiny) if activation == "sigmoid" else logits


def _check_select(
    logits: Tensor, score_threshold: Tensor, candidates: int, activation: str
) -> None:
    if activation not in select.ACTIVATIONS:
        raise ValueError(
            f"activation is {activation!r}, expected one of {', '.join(select.ACTIVATIONS)}. "
            "Apply any other activation in the model and pass 'none'."
        )
    _check_tensor("logits", logits, torch.float32, ("B", "A", "K"))
    _check_tensor("score_threshold", score_threshold, torch.float32, ("B", "K"))
    select.check_candidates(candidates, num_anchors=logits.shape[1], num_classes=logits.shape[2])


def _check_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: Tensor, max_detections: int
) -> None:
    _check_tensor("boxes", boxes, torch.float32, ("B", "T", "4"))
    _check_tensor("scores", scores, torch.float32, ("B", "T"))
    _check_tensor("classes", classes, torch.int64, ("B", "T"))
    _check_tensor("iou_threshold", iou_threshold, torch.float32, ("B",))
    if max_detections < 1:
        raise ValueError(
            f"max_detections is {max_detections}, expected at least 1. Ask for 1 or more."
        )


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[str, ...]) -> None:
    if tensor.dtype != dtype or tensor.dim() != len(shape):
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} "
            f"({', '.join(shape)}). Convert it before the call: selection and suppression have "
            "the same types in every precision."
        )


# -------------------------------------------------------------------------------------- ONNX side


# Outputs of the two nodes: element type, and what follows (B, rows) in the shape; None is (B).
OUTPUTS: dict[str, dict[str, tuple[str, tuple[int, ...] | None]]] = {
    select.OP_TYPE: {"scores": ("float", ()), "anchors": ("int64", ()), "classes": ("int64", ())},
    nms.OP_TYPE: {
        "num_detections": ("int32", None),
        "det_boxes": ("float", (4,)),
        "det_scores": ("float", ()),
        "det_classes": ("int32", ()),
        "det_indices": ("int64", ()),
    },
}
# The attribute that says how many rows they have.
ROWS = {select.OP_TYPE: "candidates", nms.OP_TYPE: "max_detections"}


def _make_node_writer(
    op_type: str, inputs: dict[str, str], attributes: dict[str, OpSchema.AttrType]
) -> OnnxOp:
    """Describe a node to the exporter: element types of its inputs, types of its attributes."""
    schema = OpSchema(
        op_type,
        select.DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(name, f"tensor({kind})") for name, kind in inputs.items()],
        outputs=[
            OpSchema.FormalParameter(name, f"tensor({kind})")
            for name, (kind, _) in OUTPUTS[op_type].items()
        ],
        attributes=[
            OpSchema.Attribute(name, kind, required=True) for name, kind in attributes.items()
        ],
    )
    return OnnxOp(Opset(select.DOMAIN, 1), op_type, schema)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Say how torch.onnx.export writes the two operators, each as one node."""
    select_node = _make_node_writer(
        select.OP_TYPE,
        {"logits": "float", "score_threshold": "float"},
        {"candidates": OpSchema.AttrType.INT, "activation": OpSchema.AttrType.STRING},
    )
    nms_node = _make_node_writer(
        nms.OP_TYPE,
        {"boxes": "float", "scores": "float", "classes": "int64", "iou_threshold": "float"},
        {
            "max_detections": OpSchema.AttrType.INT,
            "method": OpSchema.AttrType.STRING,
            "per_class_limit": OpSchema.AttrType.INT,
        },
    )

    def write_select(logits: Any, score_threshold: Any, candidates: int, activation: str) -> Any:
        return select_node(logits, score_threshold, candidates=candidates, activation=activation)

    def write_nms(
        boxes: Any,
        scores: Any,
        classes: Any,
        iou_threshold: Any,
        max_detections: int,
        method: str = "greedy",
        per_class_limit: int = PER_CLASS_LIMIT,
    ) -> Any:
        return nms_node(
            boxes,
            scores,
            classes,
            iou_threshold,
            max_detections=max_detections,
            method=method,
            per_class_limit=per_class_limit,
        )

    return {
        torch.ops.kestrel.select.default: write_select,
        torch.ops.kestrel.nms.default: write_nms,
    }


def attach_functions(model: onnx.ModelProto, *, early_exit: bool, inline: bool) -> onnx.ModelProto:
    """Give the Kestrel nodes of a model their definition in standard operators.

    Args:
        model: opset 18 or 19; is not changed.
        early_exit: the body of KestrelNms for CPUs; False is the body for TensorRT
            (`export/graph/nms.py`).
        inline: replace the nodes by their bodies: standard operators only, loads everywhere
            ("portable"). Otherwise the nodes stay and call local functions, which a TensorRT plugin
            of the same name takes precedence over.

    Returns:
        A checked model with inferred shapes.
    """
    nodes = [node for node in walk(model.graph.node) if node.domain == select.DOMAIN]
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    attached = onnx.ModelProto()
    attached.CopyFrom(model)
    attached.ir_version = max(attached.ir_version, MINIMUM_IR_VERSION)
    del attached.functions[:]
    attached.functions.extend(_functions_for(nodes, early_exit=early_exit, opset=opset))
    _import_domain(attached, used=bool(nodes) and not inline)
    if inline and nodes:
        _import_domain(attached, used=True)
        attached = onnx.inliner.inline_local_functions(attached)
        _import_domain(attached, used=False)
        attached = fold_shapes(attached)
        drop_unread(attached.graph)
    else:
        _name_plugins(attached)
        _type_outputs(attached.graph, nodes)
    attached = infer_shapes(attached)
    onnx.checker.check_model(attached, full_check=True)
    return attached


def _functions_for(
    nodes: list[onnx.NodeProto], *, early_exit: bool, opset: int
) -> list[onnx.FunctionProto]:
    """Build the functions that the nodes call; a model has one body of each at most."""
    known = {select.OP_TYPE, nms.OP_TYPE}
    used = {node.op_type for node in nodes}
    if used - known:
        raise ValueError(
            f"the model has {', '.join(sorted(used - known))} in domain "
            f"{select.DOMAIN!r}, expected {' and '.join(sorted(known))}. Export with "
            "translation_table() of this version."
        )
    functions = []
    if select.OP_TYPE in used:
        activation = _the_one(nodes, select.OP_TYPE, "activation", "sigmoid")
        functions.append(select.select_function(activation=activation, opset=opset))
    if nms.OP_TYPE in used:
        method = _the_one(nodes, nms.OP_TYPE, "method", "greedy")
        functions.append(nms.nms_function(early_exit=early_exit, method=method, opset=opset))
    return functions


def _the_one(nodes: list[onnx.NodeProto], op_type: str, name: str, default: str) -> Any:
    """Give an attribute in which all nodes of a type must agree: they share one body."""
    values = {attribute(node, name, default) for node in nodes if node.op_type == op_type}
    if len(values) > 1:
        raise ValueError(
            f"the {op_type} nodes have the {name}s {sorted(map(str, values))}, expected one. "
            "Use the same for all."
        )
    return values.pop()


def _name_plugins(model: onnx.ModelProto) -> None:
    """Say whose plugins take precedence: TensorRT before 10.10 does not read it from the domain."""
    for node in walk(model.graph.node):
        if node.domain == select.DOMAIN and not attribute(node, PLUGIN_NAMESPACE, ""):
            node.attribute.append(onnx.helper.make_attribute(PLUGIN_NAMESPACE, select.DOMAIN))


def detach_functions(model: onnx.ModelProto) -> None:
    """Take out what `attach_functions` added for plugins: the graph is as the trace gave it."""
    del model.functions[:]
    for node in walk(model.graph.node):
        for entry in [each for each in node.attribute if each.name == PLUGIN_NAMESPACE]:
            node.attribute.remove(entry)


def _type_outputs(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Write the types of what the nodes give; B is the first size of the graph's first input."""
    first = graph.input[0].type.tensor_type.shape.dim[0]
    batch = first.dim_param or first.dim_value
    outputs = {output for node in nodes for output in node.output if output}
    others = [info for info in graph.value_info if info.name not in outputs]
    for node in nodes:
        rows = attribute(node, ROWS[node.op_type], 0)
        for name, (kind, after) in zip(node.output, OUTPUTS[node.op_type].values(), strict=False):
            if name and name not in {output.name for output in graph.output}:
                shape = [batch] if after is None else [batch, rows, *after]
                others.append(
                    onnx.helper.make_tensor_value_info(
                        name, TensorProto.DataType.Value(kind.upper()), shape
                    )
                )
    del graph.value_info[:]
    graph.value_info.extend(others)


def _import_domain(model: onnx.ModelProto, *, used: bool) -> None:
    """Set or remove the import of our domain."""
    others = [entry for entry in model.opset_import if entry.domain != select.DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(others)
    if used:
        model.opset_import.append(onnx.helper.make_opsetid(select.DOMAIN, 1))
