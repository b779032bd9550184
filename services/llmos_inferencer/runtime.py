"""onnxruntime as this service uses it: quiet, without telemetry, one arena for all sessions, no spinning threads."""

import os

os.environ.setdefault(
    "ORT_DISABLE_TELEMETRY", "1"
)  # read when onnxruntime is imported; its Linux wheels have telemetry on

os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order in which `devices` counts GPUs

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

from llmos.errors import Rejected
from llmos_inferencer.engine import Means


def open_session(path: Path, means: Means) -> Any:
    """An `InferenceSession` on the device of `means`. Raises `Rejected` when this onnxruntime can't use that device,
    and what onnxruntime raises for a bad graph.
    """
    chosen = providers(means.device, means.gpu_memory)
    session = ort.InferenceSession(str(path), session_options(means.threads), providers=chosen)
    if means.device != "cpu" and "CUDAExecutionProvider" not in session.get_providers():
        raise _unusable(means.device)  # onnxruntime goes to the CPU without a word when CUDA does not start
    return session


def providers(device: str, memory: int = 0) -> list[Any]:
    """The execution providers for a device: `cpu`, or `cuda:<number>` with the CPU behind it; `memory` bytes of a GPU
    at most (0: all of it) for weights and activations of a session.
    """
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if kind != "cuda" or "CUDAExecutionProvider" not in ort.get_available_providers():
        raise _unusable(device)
    options: dict[str, int | str] = {"device_id": int(number or 0)}
    if memory:
        options |= {"gpu_mem_limit": memory, "arena_extend_strategy": "kSameAsRequested"}
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


def _unusable(device: str) -> Rejected:
    return Rejected(
        f"this inferencer can't use the device {device!r}",
        remedy="Install 'llmos[gpu]' instead of onnxruntime on this node, and its driver, or deploy without GPUs.",
    )


def session_options(threads: int, spinning: Mapping[str, str] | None = None) -> Any:
    """The options of every session here. `spinning`: how its threads wait awake for work (`allow_spinning`, …)."""
    _share_arena()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads win 0.4 ms of 2.4 on an idle machine and lose 3.5 ms where others want the cores too.
    for name, value in (spinning or {"allow_spinning": "0"}).items():
        options.add_session_config_entry(f"session.intra_op.{name}", value)
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


@cache
def _share_arena() -> None:
    """One arena for the activations of all sessions, grown by what is asked for: they never hold three times what
    one needs.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))
