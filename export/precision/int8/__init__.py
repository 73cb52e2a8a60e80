"""int8 as explicit QuantizeLinear / DequantizeLinear pairs (Q/DQ) in the ONNX file.

The road, each step a module:

* `placement.plan_placement(base, float_nodes=..., quantise_heads=...)` says which products are
  int8, which tensors carry a Q/DQ pair, and which of these share a scale. Nodes are known by the
  name of their first output, tensors by their own. `placement.find_quantisable(base)` lists the
  nodes there are to choose from, `placement.find_last_products(base)` those of them that end heads.
* `observing.observe(base, feeds)` runs the float graph over frames and gives a histogram of each
  tensor that any placement may want; `ranges.choose_amax(histogram, method)` gives the largest
  magnitude that is kept. `calibration.calibrate(base, frames, ...)` is both, with a record of what
  it was done on; its `ranges` are {tensor: amax}, and hold for every choice of nodes.
* `images.calibration_frames(data, geometry, count)` gives the frames.
* `rewriting.to_int8(base, ranges, float_nodes=..., quantise_heads=...)` writes the graph that
  TensorRT takes: symmetric, zero point 0, int8 weights per output channel, float32 biases; what is
  not int8 stays float32.
* `for_cpu.to_cpu(model)` gives the same graph, same scales, with uint8 activations, for CPUs. It
  reads nothing but the Q/DQ graph, so it serves any graph that holds such pairs.

`base` is of `export.bundling.trace_bases`: float32, BatchNormalization folded, KestrelSelect and
KestrelNms as nodes without bodies. `writing.write_files(..., conversions=...)` writes what comes
out: `conversions` is CONVERSIONS | {"int8": functools.partial(to_int8, ranges=...)}; precisions in
`writing.QUANTISED` get a file for CPUs as well.
"""
