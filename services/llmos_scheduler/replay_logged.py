"""A running system's history as a trace: what a replay needs, and what really happened in the same terms. Pure.

What is replayed are GPUs; a system without any is replayed in cpus. A share of a GPU counts as a whole one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

from llmos.contracts.jobs import ResourceRequest
from llmos.contracts.queues import QueueSettings
from llmos.errors import Rejected
from llmos.queuespecs import guaranteed
from llmos_scheduler.cluster import Device, Machine
from llmos_scheduler.logged import Log, LoggedJob
from llmos_scheduler.queues import Queue
from llmos_scheduler.replay import Arrival, Event
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
    nodes = [(name, len(has.gpus) if unit == "GPUs" else int(has.cpus)) for name, has in sorted(log.nodes.items())]
    jobs = [job for job in jobs if _amount(job, unit)]
    if not jobs or not any(count for _, count in nodes):
        raise Rejected(
            f"none of the {len(log.jobs)} jobs in this history ever ran on {unit} of a known node",
            remedy="Replay a history in which jobs were trained.",
        )
    arrivals = {job.id: _arrival(job, unit, log.first) for job in jobs}
    return LoggedTrace(
        nodes={name: Machine(0, 0, (Device(""),) * count) for name, count in nodes if count},
        arrivals=list(arrivals.values()),
        queues=tuple(_queue(queue, unit) for queue in log.queues),
        events=sorted(
            (event for job in jobs for event in _events(job, arrivals[job.id], log)),
            key=lambda event: (event.time, event.kind == "start"),
        ),
        guessed=frozenset(job.id for job in jobs if job.guessed),
        unit=unit,
    )


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
