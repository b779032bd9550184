"""From a torch classifier to an ONNX graph: the routes that are tried in order, and the form that every file gets.

A route traces `model(input_ids, attention_mask).logits` with both axes free and writes a file. A file in its final form
holds nothing of the machine that made it, so that equal input gives equal bytes.
"""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx
import torch

from llmos.errors import Rejected
from llmos_exporter.batches import Batch

OPSET = 18
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "logits"
AXES = ("batch", "length")
GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"  # beside a graph of more than a few weights
# onnxruntime maps weights that lie beside the graph and copies those within: MiniLM loads in 149 MiB instead of 194.
LARGEST_WITHIN = 1 << 20

Route = Callable[[Any, Batch, Path], None]


class _Logits(torch.nn.Module):
    """The model as a function of two tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits.float()


def by_tracing(model: Any, sample: Batch, path: Path) -> None:
    """TorchScript: quick, and the leanest graph; follows what Python did for the sample."""
    free = {name: dict(enumerate(AXES)) for name in INPUTS} | {OUTPUT: {0: AXES[0]}}
    torch.onnx.export(
        _Logits(model).eval(),
        tuple(torch.from_numpy(array) for array in sample),
        path,
        dynamo=False,
        input_names=list(INPUTS),
        output_names=[OUTPUT],
        dynamic_axes=free,
        opset_version=OPSET,
    )


def by_dynamo(model: Any, sample: Batch, path: Path) -> None:
    """transformers' own exporter over torch.export: slow, and right for models whose Python depends on the shape."""
    import onnx_ir
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    inputs = {name: torch.from_numpy(array) for name, array in zip(INPUTS, sample, strict=True)}
    exporter: Any = OnnxExporter
    exported = exporter().export(model, inputs, OnnxConfig(dynamic=True, opset_version=OPSET))
    onnx_ir.save(exported.program, path, external_data=f"{path.name}.weights")


ROUTES: dict[str, Route] = {"tracing": by_tracing, "dynamo": by_dynamo}


def export(route: Route, model: Any, sample: Batch, folder: Path) -> Path:
    """Export by one route into the new folder; the graph's path, in its final form. Raises `Rejected`."""
    folder.mkdir(parents=True)
    raw = folder / "raw"
    raw.mkdir()
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # plain matrix products: fewer nodes, and onnxruntime knows how to fuse them
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracers; parity says whether they matter
            route(model, sample, raw / GRAPH)
        graph = onnx.load(raw / GRAPH)
    except Exception as error:  # exporters raise anything for a model that they don't know; the next route is tried
        first = (str(error).strip() or "no reason given").splitlines()[0][:300]
        raise Rejected(f"{type(error).__name__}: {first}") from error
    finally:
        model.set_attn_implementation(attention)
    check_interface(graph)
    return save(graph, folder)


def check_interface(graph: Any) -> None:
    """Raise `Rejected` unless the graph takes int64 `[batch, length]` twice and gives float32 `[batch, labels]`."""
    takes = {value.name: value.type.tensor_type for value in graph.graph.input}
    gives = {value.name: value.type.tensor_type for value in graph.graph.output}
    if set(takes) != set(INPUTS) or any(kind.elem_type != onnx.TensorProto.INT64 for kind in takes.values()):
        raise Rejected(f"the graph takes {sorted(takes)}, and not {', '.join(INPUTS)} as int64")
    if set(gives) != {OUTPUT} or gives[OUTPUT].elem_type != onnx.TensorProto.FLOAT:
        raise Rejected(f"the graph gives {sorted(gives)}, and not {OUTPUT} as float32")
    for name, kind in takes.items():
        if any(axis.HasField("dim_value") for axis in kind.shape.dim):
            raise Rejected(f"{name} has a fixed size in the graph")


def save(graph: Any, folder: Path) -> Path:
    """Write `model.onnx` in its final form: one file, or graph and weights apart from 1 MiB on."""
    strip(graph)
    path = folder / GRAPH
    if sum(tensor.ByteSize() for tensor in graph.graph.initializer) < LARGEST_WITHIN:
        path.write_bytes(graph.SerializeToString(deterministic=True))
    else:
        onnx.save_model(
            graph, path, save_as_external_data=True, all_tensors_to_one_file=True, location=WEIGHTS, size_threshold=1024
        )
    return path


def strip(graph: Any) -> None:
    """Take out what tells of the machine and the moment: documentation, stack traces, paths; name the free axes."""
    graph.doc_string = ""
    graph.ClearField("metadata_props")
    for value in (*graph.graph.input, *graph.graph.output):
        for number, axis in enumerate(value.type.tensor_type.shape.dim):
            if axis.HasField("dim_param"):
                axis.dim_param = AXES[number]
    for function in graph.functions:
        _strip_nodes(function.node)
        function.ClearField("metadata_props")
        function.doc_string = ""
    _strip_graph(graph.graph)


def _strip_graph(graph: Any) -> None:
    graph.doc_string = ""
    graph.ClearField("metadata_props")
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.doc_string = ""
        value.ClearField("metadata_props")
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[Any]) -> None:
    for node in nodes:
        node.doc_string = ""
        node.ClearField("metadata_props")
        for attribute in node.attribute:
            attribute.doc_string = ""
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _strip_graph(inner)


def opset(path: Path) -> int:
    """The version of the standard operators that a graph needs."""
    graph = onnx.load(path, load_external_data=False)
    return int(next(used.version for used in graph.opset_import if used.domain in ("", "ai.onnx")))
