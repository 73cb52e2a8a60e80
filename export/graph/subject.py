"""A model as the rules of `export/graph/lint.py` look at it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import onnx
import onnx.helper
import onnx.inliner
import onnx.shape_inference
from onnx import TensorProto

from export.graph.shapes import MAX_SIZE, STANDARD, fold_shapes, infer_shapes
from export.graph.walking import subgraphs, walk

Target = Literal["portable", "plugin"]


@dataclass(frozen=True)
class Subject:
    """What is checked: the model as it is, and as it looks with its functions inlined."""

    model: onnx.ModelProto
    target: Target
    is_cpu_int8: bool

    @cached_property
    def opset(self) -> int:
        return next((e.version for e in self.model.opset_import if e.domain in STANDARD), 0)

    @cached_property
    def written(self) -> list[onnx.NodeProto]:
        """All nodes as they are written, those of functions and subgraphs included."""
        bodies = (self.model.graph.node, *(function.node for function in self.model.functions))
        return [node for body in bodies for node in walk(body)]

    @cached_property
    def inlined(self) -> onnx.ModelProto:
        """The model in standard operators, folded and typed as far as possible, without weights."""
        return self.typed[0]

    @cached_property
    def typed(self) -> tuple[onnx.ModelProto, str]:
        """The inlined model, and why its types could not be inferred; empty if they could."""
        skeleton = onnx.ModelProto()
        skeleton.CopyFrom(self.model)
        for tensor in skeleton.graph.initializer:
            if math.prod(tensor.dims) > MAX_SIZE:
                tensor.ClearField("raw_data")
        try:
            if skeleton.functions:
                skeleton = onnx.inliner.inline_local_functions(skeleton)
            return infer_shapes(fold_shapes(skeleton)), ""
        except (ValueError, RuntimeError, onnx.shape_inference.InferenceError) as error:
            return skeleton, str(error)

    @cached_property
    def nodes(self) -> list[onnx.NodeProto]:
        """All nodes of the inlined model, those of subgraphs included."""
        return list(walk(self.inlined.graph.node))

    @cached_property
    def types(self) -> dict[str, onnx.TypeProto.Tensor]:
        """Type and shape of every tensor of the inlined model; names are unique in ONNX."""
        graphs = [self.inlined.graph, *(graph for n in self.nodes for graph in subgraphs(n))]
        infos = [i for g in graphs for i in (*g.value_info, *g.input, *g.output)]
        types = {info.name: info.type.tensor_type for info in infos}
        for tensor in (t for graph in graphs for t in graph.initializer):
            kind = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            types[tensor.name] = kind.tensor_type
        return types

    def kind(self, name: str) -> int:
        """Element type of a tensor, UNDEFINED if it is not known."""
        return self.types[name].elem_type if name in self.types else TensorProto.UNDEFINED

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The graph's inputs without weights that are listed there too."""
        weights = {tensor.name for tensor in self.model.graph.initializer}
        return [info for info in self.model.graph.input if info.name not in weights]
