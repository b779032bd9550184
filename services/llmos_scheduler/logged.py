"""What really happened, from the events of a running system: its nodes, its queues, and every job's leases. Pure.

Only the task that holds a job's resources is followed (`train`, or `export` where nothing is trained): checks are too
small to matter, and an export after a training holds no GPU. Times are whole milliseconds, as in `replay`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from llmos.contracts.jobs import JobSpec
from llmos.contracts.nodes import Inventory
from llmos.contracts.queues import QueueSettings
from llmos.contracts.tasks import Kind, Member, kinds_of
from llmos.errors import Rejected
from llmos_scheduler.predict import Durations

Outcome = Literal["", "done", "failed", "stopped"]  # "": it runs; stopped: preempted or given back, its work saved


class Fact(Struct, frozen=True):
    """One stored event, as `llmos get events -o json` writes it, one a line. `time` in Unix seconds."""

    time: float
    type: str
    data: Raw


class _Admitted(Struct, frozen=True):
    job: str
    spec: JobSpec


class _Task(Struct, frozen=True):
    """What the facts of tasks have in common, and what placements say."""

    task: str
    job: str
    lease: int
    kind: str = ""
    node: str = ""
    devices: list[str] = []
    members: list[Member] = []
    metrics: dict[str, float] = {}


class _JobEnded(Struct, frozen=True):
    job: str


class _Node(Struct, frozen=True):
    node: str
    inventory: Inventory | None = None
    kinds: list[str] = []


class _Queues(Struct, frozen=True):
    queues: list[QueueSettings] = []


@dataclass(slots=True)
class Lease:
    """One run: ids of its GPUs by node, from `start` to `end` (-1: it runs); `saved` is its newest checkpoint."""

    number: int
    start: int
    places: dict[str, tuple[str, ...]]
    end: int = -1
    saved: int = -1
    outcome: Outcome = ""

    def kept(self, now: int) -> int:
        """The part of its time that was not lost with it."""
        if self.outcome == "failed":
            return max(0, self.saved - self.start)
        return (now if self.end < 0 else self.end) - self.start


@dataclass(slots=True)
class LoggedJob:
    """A job as it went. `ready` is when it could have started (-1: never), `ended` when its work did (-1: it has not).

    `work` is the time that it needs when nothing interrupts it, 0 if it never ran and nobody can tell; `guessed`: it
    has not ended, so that is expected from its like, or what it did so far.
    """

    id: str
    spec: JobSpec
    kind: Kind
    ready: int = -1
    ended: int = -1
    leases: list[Lease] = field(default_factory=list)
    work: int = 0
    guessed: bool = False
    rows: float = 0.0


@dataclass(slots=True)
class Log:
    """The fold of a system's events: `nodes` are all that ever took such work; `first` and `last` facts in time."""

    jobs: dict[str, LoggedJob] = field(default_factory=dict)
    nodes: dict[str, Inventory] = field(default_factory=dict)
    queues: list[QueueSettings] = field(default_factory=list)
    first: int = -1
    last: int = -1
    facts: int = 0
    durations: Durations = field(default_factory=Durations)
    workers: dict[str, set[str]] = field(default_factory=dict)  # node → kinds of work that it ever took

    def worked(self) -> list[LoggedJob]:
        """Jobs that can be replayed, by when they were ready."""
        return sorted((job for job in self.jobs.values() if job.work > 0), key=lambda job: job.ready)


def read_lines(lines: Iterable[bytes], name: str) -> Iterator[Fact]:
    """The facts of an export, one a line. Raises `Rejected` that names the line."""
    decode = msgspec.json.Decoder(Fact).decode
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            yield decode(line)
        except msgspec.DecodeError as error:
            raise Rejected(
                f"{name}, line {number}: {error}", remedy="Export with `llmos get events -o json > FILE`."
            ) from error


def fold(facts: Iterable[Fact]) -> Log:
    """The history of a system. What can't be read, or belongs to a job whose beginning is not kept, is passed over."""
    log = Log()
    decoders = {kind: msgspec.json.Decoder(kind).decode for kind, _ in _FOLDS.values()}
    folds = {name: (decoders[kind], on_fact) for name, (kind, on_fact) in _FOLDS.items()}
    for fact in facts:
        log.facts += 1
        now = round(fact.time * 1000)
        log.last = max(log.last, now)
        log.first = now if log.first < 0 else min(log.first, now)
        known = folds.get(fact.type)
        if known is None:
            continue
        decode, on_fact = known
        try:
            event = decode(fact.data)
        except msgspec.DecodeError:
            continue
        on_fact(log, event, now)
    for job in log.jobs.values():
        _settle(log, job)
    log.nodes = {name: has for name, has in log.nodes.items() if log.workers.get(name, set()) & {"train", "export"}}
    return log


