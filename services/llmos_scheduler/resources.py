"""Amounts of hardware: what a task asks for, in cpus and bytes, and text such as `2GiB` for both directions."""

import re
from dataclasses import dataclass

from llmos.contracts.jobs import JobSpec
from llmos.contracts.tasks import Kind
from llmos.errors import Rejected

_UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40,
}  # fmt: skip
_QUANTITY = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]{0,3})\s*")
LARGEST = 2**60


def parse_bytes(value: int | str) -> int:
    """Bytes of `2147483648`, `2GiB`, `2Gi`, `2G` (all binary) or `2GB` (decimal). Raises `Rejected`."""
    if isinstance(value, int):
        amount = value
    else:
        found = _QUANTITY.fullmatch(value)
        unit = _UNITS.get(found[2].upper()) if found else None
        if found is None or unit is None:
            raise Rejected(
                f"{value!r} is no amount of memory", remedy="Write bytes, or a number and a unit: 512MiB, 2GiB"
            )
        amount = round(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit
    if not 0 <= amount <= LARGEST:
        raise Rejected(f"{value!r} lies outside 0 to {LARGEST} bytes")
    return amount


def format_bytes(amount: int) -> str:
    """`2GiB`, `1.5GiB`, `256MiB`: the largest binary unit that leaves a number of at least 1."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(amount) >= size:
            return f"{round(amount / size, 1):g}{unit}"
    return f"{amount}B"


@dataclass(frozen=True, slots=True)
class Request:
    """What one task holds while it has a lease: cpus, memory, and whole GPUs of at least `gpu_memory` each; bytes."""

    cpus: float = 0.0
    memory: int = 0
    gpus: int = 0
    gpu_memory: int = 0

    def __str__(self) -> str:
        gpus = f", {self.gpus} GPU{'s' * (self.gpus > 1)}" if self.gpus else ""
        large = f" of {format_bytes(self.gpu_memory)}" if self.gpus and self.gpu_memory else ""
        return f"{self.cpus:g} cpus, {format_bytes(self.memory)}{gpus}{large}"


CHECK = Request(cpus=0.25, memory=256 << 20)


def request_for(kind: Kind, spec: JobSpec) -> Request:
    """What a task of the job needs: `check` next to nothing, `export` the cpus and memory of the spec, `train` all."""
    if kind == "check":
        return CHECK
    wants = spec.resources
    whole = Request(wants.cpus, parse_bytes(wants.memory), wants.gpus, parse_bytes(wants.gpu_memory))
    return whole if kind == "train" else Request(whole.cpus, whole.memory)
