"""From a torch module to an ONNX graph: the routes that are tried in order, and the form that every file gets.

A route writes a file whose named axes are free. A file in its final form holds nothing of the machine that made it, so
that equal input gives equal bytes.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from llmos.errors import Rejected

OPSET = 18
MICROSOFT = "com.microsoft"
# onnxruntime maps weights that lie beside the graph and copies those within: MiniLM loads in 149 MiB instead of 194.
LARGEST_WITHIN = 1 << 20
WEIGHTS = ".data"  # behind the graph's name: the file of a graph of more than a few weights

Feeds = Mapping[str, NDArray[Any]]
Axes = Mapping[str, tuple[str | int, ...]]


class Interface(NamedTuple):
    """The names of what a graph takes and gives, each with its axes: a name is free, a 0 stands for what is fixed."""

    takes: Axes
    gives: Axes


class Module(torch.nn.Module):
    """A function of named tensors, with the model whose weights it uses; `custom` if it uses operators of
    onnxruntime's own.
    """

    def __init__(self, model: Any, function: Callable[..., Any], interface: Interface, *, custom: bool = False) -> None:
        super().__init__()
        self.model = model
        self.opsets = {MICROSOFT: 1} if custom else {}
        self._function = function
        self._interface = interface

    def forward(self, **given: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self._function(**given)
        return dict(zip(self._interface.gives, found if isinstance(found, tuple) else (found,), strict=True))


class _Positional(torch.nn.Module):
    """The same for a tracer, which knows no names."""

    def __init__(self, module: Module, names: Iterable[str]) -> None:
        super().__init__()
        self.module = module
        self._names = tuple(names)

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.module(**dict(zip(self._names, given, strict=True))).values())


Route = Callable[[Module, Feeds, Interface, Path], None]


def by_tracing(module: Module, sample: Feeds, interface: Interface, path: Path) -> None:
    """TorchScript: quick, and the leanest graph; follows what Python did for the sample."""
    free = {
        name: {at: axis for at, axis in enumerate(axes) if isinstance(axis, str)}
        for name, axes in (interface.takes | interface.gives).items()  # type: ignore[operator]  # both are dicts
    }
    torch.onnx.export(
        _Positional(module, interface.takes).eval(),
        tuple(torch.from_numpy(sample[name]) for name in interface.takes),
        path,
        dynamo=False,
        input_names=list(interface.takes),
        output_names=list(interface.gives),
        dynamic_axes=free,
        opset_version=OPSET,
        custom_opsets=module.opsets,
    )


def by_dynamo(module: Module, sample: Feeds, interface: Interface, path: Path) -> None:
    """transformers' own exporter over torch.export: slow, and right for models whose Python depends on the shape."""
    import onnx_ir
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    inputs = {name: torch.from_numpy(sample[name]) for name in interface.takes}
    exporter: Any = OnnxExporter
    exported = exporter().export(module.eval(), inputs, OnnxConfig(dynamic=True, opset_version=OPSET))
    onnx_ir.save(exported.program, path, external_data=f"{path.name}.weights")


ROUTES: dict[str, Route] = {"tracing": by_tracing, "dynamo": by_dynamo}


def export(route: Route, module: Module, sample: Feeds, interface: Interface, path: Path) -> Path:
    """Export by one route to `path`, in a folder that may be new; the graph in its final form. Raises `Rejected`."""
    raw = path.parent / f"{path.stem}-raw"
    raw.mkdir(parents=True)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracers; parity says whether they matter
            route(module, sample, interface, raw / path.name)
        graph = onnx.load(raw / path.name)
    except Exception as error:  # exporters raise anything for a model that they don't know; the next route is tried
        first = (str(error).strip() or "no reason given").splitlines()[0][:300]
        raise Rejected(f"{type(error).__name__}: {first}") from error
    check_interface(graph, interface)
    return save(graph, path, interface)


def check_interface(graph: Any, interface: Interface) -> None:
    """Raise `Rejected` unless the graph takes and gives what it should, its free axes free."""
    for what, values, wanted in (
        ("takes", graph.graph.input, interface.takes),
        ("gives", graph.graph.output, interface.gives),
    ):
        if {value.name for value in values} != set(wanted):
            names = sorted(value.name for value in values)
            raise Rejected(f"the graph {what} {', '.join(names)}, and not {', '.join(wanted)}")
    for value in graph.graph.input:
        for axis, name in zip(value.type.tensor_type.shape.dim, interface.takes[value.name], strict=True):
            if isinstance(name, str) and axis.HasField("dim_value"):
                raise Rejected(f"{value.name} has a fixed size in the graph")
    for value in graph.graph.output:
        if value.name == "logits" and value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise Rejected(f"the graph gives {value.name} in another form than float32")


def save(graph: Any, path: Path, interface: Interface | None = None) -> Path:
    """Write a graph in its final form: one file, or graph and weights apart from 1 MiB on."""
    strip(graph, interface)
    if sum(tensor.ByteSize() for tensor in graph.graph.initializer) < LARGEST_WITHIN:
        path.write_bytes(graph.SerializeToString(deterministic=True))
    else:
        onnx.save_model(
            graph, path, save_as_external_data=True, all_tensors_to_one_file=True, location=path.name + WEIGHTS,
            size_threshold=1024,
        )  # fmt: skip
    return path


def parts(path: Path) -> list[Path]:
    """The files of a graph: itself, and its weights where they lie apart."""
    return [part for part in (path, path.with_name(path.name + WEIGHTS)) if part.exists()]


def strip(graph: Any, interface: Interface | None = None) -> None:
    """Take out what tells of the machine and the moment: documentation, stack traces, paths; name the free axes."""
    graph.doc_string = ""
    graph.ClearField("metadata_props")
    graph.ClearField("producer_version")
    axes: dict[str, tuple[str | int, ...]] = {**interface.takes, **interface.gives} if interface else {}
    for value in (*graph.graph.input, *graph.graph.output):
        for number, axis in enumerate(value.type.tensor_type.shape.dim):
            name = axes[value.name][number] if value.name in axes else 0
            if isinstance(name, str):
                axis.dim_param = name
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


def arrays(feeds: Feeds) -> dict[str, NDArray[Any]]:
    """Feeds in the memory order that onnxruntime wants."""
    return {name: np.ascontiguousarray(array) for name, array in feeds.items()}
