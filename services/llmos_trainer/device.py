"""The device that a child trains on: set up so that runs repeat to the byte, and kept within what was leased."""

import time

import torch

from llmos.errors import LlmosError
from llmos_trainer.orders import TrainOrder

SETTLE_S = 5.0
_POLL_S = 0.05


def prepare(order: TrainOrder) -> torch.device:
    """Set the process up: threads, determinism, quiet libraries, its share of a GPU; the device to train on.

    Raises `LlmosError` when the leased GPU can't be used.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(order.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # would cost time
    device = torch.device(order.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise LlmosError("the leased GPU can't be used", remedy="Check the driver and the installed torch.")
        torch.backends.cuda.enable_mem_efficient_sdp(False)  # its backward pass adds in any order
        torch.backends.cuda.enable_cudnn_sdp(False)
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_share(order.gpu_milli, order.gpu_memory, total), device)
    return device


def settles(device: torch.device, within: float = SETTLE_S) -> bool:
    """Whether all that was begun on the device is done, or is within so many seconds: a GPU may wait for ever for the
    sum of a member that is gone, and reading from it would, too.
    """
    if device.type != "cuda":
        return True
    deadline = time.monotonic() + within
    try:
        stream = torch.cuda.current_stream(device)
        while not stream.query():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
    except RuntimeError:
        return False  # the network's failure became the device's
    return True


def memory_share(milli: int, memory: int, total: int) -> float:
    """The share of a GPU's `total` bytes that may be allocated: `memory` of them, or (0) as much as of the GPU itself.

    What the CUDA context takes (about half a GiB a process) is not counted by torch.
    """
    return min(1.0, memory / total) if memory else min(1000, milli) / 1000
