"""OpenVINO behind the part of onnxruntime's interface that encoders use; the optional extra `llmos[openvino]`.

The same ONNX file, computed in float32, so that answers stay what they were proved to be.
"""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmos_inferencer.engine import Means

FASTER = 0.9  # of onnxruntime's time, or it is not worth another runtime
CLOSE = 1e-3  # largest difference of an output
TRIES = 3
_TYPES = {"i64": "tensor(int64)", "f32": "tensor(float)", "u8": "tensor(uint8)"}


class Named(NamedTuple):
    """An input or output of a graph."""

    name: str
    type: str


class OpenVinoSession:
    """A compiled model; every thread has its own request."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._local = threading.local()

    def get_inputs(self) -> list[Named]:
        return [_named(each) for each in self._compiled.inputs]

    def get_outputs(self) -> list[Named]:
        return [_named(each) for each in self._compiled.outputs]

    def run(self, names: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
        """Outputs by name, as `onnxruntime.InferenceSession.run` gives them."""
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        found = request.infer(feeds, share_inputs=True, share_outputs=False)
        return [np.array(found[name]) for name in names]


def open_openvino(path: Path, means: Means) -> OpenVinoSession | None:
    """The model on the CPU; `None` without OpenVINO, for another device, or for a graph that it does not know."""
    if means.device != "cpu":
        return None
    try:
        import openvino
    except ImportError:
        return None
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": means.threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    try:
        return OpenVinoSession(openvino.Core().compile_model(str(path), "CPU", options))
    except Exception:  # noqa: BLE001 - whatever it can't compile is served by onnxruntime
        return None


def is_better(run: Callable[[Any], Any], now: Any, other: Any) -> bool:
    """Whether `other` gives what `now` gives, and faster: measured in turns by `run(session)`, an array each."""
    try:
        first, second = np.asarray(run(now)), np.asarray(run(other))
        if first.shape != second.shape or not np.allclose(first, second, rtol=CLOSE, atol=CLOSE):
            return False
        taken = {id(now): [0.0], id(other): [0.0]}
        for _ in range(TRIES):
            for session in (now, other):
                started = time.perf_counter()
                run(session)
                taken[id(session)].append(time.perf_counter() - started)
    except Exception:  # noqa: BLE001 - an operator that fails when it runs: onnxruntime serves
        return False
    return min(taken[id(other)][1:]) < FASTER * min(taken[id(now)][1:])


def _named(port: Any) -> Named:
    return Named(port.get_any_name(), _TYPES.get(port.get_element_type().get_type_name(), "unknown"))
