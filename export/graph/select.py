"""KestrelSelect: the T best (anchor, class) pairs of a dense head, as an ONNX local function.

    scores, anchors, classes = KestrelSelect<candidates = T, activation>(logits, score_threshold)

Shapes: logits (B, A, K) f32, score_threshold (B, K) f32 in units of a score;
scores (B, T) f32, anchors (B, T) i64 in [0, A), classes (B, T) i64 in [0, K).

Definition. Let cut(b, k) be the threshold in the units of the logits:

    activation "sigmoid": log(t / (1 - t)); t <= 0 gives the lowest float, t >= 1 gives +inf
    activation "none":    max(t, 0); the logits are scores already

* A pair (anchor, class) is a candidate if its logit > cut, strictly. So NaN and -inf never are, and
  a threshold of 1 or more (sigmoid; above 1 for "none") switches a class off **before** selection:
  it cannot crowd others out.
* The rows are the first T candidates by falling logit; equal logits by the lower flat index, which
  is anchor * K + class.
* score = sigmoid(logit), at least 1.2e-38, or the logit itself: a row with a candidate always has a
  score > 0.
* Rows without a candidate come last, with score 0, anchor 0 and class 0: valid indices, so that
  gathering is safe.

Method: max over classes, the T best anchors, then the T best pairs of those. This is exact: a pair
among the T best lies in an anchor whose best pair is among the T best. Comparing logits instead of
scores leaves T sigmoids in place of B * A * K.

Rules the text below keeps, because engines differ:

* OpenVINO and TensorRT promise nothing about the order of equal values in TopK: values are used as
  they come, indices only where the keys are distinct. `_best_in_index_order` repairs the choice at
  the T-th place, step 5 the order.
* `Less(a, b)` and not `Greater(b, a)`: OpenVINO's Greater is true for NaN, its Less is not.
* No CumSum: older TensorRT parsers (before addCumulative) turn it into a loop, a step per element.
* Keys of sorts are float32 integers and must stay below 2**24: T <= 2048, A < 2**23, T * K < 2**23.
"""

from typing import Literal

import onnx
import onnx.parser

Activation = Literal["sigmoid", "none"]

OP_TYPE = "KestrelSelect"
DOMAIN = "kestrel"
ACTIVATIONS = ("sigmoid", "none")
OPSETS = (18, 19)  # ReduceMax takes its axes as an input from 18 on; nothing here changes in 19
MAX_CANDIDATES = 2048  # TensorRT's TopK ends at 3840
MAX_KEYS = 2**23  # keys reach twice the number of entries and float32 counts exactly to 2**24

_CONSTANTS = """
  zero = Constant<value = float {0}>()
  unit = Constant<value = float {1}>()
  tiny = Constant<value = float {1.17549435e-38}>()    # the smallest normal float32
  lowest = Constant<value = float {-3.4028235e38}>()   # stands for "no candidate" in every TopK
  never = Constant<value = float {inf}>()
  zero_i = Constant<value = int64 {0}>()
  unit_i = Constant<value = int64 {1}>()
  axis0 = Constant<value = int64[1] {0}>()
  axis1 = Constant<value = int64[1] {1}>()
  axis2 = Constant<value = int64[1] {2}>()
  axis3 = Constant<value = int64[1] {3}>()
  per_row = Constant<value = int64[2] {0, -1}>()
  t = Constant<value_int: int = @candidates>()
  t1 = Unsqueeze(t, axis0)                             # [T]
  t_float = Cast<to = 1>(t)
"""

# 1. The threshold in the units of the logits: cut (B, K). Clip keeps Log finite; Where sets both
# ends.
_CUT: dict[str, str] = {
    "sigmoid": """
  largest_below_1 = Constant<value = float {0.99999994}>()
  inside = Clip(score_threshold, tiny, largest_below_1)
  rest = Sub(unit, inside)
  odds = Div(inside, rest)
  log_odds = Log(odds)
  open = Less(zero, score_threshold)
  shut = Less(largest_below_1, score_threshold)
  cut_low = Where(open, log_odds, lowest)
  cut = Where(shut, never, cut_low)
""",
    "none": """
  cut = Max(score_threshold, zero)
""",
}

# 2. What does not pass becomes `lowest`, NaN included: no NaN ever reaches a TopK.
_MASK = """
  cut3 = Unsqueeze(cut, axis1)                         # (B, 1, K)
  passes = Less(cut3, logits)
  masked = Where(passes, logits, lowest)               # (B, A, K)
"""

