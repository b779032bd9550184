"""The numeric forms of a graph: from the fp32 graph to the one that will serve; which forms a target is offered."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from llmos_exporter import graphs, rowwise

BLOCK = 32  # weights that share a scale in int4
EDGE_LIMIT = 63  # of int8 weights for processors that nobody knows: those without VNNI saturate beyond

_GEMM = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}

Convert = Callable[[Path, Path, str], Path]  # the fp32 graph, the new path, the target


def keep(graph: Path, _path: Path, _target: str) -> Path:
    """fp32: the graph as it is."""
    return graph


def int8(graph: Path, path: Path, target: str) -> Path:
    """Weights per channel, activations per token: see `rowwise`."""
    limit = EDGE_LIMIT if target == "edge" else 127
    return graphs.save(rowwise.quantise(onnx.load(graph), limit=limit), path)


def int4(graph: Path, path: Path, _target: str) -> Path:
    """Weights in blocks of 32, symmetric (MatMulNBits); activations become int8 by the block within the product."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantiser = MatMulNBitsQuantizer(_products(onnx.load(graph)), block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantiser.process()
    made = rowwise.quantise(quantiser.model.model, products=False)
    return graphs.save(made, path)


def _products(model: Any) -> Any:
    """The model with MatMul and Add for each plain Gemm, in place: the quantiser knows no Gemm."""
    nodes = []
    for node in model.graph.node:
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Gemm" and all(given.get(name, usual) == usual for name, usual in _GEMM.items()):
            product = f"{node.output[0]}/product" if len(node.input) > 2 else node.output[0]
            nodes.append(helper.make_node("MatMul", node.input[:2], [product], name=product))
            if len(node.input) > 2:
                nodes.append(helper.make_node("Add", [product, node.input[2]], node.output, name=node.output[0]))
        else:
            nodes.append(node)
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    return model


def fp16(graph: Path, path: Path, _target: str) -> Path:
    """Half precision throughout; what is fed and fetched stays float32, but for caches."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(graph)
    kept = [
        value.name
        for value in (*model.graph.input, *model.graph.output)
        if not value.name.startswith(("past_", "present", "cross"))
    ]
    return graphs.save(convert_float_to_float16(model, keep_io_types=kept), path)


PRECISIONS: dict[str, Convert] = {"fp32": keep, "int8": int8, "fp16": fp16, "int4": int4}


def candidates(target: str, *, decoder: bool) -> list[str]:
    """What `auto` tries for a target, the most exact first."""
    if target == "cuda":
        return ["fp32", "fp16"]
    return ["fp32", "int8", *(["int4"] if decoder else [])]
