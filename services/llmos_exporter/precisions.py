"""The numeric forms of a graph: from the fp32 graph to the one that will serve. One function a precision."""

from collections.abc import Callable
from pathlib import Path

import onnx

from llmos_exporter import graphs

Convert = Callable[[Path, Path], Path]


def keep(graph: Path, _folder: Path) -> Path:
    """fp32: the graph as it is."""
    return graph


def quantise(graph: Path, folder: Path) -> Path:
    """int8: weights per channel, signed, at rest; activations per tensor, at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder.mkdir(parents=True)
    raw = folder / "raw.onnx"
    quantize_dynamic(
        graph,
        raw,
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=(graph.parent / graphs.WEIGHTS).exists(),
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # where shape inference does not know the type
    )
    return graphs.save(onnx.load(raw), folder)


PRECISIONS: dict[str, Convert] = {"fp32": keep, "int8": quantise}
