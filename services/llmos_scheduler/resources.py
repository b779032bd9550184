"""Amounts of hardware: what a task asks for, in cpus and bytes."""

from dataclasses import dataclass

from llmos.contracts.jobs import JobSpec
from llmos.contracts.tasks import Kind
from llmos.sizes import format_bytes, parse_bytes


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
