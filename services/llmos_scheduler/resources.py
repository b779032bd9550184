"""Amounts of hardware: what a task or a replica asks for, in cpus and bytes; and the same as a planner's `Shape`."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from llmos.contracts.jobs import JobSpec, ResourceRequest
from llmos.contracts.tasks import Kind
from llmos.sizes import format_bytes, parse_bytes
from llmos_scheduler.cluster import WHOLE, Shape
from llmos_scheduler.usage import Amounts

MOST_REPLICAS = 1024  # of one deployment
GANG = "gang"  # a kind that a trainer takes which can be a member of one
TAKES = "llmos/takes-"  # a machine carries this label for each kind of work that its living workers take


@dataclass(frozen=True, slots=True)
class Request:
    """What one task holds on each of its `nodes` while it has a lease: cpus, memory, and GPUs of which it gets
    `gpu_milli` and at least `gpu_memory` each; bytes. Only nodes with these labels and GPU models will do."""

    cpus: float = 0.0
    memory: int = 0
    gpus: int = 0
    gpu_memory: int = 0
    gpu_milli: int = WHOLE
    gpu_models: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    nodes: int = 1

    def __str__(self) -> str:
        share = f"{self.gpu_milli / 10:g} % of a GPU" if self.gpu_milli < WHOLE else ""
        gpus = share or f"{self.gpus} {'/'.join(self.gpu_models) or 'GPU'}{'s' * (self.gpus > 1)}"
        large = f" of {format_bytes(self.gpu_memory)}" if self.gpu_memory else ""
        labels = "".join(f", {name}={value}" for name, value in self.labels)
        amounts = f"{self.cpus:g} cpus, {format_bytes(self.memory)}{f', {gpus}{large}' if self.gpus else ''}{labels}"
        return amounts if self.nodes == 1 else f"{self.nodes} nodes with {amounts} each"

    @property
    def amounts(self) -> Amounts:
        """milli-GPU, thousandths of a cpu and memory in all, over all nodes."""
        nodes = self.nodes
        return self.gpus * self.gpu_milli * nodes, ceil(self.cpus * 1000) * nodes, self.memory * nodes

    def shape(self, takes: Iterable[str] = ()) -> Shape:
        """The request as the planner sees it: asked of each node, whose workers take these kinds of work."""
        return _shape(self, tuple(takes))


@lru_cache(8192)  # most jobs ask for what others asked for
def _shape(request: Request, takes: tuple[str, ...]) -> Shape:
    return Shape(
        cpus=ceil(request.cpus * 1000),
        memory=request.memory,
        gpus=request.gpus,
        milli=request.gpu_milli,
        gpu_memory=request.gpu_memory,
        models=frozenset(request.gpu_models),
        labels=frozenset(request.labels) | {(TAKES + kind, "yes") for kind in takes},
    )


CHECK = Request(cpus=0.25, memory=256 << 20)


def request_of(wants: ResourceRequest) -> Request:
    """The amounts of a spec. Raises `Rejected` for what is no amount."""
    return Request(
        cpus=wants.cpus,
        memory=parse_bytes(wants.memory),
        gpus=wants.gpus,
        gpu_memory=parse_bytes(wants.gpu_memory),
        gpu_milli=wants.gpu_milli,
        gpu_models=tuple(sorted(set(wants.gpu_models))),
        labels=tuple(sorted(wants.labels.items())),
        nodes=wants.nodes,
    )


def request_for(kind: Kind, spec: JobSpec) -> Request:
    """What a task of the job needs: `check` next to nothing, `export` the cpus and memory of the spec, `train` all."""
    if kind == "check":
        return CHECK
    whole = request_of(spec.resources)
    return whole if kind == "train" else Request(whole.cpus, whole.memory)
