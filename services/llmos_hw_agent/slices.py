"""MIG slices of a GPU: devices of their own, with a uuid that CUDA_VISIBLE_DEVICES takes."""

import math
from typing import Any

from llmos.contracts.nodes import Gpu


def slices(nvml: Any, handle: Any, gpu: Gpu) -> list[Gpu]:
    """The slices that exist of a GPU in MIG mode; a slice that can't be read is left out. Raises nothing of NVML's."""
    try:
        most = int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))
    except nvml.NVMLError:
        return []
    found = []
    for at in range(most):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, at)
            found.append(
                Gpu(
                    id=_text(nvml.nvmlDeviceGetUUID(part)),
                    model=gpu.model,
                    memory=int(nvml.nvmlDeviceGetMemoryInfo(part).total),
                    index=gpu.index,
                    compute=gpu.compute,
                    parent=gpu.id,
                    profile=_profile(nvml, part),
                )
            )
        except nvml.NVMLError:
            continue  # no slice has this number (they may have gaps), or it was destroyed meanwhile
    return found


def _profile(nvml: Any, part: Any) -> str:
    """Such as `1g.10gb`: from the slice's name, or as nvidia-smi makes it from its size."""
    _, mark, profile = _text(nvml.nvmlDeviceGetName(part)).rpartition(" MIG ")
    if mark:
        return profile.strip()
    size = nvml.nvmlDeviceGetAttributes_v2(part)
    compute, whole = int(size.computeInstanceSliceCount), int(size.gpuInstanceSliceCount)
    name = f"{whole}g.{math.ceil(size.memorySizeMB / 1024)}gb"
    return name if compute == whole else f"{compute}c.{name}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