# 3. The best anchors by their best class, back in index order. With fewer anchors than T, all of
# them.
_ANCHORS_BEFORE = """
  best = ReduceMax<keepdims = 0>(masked, axis2)        # (B, A)
  num_anchors = Shape<start = 1, end = 2>(logits)
  num_classes = Shape<start = 2, end = 3>(logits)
  ta1 = Min(t1, num_anchors)                           # [Ta]
"""

# 4. The best pairs of those anchors. Rows in index order make the flat order of ties the original
# one.
_PAIRS_BEFORE = """
  anchor3 = Unsqueeze(anchor, axis2)
  rows = GatherND<batch_dims = 1>(masked, anchor3)     # (B, Ta, K)
  flat = Reshape(rows, per_row)                        # (B, Ta * K)
"""

# 5. A stable sort of the T pairs by falling value. TopK gives the values in order but equal ones in
# any order. Equal values form a group; the key group * T + place is distinct and sorts each group
# by its place in `pair`.
_SORT_BEFORE = """
  value = GatherElements<axis = 1>(flat, pair)
  top, place_any = TopK<axis = 1>(value, t1)           # (B, T)
  t_less = Sub(t1, axis1)
  left = Slice(top, axis0, t_less, axis1)
  right = Slice(top, axis1, t1, axis1)
  falls = Less(right, left)                            # (B, T - 1): a group ends here
  falls_float = Cast<to = 1>(falls)
"""

#    The group's number is the running sum of `falls`: inside blocks of 64, plus the sums of the
#    blocks before.
_RUNNING_SUM = """
  block = Constant<value = int64 {64}>()
  block1 = Constant<value = int64[1] {64}>()
  block_less = Constant<value = int64 {63}>()
  t_up = Add(t, block_less)
  blocks = Div(t_up, block)
  blocks1 = Unsqueeze(blocks, axis0)                   # [R]
  filled = Mul(blocks1, block1)
  fill = Sub(filled, t1)
  pads_begin = Constant<value = int64[3] {0, 1, 0}>()
  pads = Concat<axis = 0>(pads_begin, fill)
  padded = Pad(falls_float, pads, zero)                # (B, R * 64)
  copy_batch = Constant<value = int64[1] {0}>()
  block_shape = Concat<axis = 0>(copy_batch, blocks1, axis1, block1)
  in_block = Reshape(padded, block_shape)              # (B, R, 1, 64)
  lane = Range(zero_i, block, unit_i)
  lane_column = Unsqueeze(lane, axis1)
  after = Less(lane_column, lane)
  until_here = Not(after)                              # (64, 64)
  in_block_until = Where(until_here, in_block, zero)   # (B, R, 64, 64)
  in_block_sum = ReduceSum<keepdims = 0>(in_block_until, axis3)
  block_sum = ReduceSum<keepdims = 0>(in_block, axis3) # (B, R, 1)
  sum_row = Transpose<perm = [0, 2, 1]>(block_sum)     # (B, 1, R)
  number = Range(zero_i, blocks, unit_i)
  number_column = Unsqueeze(number, axis1)
  earlier = Less(number, number_column)                # (R, R)
  earlier_sums = Where(earlier, sum_row, zero)         # (B, R, R)
  before = ReduceSum<keepdims = 1>(earlier_sums, axis2)
  group_blocks = Add(in_block_sum, before)             # (B, R, 64)
  group_filled = Reshape(group_blocks, per_row)
  group = Slice(group_filled, axis0, t1, axis1)        # (B, T)
"""

_SORT_AFTER = """
  group_base = Mul(group, t_float)
  place_any_float = Cast<to = 1>(place_any)
  key = Add(group_base, place_any_float)
  key_rising, key_order = TopK<axis = 1, largest = 0>(key, t1)
  place_float = Sub(key_rising, group_base)            # row j is still in group j
  place = Cast<to = 7>(place_float)
  pair_sorted = GatherElements<axis = 1>(pair, place)  # (B, T) into flat
  slot = Div(pair_sorted, num_classes)
  class_any = Mod(pair_sorted, num_classes)
  anchor_any = GatherElements<axis = 1>(anchor, slot)
"""

# 6. Rows without a candidate are emptied.
_EMIT_BEFORE = """
  is_candidate = Less(lowest, top)
  anchors = Where(is_candidate, anchor_any, zero_i)
  classes = Where(is_candidate, class_any, zero_i)
"""

_EMIT_SCORES: dict[str, str] = {
    "sigmoid": """
  probability = Sigmoid(top)
  positive = Max(probability, tiny)
  scores = Where(is_candidate, positive, zero)
""",
    "none": """
  scores = Where(is_candidate, top, zero)
""",
}


