"""KestrelNms: exact greedy non-maximum suppression per class, as an ONNX local function.

    num_detections, boxes, scores, classes, indices
        = KestrelNms<max_detections = M>(boxes, scores, classes, iou_threshold)

Inputs: boxes (B, T, 4) f32 as (x1, y1, x2, y2); scores (B, T) f32, falling, 0 in empty rows;
classes (B, T) i64; iou_threshold (B) f32, at least 0.

Outputs: num_detections (B) i32; boxes (B, M, 4) f32, 0 in padding; scores (B, M) f32, 0 in padding;
classes (B, M) i32, -1 in padding; indices (B, M) i64, rows of the input, 0 in padding. All shapes
are fixed, and M may exceed T.

Definition (that of torchvision.ops.nms, class by class). Rows in order: a row is kept if its score
is > 0, its box is finite, and its IoU with every row of its class kept before is not above
iou_threshold. The first M kept rows come out, in order. IoU = inter / (area_i + area_j - inter) in
float32; zero-area and inverted boxes neither suppress nor are suppressed; a box with a coordinate
that is NaN or infinite is dropped.

Method ("rank-coded greedy" of facts/nms.md): one kept box per step, O(T) each, exact after M steps.
The state `rank` (B, T + 1) says all: T - row for a row still alive, 0 for one that is out, row - T
for one that is kept. The next box is the one with the greatest rank, so its row is T - rank. Row T
is empty and catches the steps after the last box.

Rules the text below keeps:

* The class is a third side of unit length, [class, class + 1]: the intersection is multiplied by
  exactly 1 or 0. Adding an offset to the coordinates instead would round the IoU.
* No MatMul (under a bf16 hint OpenVINO would compute all that feeds it in bf16), no NonZero or
  NonMaxSuppression (data-dependent shapes), no ScatterElements in a Loop (OpenVINO writes it into
  the outer tensor).
* Where and not Mul joins the reduced `box_finite` with the row numbers: OpenVINO fuses a Mul by a
  constant vector into the Reduce before it and then, for B > 1, multiplies along the wrong axis.
* Areas are at least the smallest normal float, so 0 / 0 cannot arise, and `Less(threshold, iou)` is
  false for NaN.

Two bodies: `early_exit=True` leaves the Loop when no row is alive, for CPUs; `early_exit=False`
runs ceil(M / 4) trips of 4 steps, a surplus step changes nothing. TensorRT can keep fixed trips on
the device; early exit makes it copy a flag to the host in every trip.
"""

import onnx

from export.graph.select import DOMAIN, check_opset, parse_body

OP_TYPE = "KestrelNms"

_HEADER = """
KestrelNms <max_detections: int = 100>
  (boxes, scores, classes, iou_threshold)
  => (num_detections, det_boxes, det_scores, det_classes, det_indices)
"""

_CONSTANTS = """
  zero = Constant<value = float {0}>()
  unit = Constant<value = float {1}>()
  tiny = Constant<value = float {1.17549435e-38}>()    # the smallest normal float32
  largest = Constant<value = float {3.4028235e+38}>()  # the largest float32
  zero_i = Constant<value = int64 {0}>()
  unit_i = Constant<value = int64 {1}>()
  minus_i = Constant<value = int64 {-1}>()
  axis0 = Constant<value = int64[1] {0}>()
  axis1 = Constant<value = int64[1] {1}>()
  axis2 = Constant<value = int64[1] {2}>()
  axis3 = Constant<value = int64[1] {3}>()
  m = Constant<value_int: int = @max_detections>()
  m1 = Unsqueeze(m, axis0)                             # [M]
  t1 = Shape<start = 1, end = 2>(scores)               # [T]
  t = Squeeze(t1, axis0)
  t_float = Cast<to = 1>(t)
  threshold = Unsqueeze(iou_threshold, axis1)          # (B, 1)
"""

