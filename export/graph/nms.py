"""KestrelNms: non-maximum suppression per class, greedy or fast, as an ONNX local function.

    num_detections, boxes, scores, classes, indices
        = KestrelNms<max_detections = M, method, per_class_limit>(
            boxes, scores, classes, iou_threshold)

Inputs: boxes (B, T, 4) f32 as (x1, y1, x2, y2); scores (B, T) f32, falling, 0 in empty rows;
classes (B, T) i64; iou_threshold (B) f32, at least 0.

Outputs: num_detections (B) i32; boxes (B, M, 4) f32, 0 in padding; scores (B, M) f32, 0 in padding;
classes (B, M) i32, -1 in padding; indices (B, M) i64, rows of the input, 0 in padding. All shapes
are fixed, and M may exceed T.

Definition. A row enters if its score is > 0 and its box is finite. IoU = inter / (area_i + area_j -
inter) in float32; zero-area and inverted boxes neither suppress nor are suppressed.

* method "greedy" (that of torchvision.ops.nms, class by class). Rows in order: a row is kept if its
  IoU with every row of its class kept before is not above iou_threshold.
* method "fast" (Fast NMS of YOLACT, arXiv:1904.02689, section 3.3). A row is kept if it is among
  the first `per_class_limit` rows of its class that entered, and its IoU with every one of these
  before it, kept or not, is not above iou_threshold.

The first M kept rows come out, in order.

Greedy works by "rank-coded" steps: one kept box per step, O(T) each, exact after M steps.
The state `rank` (B, T + 1) says all: T - row for a row still alive, 0 for one that is out, row - T
for one that is kept. The next box is the one with the greatest rank, so its row is T - rank. Row T
is empty and catches the steps after the last box.

Fast has no sequence: each row is held against all rows before it. The Loop only bounds memory: a
trip takes 64 rows against all, so that T = 2048 needs 0.5 MB per image and not 16 in each tensor.

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

Two bodies of each: `early_exit=True` leaves the Loop when no row is alive, for CPUs;
`early_exit=False` runs ceil(M / 4) trips of 4 steps, a surplus step changes nothing, or all trips
of 64 rows. TensorRT can keep fixed trips on the device; early exit makes it copy a flag to the host
in every trip.

A model uses one method. The attribute says which, for readers and for a TensorRT plugin of that
name; the body does not read it.
"""

from typing import Literal

import onnx

from export.graph.select import DOMAIN, check_opset, parse_body
from training.layers.suppression import PER_CLASS_LIMIT

Method = Literal["greedy", "fast"]

OP_TYPE = "KestrelNms"
METHODS = ("greedy", "fast")

_SIGNATURE = """
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

# 2. Boxes with the class as a third side; for greedy steps corners (B, 3, T + 1) to compare,
# (B, T + 1, 3, 1) to take one row of.
_CORNERS = """
  x1, y1, x2, y2 = Split<axis = 2, num_outputs = 4>(all_boxes)
  width = Sub(x2, x1)
  height = Sub(y2, y1)
  area_any = Mul(width, height)
  area_rows = Max(area_any, tiny)                      # (B, T + 1, 1)
  area = Squeeze(area_rows, axis2)                     # (B, T + 1)
  z1 = Unsqueeze(all_classes, axis2)
"""

_CLASS_SIDES = """
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

# 5. The kept rows: their ranks, made positive, are distinct, so TopK brings them in order on every
# engine. M zeros are appended first, for M > T.
_EMIT = """
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
  kept_ranks = Neg(rank_end)
"""


# 4 of method "fast". Each row as one of those that may beat others, 64 to a chunk: its key is its
# number, or beyond every number if it has not entered, so that it comes before no row.
_CHUNKS = """
  lanes1 = Constant<value = int64[1] {64}>()
  lanes_less = Constant<value = int64[1] {63}>()
  lanes_float = Constant<value = float {64}>()
  limit = Constant<value_int: int = @per_class_limit>()
  limit_float = Cast<to = 1>(limit)
  row_key = Where(is_alive, row_float, largest)
  row_key3 = Unsqueeze(row_key, axis2)
  packed = Concat<axis = 2>(x1, y1, x2, y2, area_rows, z1, row_key3)  # (B, T + 1, 7)
  num_rows1 = Unsqueeze(num_rows, axis0)
  rows_up = Add(num_rows1, lanes_less)
  chunks1 = Div(rows_up, lanes1)                       # [R]
  filled = Mul(chunks1, lanes1)
  fill = Sub(filled, num_rows1)
  fill_begin = Constant<value = int64[4] {0, 0, 0, 0}>()
  fill_end = Constant<value = int64[1] {0}>()
  fill_pads = Concat<axis = 0>(fill_begin, fill, fill_end)
  packed_full = Pad(packed, fill_pads, largest)
  copy_batch = Constant<value = int64[1] {0}>()
  sides1 = Constant<value = int64[1] {7}>()
  chunk_shape = Concat<axis = 0>(copy_batch, chunks1, lanes1, sides1)
  chunks = Reshape(packed_full, chunk_shape)           # (B, R, 64, 7)
  trips = Squeeze(chunks1, axis0)
  all_x1 = Transpose<perm = [0, 2, 1]>(x1)             # (B, 1, T + 1)
  all_y1 = Transpose<perm = [0, 2, 1]>(y1)
  all_x2 = Transpose<perm = [0, 2, 1]>(x2)
  all_y2 = Transpose<perm = [0, 2, 1]>(y2)
  all_area = Transpose<perm = [0, 2, 1]>(area_rows)
  all_labels = Transpose<perm = [0, 2, 1]>(z1)
  threshold3 = Unsqueeze(threshold, axis2)             # (B, 1, 1)
  none_yet = Sub(all_scores, all_scores)               # (B, T + 1) of 0
"""

