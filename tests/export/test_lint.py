"""Each rule of the lint finds the fault it is for, and a clean graph gives no finding."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx.parser
import pytest

from export.graph.lint import RULES, lint
from export.graph.nms import nms_function

# A small detector with everything the rules look at: frame, Q/DQ, Resize, scatter, top-k, masks.
CLEAN = """
<ir_version: 9, opset_import: ["" : 18]>
detect (uint8[B, 8, 8, 3] image, float[B, 5] score_threshold)
    => (float[B, 5] scores, uint8[B, 5, 64] masks)
<float[2, 3, 1, 1] weight = {1, 2, 3, 4, 5, 6}, float scale = {0.5}, int8 zero_point = {0},
 float[0] roi = {}, float[4] scales = {1, 1, 2, 2}, int64[2] rows = {0, -1}, int64[1] five = {5},
 int64[3] planes_shape = {0, 2, 64}, int64[1] axis = {2}, float[5, 2] mix = {1, 2, 3, 4, 5, 6, 7, 8,
 9, 0}, int64[1, 1] first = {0}, float[1, 5] zeros = {0, 0, 0, 0, 0}, float[2] bias = {1, 2}>
{
    pixels = Cast<to = 1>(image)
    planes = Transpose<perm = [0, 3, 1, 2]>(pixels)
    steps = QuantizeLinear(planes, scale, zero_point)
    real = DequantizeLinear(steps, scale, zero_point)
    features = Conv(real, weight, bias)
    larger = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">
        (features, roi, scales)
    flat = Reshape(larger, rows)
    best, places = TopK<axis = 1>(flat, five)
    passes = Less(score_threshold, best)
    kept = Where(passes, best, score_threshold)
    written = ScatterND(kept, first, zeros)
    scores = Relu(written)
    prototypes = Reshape(features, planes_shape)
    soft = MatMul(mix, prototypes)
    masks = Cast<to = 2>(soft)
}
"""


def parse(*changes: tuple[str, str]) -> onnx.ModelProto:
    text = CLEAN
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return onnx.parser.parse_model(text)


NMS_LINE = (
    "    scores = Relu(written)",
    "    number, boxes, scores, classes, at = kestrel.KestrelNms<max_detections = 5>"
    "(corners, written, labels, limits)",
)
NMS_INPUTS = (
    "score_threshold)\n    =>",
    "score_threshold, float[B, 5, 4] corners, int64[B, 5] labels, float[B] limits) =>",
)
IMPORT = ('["" : 18]', '["" : 18, "kestrel" : 1]')


def parse_with_function(*changes: tuple[str, str], opset: int = 18) -> onnx.ModelProto:
    model = parse(IMPORT, NMS_LINE, NMS_INPUTS, *changes)
    model.functions.append(nms_function(early_exit=False))
    model.functions[0].opset_import[0].version = opset
    return model


def rename_function(name: str) -> onnx.ModelProto:
    model = parse_with_function(("KestrelNms", name))
    model.functions[0].name = name
    return model


def repeat_function() -> onnx.ModelProto:
    model = parse_with_function()
    model.functions.append(model.functions[0])
    model.functions[1].domain = "other"
    return model


def drop_function_input() -> onnx.ModelProto:
    return parse_with_function(("(corners, written, labels, limits)", "(corners, written, labels)"))


def drop_output_type() -> onnx.ModelProto:
    model = parse()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def bf16_only() -> onnx.ModelProto:
    """Only masks come out, and the selection feeds their MatMul."""
    return parse(
        ("float[B, 5] scores, ", ""),
        ("scores = Relu(written)", "column = Unsqueeze(written, axis)"),
        ("MatMul(mix, prototypes)", "MatMul(column, narrow)"),
        (
            "Reshape(features, planes_shape)",
            "Reshape(features, planes_shape)\n    "
            "narrow = ReduceMax<keepdims = 1>(prototypes, five_less)",
        ),
        ("int64[1] five = {5}", "int64[1] five = {5}, int64[1] five_less = {1}"),
    )


def narrow_after_topk(kind: int) -> tuple[str, str]:
    return (
        "scores = Relu(written)",
        f"half = Cast<to = {kind}>(written)\n relu = Relu(half)\n scores = Cast<to = 1>(relu)",
    )


DYNAMIC_K = [
    ("score_threshold)\n    =>", "score_threshold, int64[1] five) =>"),
    (", int64[1] five = {5}", ""),
]
OVER_LIMIT = [
    ("[B, 5] ", "[B, 3841] "),
    ("five = {5}", "five = {3841}"),
    ("[B, 8, 8, 3]", "[B, 48, 48, 3]"),
    ("[B, 5, 64]", "[B, 5, 2304]"),
    ("{0, 2, 64}", "{0, 2, 2304}"),
    ("ScatterND(kept, first, zeros)", "Abs(kept)"),
]
FAULTS: dict[str, tuple[str, Callable[[], onnx.ModelProto]]] = {
    "opset": ("opset", lambda: parse(('"" : 18', '"" : 20'))),
    "function of another opset": ("function-opset", lambda: parse_with_function(opset=19)),
    "function named like an operator": ("function-name", lambda: rename_function("Gelu")),
    "function named like one of ai.onnx.ml": (
        "function-name",
        lambda: rename_function("TreeEnsemble"),
    ),
    "two functions of one name": ("function-name", repeat_function),
    "function input left out": ("optional-input", drop_function_input),
    "operator of another domain": (
        "domain",
        lambda: parse(
            ('"" : 18', '"" : 18, "com.microsoft" : 1'), ("= Relu(", "= com.microsoft.Gelu(")
        ),
    ),
    "our node in a portable graph": ("domain", parse_with_function),
    "our node without a body": ("domain", lambda: parse(IMPORT, NMS_LINE, NMS_INPUTS)),
    "output without a shape": ("batch", drop_output_type),
    "fixed batch": ("batch", lambda: parse(("uint8[B,", "uint8[1,"))),
    "two batch names": ("batch", lambda: parse(("float[B, 5] score_t", "float[N, 5] score_t"))),
    "symbolic width": ("batch", lambda: parse(("uint8[B, 8, 8, 3]", "uint8[B, 8, W, 3]"))),
    "types that contradict": ("types", lambda: parse(("float[B, 5] scores", "float[B, 6] scores"))),
    "no image": ("image-input", lambda: parse(("image", "frame"))),
    "float image": (
        "image-input",
        lambda: parse(("uint8[B, 8, 8, 3] image", "float[B, 8, 8, 3] image")),
    ),
    "planar image": (
        "image-input",
        lambda: parse(
            ("8, 8, 3] image", "3, 8, 8] image"), ("perm = [0, 3, 1, 2]", "perm = [0, 1, 2, 3]")
        ),
    ),
    "transpose before cast": (
        "image-input",
        lambda: parse(
            ("Cast<to = 1>(image)", "Transpose<perm = [0, 3, 1, 2]>(image)"),
            ("Transpose<perm = [0, 3, 1, 2]>(pixels)", "Cast<to = 1>(pixels)"),
        ),
    ),
    "non-zero": ("unsupported-op", lambda: parse(("}\n", "nothing = NonZero(scores)\n}\n"))),
    "suppression operator": (
        "unsupported-op",
        lambda: parse(("}\n", "nothing = NonMaxSuppression(scores, soft)\n}\n")),
    ),
    "top 3841": ("topk-limit", lambda: parse(*OVER_LIMIT)),
    "top-k with K as an input": ("topk-limit", lambda: parse(*DYNAMIC_K)),
    "grid sample of opset 20": (
        "grid-sample",
        lambda: parse(('"" : 18', '"" : 20'), ("}\n", "nothing = GridSample(planes, planes)\n}\n")),
    ),
    "resize of pixels by crop": ("resize", lambda: parse(('"half_pixel"', '"tf_crop_and_resize"'))),
    "antialiased resize": (
        "resize",
        lambda: parse(('"half_pixel"', '"half_pixel", antialias = 1')),
    ),
    "adding scatter": ("scatter", lambda: parse(("ScatterND(", 'ScatterND<reduction = "add">('))),
    "double": (
        "element-type",
        lambda: parse(
            ("Reshape(larger, rows)", "Reshape(larger, rows)\n wide = Cast<to = 11>(flat)")
        ),
    ),
    "bfloat16": (
        "element-type",
        lambda: parse(
            ("Reshape(larger, rows)", "Reshape(larger, rows)\n wide = Cast<to = 16>(flat)")
        ),
    ),
    "max of uint8": (
        "uint8",
        lambda: parse(
            ("masks = Cast<to = 2>(soft)", "bytes = Cast<to = 2>(soft)\n masks = Max(bytes)")
        ),
    ),
    "uint8 in the middle": (
        "uint8",
        lambda: parse(
            ("Relu(written)", "Cast<to = 1>(small)"),
            (
                "ScatterND(kept, first, zeros)",
                "ScatterND(kept, first, zeros)\n small = Cast<to = 2>(written)",
            ),
        ),
    ),
    "uint8 activations": (
        "uint8",
        lambda: parse(("int8 zero_point = {0}", "uint8 zero_point = {0}")),
    ),
    "quantised bias": (
        "int32-bias",
        lambda: parse(
            ("float[2] bias = {1, 2}", "int32[2] whole = {1, 2}"),
            ("features =", "bias = DequantizeLinear(whole, scale)\n features ="),
        ),
    ),
    "scale of nothing": ("scale", lambda: parse(("float scale = {0.5}", "float scale = {0}"))),
    "zero point": ("zero-point", lambda: parse(("int8 zero_point = {0}", "int8 zero_point = {3}"))),
    "half scores": ("float32-path", lambda: parse(narrow_after_topk(10))),
    "half top-k": (
        "float32-path",
        lambda: parse(
            ("TopK<axis = 1>(flat, five)", "TopK<axis = 1>(short, five)"),
            (
                "flat = Reshape(larger, rows)",
                "flat = Reshape(larger, rows)\n short = Cast<to = 10>(flat)",
            ),
            ("passes =", "best32 = Cast<to = 1>(best)\n passes ="),
            ("Less(score_threshold, best)", "Less(score_threshold, best32)"),
            ("Where(passes, best,", "Where(passes, best32,"),
        ),
    ),
    "selection that ends in a MatMul": ("bf16-reach", bf16_only),
    "input that nothing reads": (
        "unread-input",
        lambda: parse(
            ("Less(score_threshold, best)", "Less(best, best)"),
            ("Where(passes, best, score_threshold)", "Where(passes, best, best)"),
        ),
    ),
    "weight that is no number": (
        "finite",
        lambda: parse(("{1, 2, 3, 4, 5, 6}", "{1, 2, 3, 4, 5, nan}")),
    ),
    "weight that is infinite": (
        "finite",
        lambda: parse(("{1, 2, 3, 4, 5, 6}", "{1, 2, 3, 4, 5, inf}")),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_rule_finds_its_fault(fault: str) -> None:
    rule, make_model = FAULTS[fault]
    target = (
        "plugin" if rule in ("function-opset", "function-name", "optional-input") else "portable"
    )
    found = {finding.rule: finding for finding in lint(make_model(), target=target)}
    assert rule in found
    assert found[rule].message.endswith(".")


def test_every_rule_has_a_fault() -> None:
    assert {rule for rule, _ in FAULTS.values()} == set(RULES)


def test_clean_portable_graph_gives_no_finding() -> None:
    assert lint(parse(), target="portable") == []


def test_clean_plugin_graph_gives_no_finding() -> None:
    assert lint(parse_with_function(), target="plugin") == []


def test_uint8_activations_and_zero_points_are_allowed_in_the_cpu_file() -> None:
    model = parse(("int8 zero_point = {0}", "uint8 zero_point = {128}"))
    assert {finding.rule for finding in lint(model, target="portable")} == {"uint8", "zero-point"}
    assert lint(model, target="portable", is_cpu_int8=True) == []


def test_half_gathered_for_the_decode_is_allowed() -> None:
    """A gather moves values and computes nothing; what computes with them must be float32."""
    model = parse(
        (
            "scores = Relu(written)",
            "row = Cast<to = 10>(flat)\n"
            "picked = GatherElements<axis = 1>(row, places)\n scores = Cast<to = 1>(picked)",
        ),
    )
    assert lint(model, target="portable") == []


def test_lint_does_not_change_the_model() -> None:
    model = parse_with_function()
    before = model.SerializeToString(deterministic=True)
    lint(model, target="plugin")
    assert model.SerializeToString(deterministic=True) == before