# 1. One empty row is appended: row T, of rank 0, is what a step finds when no row is alive.
_APPEND = """
  row_after2 = Constant<value = int64[4] {0, 0, 0, 1}>()
  row_after3 = Constant<value = int64[6] {0, 0, 0, 0, 1, 0}>()
  all_boxes = Pad(boxes, row_after3, zero)             # (B, T + 1, 4)
  all_scores = Pad(scores, row_after2, zero)
  class_float = Cast<to = 1>(classes)
  all_classes = Pad(class_float, row_after2, zero)
"""

# 2. Boxes with the class as a third side: corners (B, 3, T + 1) to compare, (B, T + 1, 3, 1) to
# take one row of.
_CORNERS = """
  x1, y1, x2, y2 = Split<axis = 2, num_outputs = 4>(all_boxes)
  width = Sub(x2, x1)
  height = Sub(y2, y1)
  area_any = Mul(width, height)
  area_rows = Max(area_any, tiny)                      # (B, T + 1, 1)
  area = Squeeze(area_rows, axis2)                     # (B, T + 1)
  z1 = Unsqueeze(all_classes, axis2)
  z2 = Add(z1, unit)
  near3 = Concat<axis = 2>(x1, y1, z1)                 # (B, T + 1, 3)
  far3 = Concat<axis = 2>(x2, y2, z2)
  near = Transpose<perm = [0, 2, 1]>(near3)
  far = Transpose<perm = [0, 2, 1]>(far3)
  near_rows = Unsqueeze(near3, axis3)
  far_rows = Unsqueeze(far3, axis3)
"""

# 3. The first ranks: T - row for filled rows with a finite box, 0 for the others.
_RANKS = """
  size = Abs(all_boxes)
  side_is_finite = Less(size, largest)
  side_finite = Cast<to = 1>(side_is_finite)
  box_finite = ReduceMin<keepdims = 0>(side_finite, axis2)
  is_finite = Less(zero, box_finite)                   # (B, T + 1)
  is_filled = Less(zero, all_scores)
  is_alive = And(is_finite, is_filled)
  num_rows = Add(t, unit_i)
  row_index = Range(zero_i, num_rows, unit_i)
  row_float = Cast<to = 1>(row_index)
  falling = Sub(t_float, row_float)                    # (T + 1): T..0
  rank = Where(is_alive, falling, zero)
  greatest = ReduceMax<keepdims = 1>(rank, axis1)      # (B, 1)
"""

# 5. The kept rows: after Neg their ranks are positive and distinct, so TopK brings them in order on
# every engine. M zeros are appended first, for M > T.
_EMIT = """
  kept_ranks = Neg(rank_end)
  more_begin = Constant<value = int64[3] {0, 0, 0}>()
  more = Concat<axis = 0>(more_begin, m1)
  kept_padded = Pad(kept_ranks, more, zero)            # (B, T + 1 + M)
  won, won_at = TopK<axis = 1>(kept_padded, m1)        # (B, M)
  is_kept = Less(zero, won)
  det_indices = Where(is_kept, won_at, zero_i)
  is_kept3 = Unsqueeze(is_kept, axis2)
  indices3 = Unsqueeze(det_indices, axis2)
  box_any = GatherND<batch_dims = 1>(boxes, indices3)
  score_any = GatherElements<axis = 1>(scores, det_indices)
  class_any = GatherElements<axis = 1>(classes, det_indices)
  det_boxes = Where(is_kept3, box_any, zero)
  det_scores = Where(is_kept, score_any, zero)
  class_or_pad = Where(is_kept, class_any, minus_i)
  det_classes = Cast<to = 6>(class_or_pad)
  kept_int = Cast<to = 6>(is_kept)
  num_detections = ReduceSum<keepdims = 0>(kept_int, axis1)
"""