def _on_admitted(log: Log, event: _Admitted, now: int) -> None:
    kinds = kinds_of(event.spec)
    log.jobs.setdefault(event.job, LoggedJob(event.job, event.spec, "train" if "train" in kinds else "export"))


def _on_placed(log: Log, event: _Task, now: int) -> None:
    job = log.jobs.get(event.job)
    if job is None or event.kind != job.kind or job.ended >= 0:
        return
    members = event.members or [Member(event.node, event.devices)]
    places = {member.node: tuple(member.devices) for member in members}
    job.ready = now if job.ready < 0 else job.ready
    job.leases.append(Lease(event.lease, now, places))


def _on_checkpointed(log: Log, event: _Task, now: int) -> None:
    lease = _lease(log, event)
    if lease is not None:
        lease.saved = now


def _on_succeeded(log: Log, event: _Task, now: int) -> None:
    job = log.jobs.get(event.job)
    if job is not None and event.kind == "check":
        job.ready, job.rows = now, event.metrics.get("rows_train", 0.0)
    _end(log, event, "done", now)


def _ending(outcome: Outcome) -> Callable[[Log, _Task, int], None]:
    return lambda log, event, now: _end(log, event, outcome, now)


def _on_job_ended(log: Log, event: _JobEnded, now: int) -> None:
    job = log.jobs.get(event.job)
    if job is None or job.ended >= 0:
        return
    job.ended = now
    if job.leases and job.leases[-1].end < 0:
        job.leases[-1].end, job.leases[-1].outcome = now, "stopped"


def _on_node(log: Log, event: _Node, now: int) -> None:
    if event.inventory is not None:
        log.nodes[event.node] = event.inventory
    log.workers.setdefault(event.node, set()).update(event.kinds)


def _on_queues(log: Log, event: _Queues, now: int) -> None:
    log.queues = event.queues


def _lease(log: Log, event: _Task) -> Lease | None:
    """The lease that the fact is about, if it is a job's newest and runs."""
    job = log.jobs.get(event.job)
    if job is None or not job.leases or event.task != f"{job.id}-{job.kind}":
        return None
    lease = job.leases[-1]
    return lease if lease.number == event.lease and lease.end < 0 else None


def _end(log: Log, event: _Task, outcome: Outcome, now: int) -> None:
    lease = _lease(log, event)
    if lease is None:
        return
    lease.end, lease.outcome = now, outcome
    if outcome == "done":
        job = log.jobs[event.job]
        job.ended, job.work = now, sum(part.kept(now) for part in job.leases)
        log.durations.learn(job.spec, job.kind, job.work / 1000, job.rows)


def _settle(log: Log, job: LoggedJob) -> None:
    """The work of a job whose task did not come to a good end: what it did, or, if it goes on, what is expected."""
    if job.work or job.ready < 0:
        return
    done = sum(lease.kept(log.last) for lease in job.leases)
    if job.ended >= 0:  # cancelled or failed: what it held of the system is what a replay gives it
        job.work = done or sum(lease.end - lease.start for lease in job.leases)
        return
    expected = job.spec.duration or log.durations.expect(job.spec, job.kind, job.rows) or 0.0
    job.work, job.guessed = max(done, round(expected * 1000)), True


_FOLDS: Mapping[str, tuple[type[Struct], Callable[[Log, Any, int], None]]] = {
    "llmos.job.admitted.v1": (_Admitted, _on_admitted),
    **{
        f"llmos.job.{word}.v1": (_JobEnded, _on_job_ended)
        for word in ("cancelled", "failed", "refused", "rejected", "succeeded", "deployed")
    },
    "llmos.task.placed.v1": (_Task, _on_placed),
    "llmos.task.checkpointed.v1": (_Task, _on_checkpointed),
    "llmos.task.succeeded.v1": (_Task, _on_succeeded),
    "llmos.task.rejected.v1": (_Task, _ending("done")),
    "llmos.task.refused.v1": (_Task, _ending("done")),
    "llmos.task.failed.v1": (_Task, _ending("failed")),
    "llmos.task.lost.v1": (_Task, _ending("failed")),
    "llmos.task.cancelled.v1": (_Task, _ending("stopped")),
    "llmos.node.inventoried.v1": (_Node, _on_node),
    "llmos.worker.joined.v1": (_Node, _on_node),
    "llmos.queues.changed.v1": (_Queues, _on_queues),
}
TYPES = tuple(_FOLDS)  # the facts that matter
