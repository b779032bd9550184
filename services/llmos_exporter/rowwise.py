"""int8 in which an answer never depends on its neighbours: each token has a scale of its own.

`quantize_dynamic` gives one scale to all activations of a batch, so that a text's answer changes with whoever is beside
it. Here every matrix product with constant weights becomes, in standard operators,

    scale = max|x| / 127, one per row of x;  x8 = round(x / scale) + 128, uint8
    y = MatMulInteger(x8, w8) * scale * scales of w, one per column of w

The two scales are applied one after the other: of their product onnxruntime 1.32 makes a `MatMulIntegerToFloat`, which
may take the scales of rows wrongly. Integers add up alike in any order. Unsigned activations: onnxruntime's kernel for
signed ones is ten times slower. Embedding tables become int8 with a scale per row. The rest stays in float32.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

LEAST = 1e-12  # of a scale: a row of zeros stays zeros
SMALLEST_TABLE = 1024  # rows: what is gathered from fewer is no embedding of words
Weights = NDArray[np.float32]


def quantise(model: Any, *, limit: int = 127, products: bool = True) -> Any:
    """Turn the matrix products (unless `products` is false) and large embeddings to int8, in place; the model.

    `limit` bounds the weights: 63 leaves the headroom that processors without VNNI need (their 16-bit sums saturate).
    """
    return _Quantiser(model.graph, limit, products).quantise(model)


class _Quantiser:
    def __init__(self, graph: Any, limit: int, products: bool) -> None:
        self._graph = graph
        self._limit = limit
        self._products = products
        self._weights = {tensor.name: tensor for tensor in graph.initializer} | _constants(graph.node)
        self._nodes: list[Any] = []
        self._rows: dict[str, tuple[str, str]] = {}  # of activations: quantised, scale
        self._made: dict[str, Any] = {}
        self._halves: dict[str, tuple[str, str]] = {}

    def quantise(self, model: Any) -> Any:
        for node in self._graph.node:
            if not (self._product(node) or self._table(node)):
                self._nodes.append(node)
        used = {name for node in self._nodes for name in _read(node)} | {value.name for value in self._graph.output}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        nodes = [node for node in self._nodes if node.op_type != "Constant" or node.output[0] in used]
        for field, values in (("node", nodes), ("initializer", [*kept, *self._made.values()]), ("value_info", [])):
            self._graph.ClearField(field)
            getattr(self._graph, field).extend(values)
        return model

    def _product(self, node: Any) -> bool:
        """Replace `x @ w` (and a Gemm's `+ b`) where `w` is a constant matrix."""
        if not self._products or node.op_type not in ("MatMul", "Gemm") or node.input[1] not in self._weights:
            return False
        tensor = self._weights[node.input[1]]
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        odd = given.get("transA", 0) or given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0
        if len(tensor.dims) != 2 or tensor.data_type != onnx.TensorProto.FLOAT or odd:
            return False
        transposed = bool(given.get("transB", 0))
        whole, scales = self._half(tensor, 1 if transposed else 0, transposed)
        rows, scale = self._activations(node.input[0])
        out = node.output[0]
        biased = len(node.input) > 2 and node.input[2]
        product = f"{out}/product" if biased else out
        self._add("MatMulInteger", [rows, whole, self._constant("rowwise/zero", np.uint8(128))], f"{out}/int")
        self._add("Cast", [f"{out}/int"], f"{out}/float", to=onnx.TensorProto.FLOAT)
        self._add("Mul", [f"{out}/float", scales], f"{out}/columns")
        self._add("Mul", [f"{out}/columns", scale], product)
        if biased:
            self._add("Add", [product, node.input[2]], out)
        return True

    def _table(self, node: Any) -> bool:
        """Replace the gathering of rows from a large constant table."""
        if node.op_type != "Gather" or node.input[0] not in self._weights:
            return False
        tensor = self._weights[node.input[0]]
        if any(attribute.name == "axis" and attribute.i for attribute in node.attribute):
            return False
        if len(tensor.dims) != 2 or tensor.data_type != onnx.TensorProto.FLOAT or tensor.dims[0] < SMALLEST_TABLE:
            return False
        whole, scales = self._half(tensor, 1, False)
        out = node.output[0]
        self._add("Gather", [whole, node.input[1]], f"{out}/int")
        self._add("Gather", [scales, node.input[1]], f"{out}/scale")
        self._add("Cast", [f"{out}/int"], f"{out}/float", to=onnx.TensorProto.FLOAT)
        self._add("Mul", [f"{out}/float", f"{out}/scale"], out)
        return True

    def _activations(self, name: str) -> tuple[str, str]:
        """The quantised rows of an activation, and their scales; made once, however many products read it."""
        if name not in self._rows:
            part = f"{name}/rowwise"
            self._add("Abs", [name], f"{part}/abs")
            last = self._constant("rowwise/last", np.array([-1], np.int64))
            self._add("ReduceMax", [f"{part}/abs", last], f"{part}/max", keepdims=1)
            self._add("Mul", [f"{part}/max", self._constant("rowwise/step", np.float32(1 / 127))], f"{part}/step")
            self._add("Max", [f"{part}/step", self._constant("rowwise/least", np.float32(LEAST))], f"{part}/scale")
            self._add("Div", [name, f"{part}/scale"], f"{part}/ratio")
            self._add("Round", [f"{part}/ratio"], f"{part}/round")
            self._add("Add", [f"{part}/round", self._constant("rowwise/middle", np.float32(128))], f"{part}/shifted")
            self._add("Cast", [f"{part}/shifted"], f"{part}/rows", to=onnx.TensorProto.UINT8)
            self._rows[name] = (f"{part}/rows", f"{part}/scale")
        return self._rows[name]

    def _half(self, tensor: Any, axis: int, transposed: bool) -> tuple[str, str]:
        """The int8 weights, one scale for each place along the other axis than `axis`; a shared tensor once."""
        key = f"{tensor.name}/{axis}{'t' if transposed else ''}"
        if key not in self._halves:
            weights: Weights = numpy_helper.to_array(tensor)
            scales = np.maximum(np.abs(weights).max(axis=axis, keepdims=True) / self._limit, LEAST)
            whole = np.clip(np.round(weights / scales), -self._limit, self._limit).astype(np.int8)
            if transposed:
                whole, scales = np.ascontiguousarray(whole.T), scales.T
            self._halves[key] = (
                self._constant(f"{key}/int8", whole),
                self._constant(f"{key}/scale", scales.astype(np.float32)),
            )
        return self._halves[key]

    def _constant(self, name: str, value: Any) -> str:
        if name not in self._made:
            self._made[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _add(self, kind: str, given: list[str], out: str, **attributes: Any) -> None:
        self._nodes.append(helper.make_node(kind, given, [out], name=out, **attributes))


def _constants(nodes: Iterable[Any]) -> dict[str, Any]:
    """Tensors that nodes hold rather than the graph."""
    return {
        node.output[0]: attribute.t
        for node in nodes
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }


def _read(node: Any) -> Iterable[str]:
    """What a node reads, also from within the graphs that it holds."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for below in inner.node:
                yield from _read(below)
            yield from (value.name for value in inner.output)