# A trip: how many rows of its class stand before each row, and whether one of them overlaps it.
_CHUNK_STEP = """
      some = Gather<axis = 1>(chunks, trip)            # (B, 64, 7)
      c_x1, c_y1, c_x2, c_y2, c_area, c_label, c_key = Split<axis = 2, num_outputs = 7>(some)
      low_x = Max(c_x1, all_x1)                        # (B, 64, T + 1)
      low_y = Max(c_y1, all_y1)
      high_x = Min(c_x2, all_x2)
      high_y = Min(c_y2, all_y2)
      gap_x = Sub(high_x, low_x)
      gap_y = Sub(high_y, low_y)
      side_x = Relu(gap_x)
      side_y = Relu(gap_y)
      inter = Mul(side_x, side_y)
      both = Add(c_area, all_area)
      union = Sub(both, inter)
      iou = Div(inter, union)
      is_over = Less(threshold3, iou)
      is_before = Less(c_key, row_float)
      is_same = Equal(c_label, all_labels)
      is_rival = And(is_before, is_same)
      rival = Cast<to = 1>(is_rival)
      more_before = ReduceSum<keepdims = 0>(rival, axis1)
      before_out = Add(before_in, more_before)
      is_beating = And(is_rival, is_over)
      beating = Cast<to = 1>(is_beating)
      beaten_here = ReduceMax<keepdims = 0>(beating, axis1)
      beaten_out = Max(beaten_in, beaten_here)
"""


def _fast_loop(*, early_exit: bool) -> str:
    """Write step 4 of method "fast"; early exit leaves the Loop after the last row that entered."""
    if early_exit:
        before = """
  row_next = Add(row_float, unit)
  alive_next = Where(is_alive, row_next, zero)
  alive_end = ReduceMax<keepdims = 0>(alive_next)      # one past the last row of all images
  go = Less(zero, alive_end)
"""
        again = """
      trip_float = Cast<to = 1>(trip)
      trip_next = Add(trip_float, unit)
      rows_done = Mul(trip_next, lanes_float)
      again = Less(rows_done, alive_end)
"""
    else:
        before = """
  go = Constant<value = bool {1}>()
"""
        again = """
      again = Identity(go_in)
"""
    return f"""{_CHUNKS}{before}
  before_end, beaten_end = Loop(trips, go, none_yet, none_yet) <body = rivals
      (int64 trip, bool go_in, float[?, ?] before_in, float[?, ?] beaten_in)
      => (bool again, float[?, ?] before_out, float[?, ?] beaten_out) {{
{_CHUNK_STEP}{again}  }}>
  is_ranked = Less(before_end, limit_float)
  is_unbeaten = Less(beaten_end, unit)
  is_staying = And(is_ranked, is_unbeaten)
  kept_ranks = Where(is_staying, rank, zero)
"""


def nms_function(
    *,
    early_exit: bool,
    method: Method = "greedy",
    steps_per_iteration: int | None = None,
    opset: int = 18,
) -> onnx.FunctionProto:
    """Build the body of KestrelNms; see the module's docstring for what it computes.

    Args:
        early_exit: leave the Loop when no row is alive (CPUs) instead of a fixed number of trips
            (TensorRT).
        method: "greedy" or "fast".
        steps_per_iteration: greedy steps in one trip of the Loop; by default 1 with early exit and
            4 without. Fast NMS has none.
        opset: version of the standard operators; must be the model's.
    """
    check_method(method)
    if steps_per_iteration is None:
        steps_per_iteration = 1 if early_exit else 4
    if steps_per_iteration < 1:
        raise ValueError(
            f"steps_per_iteration is {steps_per_iteration}, expected at least 1. Leave it out."
        )
    check_opset(opset)
    if method == "fast":
        steps = (_CONSTANTS, _APPEND, _CORNERS, _RANKS, _fast_loop(early_exit=early_exit), _EMIT)
    else:
        loop = _greedy_loop(early_exit=early_exit, steps_per_iteration=steps_per_iteration)
        steps = (_CONSTANTS, _APPEND, _CORNERS, _CLASS_SIDES, _RANKS, loop, _EMIT)
    return parse_body(
        f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">\n'
        f'{OP_TYPE} <max_detections: int = 100, method: string = "{method}", '
        f"per_class_limit: int = {PER_CLASS_LIMIT}>{_SIGNATURE}"
        f"{{{''.join(steps)}}}"
    )


def check_method(method: str) -> None:
    """Refuse a method of suppression that is not defined here."""
    if method not in METHODS:
        raise ValueError(
            f"the method of suppression is {method!r}, expected one of {', '.join(METHODS)}. "
            "Correct the spec's nms."
        )