def _best_in_index_order(source: str, count: str, result: str) -> str:
    """Write the step that finds the `count` largest entries per row and returns their positions in
    rising order.

    Among entries equal to the smallest one taken the lowest positions are taken, whatever TopK does
    with ties: entries above it get the keys [-N, 0), equal ones [0, N), all others 2N; the `count`
    smallest keys are the answer.

    Args:
        source: name of a (B, N) float tensor without NaN.
        count: name of a [1] int64 tensor, at most N.
        result: name for the (B, count) int64 positions; also the prefix of the names in between.
    """
    r = result
    return f"""
  {r}_top, {r}_top_at = TopK<axis = 1>({source}, {count})
  {r}_least = ReduceMin<keepdims = 1>({r}_top, axis1)  # (B, 1)
  {r}_n1 = Shape<start = 1, end = 2>({source})
  {r}_n = Squeeze({r}_n1, axis0)
  {r}_n_float = Cast<to = 1>({r}_n)
  {r}_last_key = Add({r}_n_float, {r}_n_float)
  {r}_index = Range(zero_i, {r}_n, unit_i)
  {r}_index_float = Cast<to = 1>({r}_index)            # (N)
  {r}_first_key = Sub({r}_index_float, {r}_n_float)
  {r}_is_above = Less({r}_least, {source})
  {r}_is_equal = Equal({source}, {r}_least)
  {r}_equal_key = Where({r}_is_equal, {r}_index_float, {r}_last_key)
  {r}_key = Where({r}_is_above, {r}_first_key, {r}_equal_key)
  {r}_keys, {r}_at = TopK<axis = 1, largest = 0>({r}_key, {count})
  {r}_at_float = Cast<to = 1>({r}_at)
  {r}_rising, {r}_rising_at = TopK<axis = 1, largest = 0>({r}_at_float, {count})
  {r} = Cast<to = 7>({r}_rising)
"""


def select_function(*, activation: Activation = "sigmoid", opset: int = 18) -> onnx.FunctionProto:
    """Build the body of KestrelSelect; see the module's docstring for what it computes.

    Both activations have the same name: a model uses one of them. The node's attribute `activation`
    says which, for readers and for a TensorRT plugin of that name; the body does not read it.

    Args:
        activation: what turns logits into scores; "none" if they are scores already.
        opset: version of the standard operators; must be the model's.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}. "
            "Apply any other activation in the model and pass 'none'."
        )
    check_opset(opset)
    steps = (
        _CONSTANTS,
        _CUT[activation],
        _MASK,
        _ANCHORS_BEFORE,
        _best_in_index_order("best", "ta1", "anchor"),
        _PAIRS_BEFORE,
        _best_in_index_order("flat", "t1", "pair"),
        _SORT_BEFORE,
        _RUNNING_SUM,
        _SORT_AFTER,
        _EMIT_BEFORE,
        _EMIT_SCORES[activation],
    )
    return parse_body(
        f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">\n'
        f'{OP_TYPE} <candidates: int = 300, activation: string = "{activation}">\n'
        "  (logits, score_threshold) => (scores, anchors, classes)\n"
        f"{{{''.join(steps)}}}"
    )


def parse_body(text: str) -> onnx.FunctionProto:
    """Parse a function and name its nodes after it, since TensorRT names layers by nodes."""
    function = onnx.parser.parse_function(text)
    for node in function.node:
        node.name = f"{function.name}/{node.output[0]}"
    return function


def check_opset(opset: int) -> None:
    """Refuse a model opset for which the function bodies are not written."""
    if opset not in OPSETS:
        raise ValueError(
            f"the model's opset is {opset}, the Kestrel functions are written for "
            f"{OPSETS[0]} to {OPSETS[-1]}. Export with opset_version=18."
        )


def check_candidates(candidates: int, *, num_anchors: int, num_classes: int) -> None:
    """Refuse a number of candidates that the head cannot give or the function cannot sort exactly.

    Args:
        candidates: T, rows asked for per image.
        num_anchors: A, rows of the head.
        num_classes: K, classes per row.
    """
    limit = min(MAX_CANDIDATES, num_anchors * num_classes)
    if not 1 <= candidates <= limit:
        raise ValueError(
            f"candidates is {candidates}, expected 1 to {limit} ({num_anchors} anchors x "
            f"{num_classes} classes, at most {MAX_CANDIDATES}). Clamp it to {limit}."
        )
    if num_anchors >= MAX_KEYS or candidates * num_classes >= MAX_KEYS:
        raise ValueError(
            f"{num_anchors} anchors and {candidates} candidates x {num_classes} classes, expected "
            f"below {MAX_KEYS} each. Lower the number of candidates or split the image."
        )
