"""A running system's history as a trace: what a replay needs, and what really happened in the same terms. Pure.

Jobs ask for what they asked for: cpus, memory, GPUs or a share of one, models, labels, several nodes. A system without
any GPU is replayed in cpus alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

from llmos.contracts.jobs import ResourceRequest
from llmos.contracts.nodes import Inventory
from llmos.contracts.queues import QueueSettings
from llmos.errors import Rejected
from llmos.queuespecs import guaranteed
from llmos_scheduler.cluster import Device, Machine, Shape
from llmos_scheduler.logged import Log, LoggedJob
from llmos_scheduler.queues import Queue
from llmos_scheduler.replay import Arrival, Event
from llmos_scheduler.resources import request_for
from llmos_scheduler.tenancy import devices_of
from llmos_scheduler.work import Places


@dataclass(frozen=True, slots=True)
class LoggedTrace:
    """`nodes` are all that were ever there; `guessed` are jobs that had not ended, so their figures say nothing."""

    nodes: dict[str, Machine]
    arrivals: list[Arrival]
    queues: tuple[Queue, ...]
    events: list[Event]
    guessed: frozenset[str]
    unit: str


def trace_of(log: Log) -> LoggedTrace:
    """The history as a trace. Raises `Rejected` when nothing in it can be replayed."""
    jobs = log.worked()
    unit = "GPUs" if any(has.gpus for has in log.nodes.values()) else "cpus"
    nodes = {name: _machine(has, unit) for name, has in sorted(log.nodes.items())}
    jobs = [job for job in jobs if _amount(job, unit)]
    if not jobs or not any(machine.devices for machine in nodes.values()):
        raise Rejected(
            f"none of the {len(log.jobs)} jobs in this history ever ran on {unit} of a known node",
            remedy="Replay a history in which jobs were trained.",
        )
    arrivals = {job.id: _arrival(job, unit, log.first) for job in jobs}
    return LoggedTrace(
        nodes=nodes,
        arrivals=list(arrivals.values()),
        queues=tuple(_queue(queue, unit) for queue in log.queues),
        events=sorted(
            (event for job in jobs for event in _events(job, arrivals[job.id], log)),
            key=lambda event: (event.time, event.kind == "start"),
        ),
        guessed=frozenset(job.id for job in jobs if job.guessed),
        unit=unit,
    )


def _machine(has: Inventory, unit: str) -> Machine:
    """The hardware of a node."""
    if unit != "GPUs":
        return Machine(0, 0, (Device(""),) * int(has.cpus))
    devices = tuple(Device(gpu.profile or gpu.model, gpu.memory) for gpu in devices_of(has.gpus))
    return Machine(round(has.cpus * 1000), has.memory, devices, dict(has.labels))


def bare(arrival: Arrival) -> Arrival:
    """The job on nodes of which nothing is known but the number of their GPUs."""
    shape = arrival.shape
    return arrival if shape is None else replace(arrival, shape=Shape(gpus=shape.gpus, milli=shape.milli))


def _queue(queue: QueueSettings, unit: str) -> Queue:
    """As it was set; quota and limit are GPUs, and mean nothing to a system without any."""
    if unit != "GPUs":
        return Queue(queue.name, queue.policy, queue.weight)
    return Queue(queue.name, queue.policy, queue.weight, queue.quota, queue.limit)


def fitted(queues: Sequence[Queue], gpus: int) -> tuple[Queue, ...]:
    """Queues whose quotas so many GPUs can keep: cut alike where they add up to more."""
    sure = guaranteed([QueueSettings(queue.name, quota=queue.quota) for queue in queues])
    if sure <= gpus:
        return tuple(queues)
    return tuple(queue if queue.quota is None else replace(queue, quota=queue.quota * gpus // sure) for queue in queues)


def _amount(job: LoggedJob, unit: str) -> int:
    """GPUs (or cpus) of all its nodes."""
    wants: ResourceRequest = job.spec.resources
    gpus = wants.gpus if job.kind == "train" else 0
    return (gpus if unit == "GPUs" else ceil(wants.cpus)) * wants.nodes


def _arrival(job: LoggedJob, unit: str, first: int) -> Arrival:
    spec = job.spec
    return Arrival(
        id=job.id,
        submitted=job.ready - first,
        duration=max(1, job.work),
        gpus=_amount(job, unit),
        shape=request_for(job.kind, spec).shape() if unit == "GPUs" else None,
        nodes=spec.resources.nodes,
        priority=spec.priority,
        queue=spec.queue,
        deadline=round(spec.deadline.timestamp() * 1000) - first if spec.deadline else None,
        tenant=spec.tenant,
    )


def _events(job: LoggedJob, arrival: Arrival, log: Log) -> Iterator[Event]:
    """Its runs as they were; the last of a job that is over ends it."""
    for place, lease in enumerate(job.leases):
        places: Places = tuple((node, tuple(range(len(devices)))) for node, devices in lease.places.items())
        yield Event(lease.start - log.first, "start", arrival, places)
        if lease.end >= 0:
            last = place + 1 == len(job.leases) and job.ended >= 0
            yield Event(lease.end - log.first, "end" if last else "preemption", arrival, places)