def _greedy_step(
    number: int, *, rank: str, greatest: str, rank_after: str, greatest_after: str
) -> str:
    """Write one step: keep the greatest row, put out what it overlaps, find the next greatest.

    Args:
        number: makes the step's names unique in the Loop's body.
        rank: name of the (B, T + 1) ranks before the step.
        greatest: name of their (B, 1) maximum; 0 if no row is alive, which selects the empty row T.
        rank_after: name for the ranks after the step.
        greatest_after: name for their maximum.
    """
    s = f"s{number}"
    return f"""
      {s}_row_float = Sub(t_float, {greatest})
      {s}_row = Cast<to = 7>({s}_row_float)            # (B, 1)
      {s}_near = GatherND<batch_dims = 1>(near_rows, {s}_row)
      {s}_far = GatherND<batch_dims = 1>(far_rows, {s}_row)
      {s}_area = GatherND<batch_dims = 1>(area_rows, {s}_row)
      {s}_low = Max(near, {s}_near)
      {s}_high = Min(far, {s}_far)
      {s}_gap = Sub({s}_high, {s}_low)
      {s}_sides = Relu({s}_gap)                        # (B, 3, T + 1)
      {s}_inter = ReduceProd<keepdims = 0>({s}_sides, axis1)
      {s}_both = Add(area, {s}_area)
      {s}_union = Sub({s}_both, {s}_inter)
      {s}_iou = Div({s}_inter, {s}_union)
      {s}_over = Less(threshold, {s}_iou)
      {s}_is_self = Equal({rank}, {greatest})
      {s}_kept = Neg({rank})
      {s}_cut = Where({s}_over, zero, {rank})
      {rank_after} = Where({s}_is_self, {s}_kept, {s}_cut)
      {greatest_after} = ReduceMax<keepdims = 1>({rank_after}, axis1)
"""


def _greedy_loop(*, early_exit: bool, steps_per_iteration: int) -> str:
    """Write step 4, the Loop over greedy steps.

    `_greedy_step` would put kept rows (rank below 0) out by writing 0 over them where they overlap
    the new box. They cannot: a kept row of the same class with IoU above the threshold would have
    put the new box out first.
    """
    steps = ""
    rank, greatest = "rank_in", "greatest_in"
    for number in range(steps_per_iteration):
        last = number == steps_per_iteration - 1
        after = ("rank_out", "greatest_out") if last else (f"rank{number}", f"greatest{number}")
        steps += _greedy_step(
            number, rank=rank, greatest=greatest, rank_after=after[0], greatest_after=after[1]
        )
        rank, greatest = after
    if early_exit:
        before = """
  alive_first = ReduceMax<keepdims = 0>(greatest)
  go = Less(zero, alive_first)
"""
        again = """
      alive = ReduceMax<keepdims = 0>(greatest_out)
      again = Less(zero, alive)
"""
    else:
        before = """
  go = Constant<value = bool {1}>()
"""
        again = """
      again = Identity(go_in)
"""
    return f"""
  per_trip = Constant<value = int64 {{{steps_per_iteration}}}>()
  per_trip_less = Constant<value = int64 {{{steps_per_iteration - 1}}}>()
  m_up = Add(m, per_trip_less)
  trips = Div(m_up, per_trip)
{before}
  rank_end, greatest_end = Loop(trips, go, rank, greatest) <body = greedy
      (int64 trip, bool go_in, float[?, ?] rank_in, float[?, 1] greatest_in)
      => (bool again, float[?, ?] rank_out, float[?, 1] greatest_out) {{
{steps}{again}  }}>
"""


def nms_function(
    *, early_exit: bool, steps_per_iteration: int | None = None, opset: int = 18
) -> onnx.FunctionProto:
    """Build the body of KestrelNms; see the module's docstring for what it computes.

    Args:
        early_exit: leave the Loop when no row is alive (CPUs) instead of a fixed number of trips
            (TensorRT).
        steps_per_iteration: greedy steps in one trip of the Loop; by default 1 with early exit and
            4 without.
        opset: version of the standard operators; must be the model's.
    """
    if steps_per_iteration is None:
        steps_per_iteration = 1 if early_exit else 4
    if steps_per_iteration < 1:
        raise ValueError(
            f"steps_per_iteration is {steps_per_iteration}, expected at least 1. Leave it out."
        )
    check_opset(opset)
    loop = _greedy_loop(early_exit=early_exit, steps_per_iteration=steps_per_iteration)
    body = "".join((_CONSTANTS, _APPEND, _CORNERS, _RANKS, loop, _EMIT))
    return parse_body(f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">{_HEADER}{{{body}}}')
