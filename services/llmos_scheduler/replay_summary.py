"""What a replay amounted to: figures, and how load and waiting went over time. Folds events; times in, seconds out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from msgspec import Struct

from llmos_scheduler.cluster import WHOLE
from llmos_scheduler.replay import Arrival, Event

SHORT_S = 10.0  # bounded slowdown counts a shorter job as if it ran so long


class Waiting(Struct, frozen=True):
    """Waiting of one class of jobs, in seconds: all time in the system in which they did not run."""

    jobs: int
    average_s: float
    p99_s: float


class Served(Struct, frozen=True):
    """What one queue or tenant got: GPU hours held, and how much slower its jobs were than alone (JCT by duration)."""

    jobs: int
    gpu_hours: float
    average_slowdown: float


class Summary(Struct, frozen=True):
    """The figures of one replay.

    `makespan_s`: from the first submission to the last end. `utilisation`: GPU time held over GPU time there was in it.
    `fairness_jain`: Jain's index over the jobs' durations by JCT (1: all were slowed down alike); likewise over the
    average slowdowns of queues and of tenants.
    """

    policy: str
    blind: bool
    gpus: int
    jobs: int
    rejected: int
    preemptions: int
    average_jct_s: float
    p99_jct_s: float
    makespan_s: float
    bounded_slowdown: float
    utilisation: float
    fairness_jain: float
    waiting_by_priority: dict[str, Waiting]
    waiting_by_queue: dict[str, Waiting]
    deadlines: int = 0
    deadlines_met: int = 0
    by_queue: dict[str, Served] = {}
    by_tenant: dict[str, Served] = {}
    fairness_by_queue: float = 1.0
    fairness_by_tenant: float = 1.0


@dataclass(slots=True)
class Step:
    """The state of the cluster from `time` (ms) on."""

    time: int
    busy: float  # GPUs
    waiting: int  # jobs


@dataclass(slots=True)
class Tally:
    """The fold. Jobs in `aside` load the cluster, but their own end is not counted: it is not known."""

    gpus: int
    aside: frozenset[str] = frozenset()
    ended: list[tuple[Arrival, int, int]] = field(default_factory=list)  # job, JCT, time held
    rejected: int = 0
    preemptions: int = 0
    _since: dict[str, int] = field(default_factory=dict)
    _held: dict[str, int] = field(default_factory=dict)
    _changes: list[tuple[int, int, int, str]] = field(default_factory=list)  # time, busy milli-GPU, waiting jobs, queue

    def add(self, event: Event) -> None:
        """Count one event; they come in order."""
        id, gpus, queue = event.job.id, event.job.milli, event.job.queue
        if event.kind == "rejected":
            self.rejected += 1
            return
        if event.kind == "start":
            self._since[id] = event.time
            if id not in self._held:
                self._changes.append((event.job.submitted, 0, 1, queue))
            self._changes.append((event.time, gpus, -1, queue))
            return
        self._held[id] = self._held.get(id, 0) + event.time - self._since[id]
        self._changes.append((event.time, -gpus, int(event.kind == "preemption"), queue))
        if event.kind == "preemption":
            self.preemptions += 1
        elif id not in self.aside:
            self.ended.append((event.job, event.time - event.job.submitted, self._held.pop(id)))

    @property
    def queues(self) -> list[str]:
        """Queues whose jobs came, by name."""
        return sorted({queue for *_, queue in self._changes})

    def course(self, queue: str | None = None) -> list[Step]:
        """Busy GPUs and waiting jobs (of one queue, if one is named), at each moment at which any of them changed."""
        steps: list[Step] = []
        busy = waiting = 0
        for time, gpus, jobs, whose in sorted(self._changes, key=lambda change: change[0]):
            if queue not in (None, whose):
                gpus = jobs = 0
            busy, waiting = busy + gpus, waiting + jobs
            if steps and steps[-1].time == time:
                steps[-1] = Step(time, busy / WHOLE, waiting)
            else:
                steps.append(Step(time, busy / WHOLE, waiting))
        return steps

    def summary(self, policy: str, blind: bool) -> Summary:
        """The figures; zeros if nothing ended."""
        jcts = sorted(jct / 1000 for _, jct, _ in self.ended)
        first = min((job.submitted for job, _, _ in self.ended), default=0)
        span = max((job.submitted + jct for job, jct, _ in self.ended), default=0) - first
        held = self._held_between(first, first + span)
        speeds = [job.duration / jct if jct else 1.0 for job, jct, _ in self.ended]
        by_queue, by_tenant = self._served(lambda job: job.queue), self._served(lambda job: job.tenant)
        due = [(job.deadline, job.submitted + jct) for job, jct, _ in self.ended if job.deadline is not None]
        return Summary(
            policy=policy,
            blind=blind,
            gpus=self.gpus,
            jobs=len(self.ended),
            rejected=self.rejected,
            preemptions=self.preemptions,
            average_jct_s=_mean(jcts),
            p99_jct_s=percentile(jcts, 0.99),
            makespan_s=span / 1000,
            bounded_slowdown=_mean(_slowdown(job, jct) for job, jct, _ in self.ended),
            utilisation=round(held / (span * self.gpus), 6) if span else 0.0,
            fairness_jain=_jain(speeds),
            waiting_by_priority=self._waiting(lambda job: (job.priority, str(job.priority))),
            waiting_by_queue=self._waiting(lambda job: (0, job.queue)),
            deadlines=len(due),
            deadlines_met=sum(end <= deadline for deadline, end in due),
            by_queue=by_queue,
            by_tenant=by_tenant,
            fairness_by_queue=_jain([1 / served.average_slowdown for served in by_queue.values()]),
            fairness_by_tenant=_jain([1 / served.average_slowdown for served in by_tenant.values()]),
        )

    def _held_between(self, start: int, end: int) -> float:
        """GPU-milliseconds held between two moments, also by jobs that are not counted."""
        steps = [*self.course(), Step(end, 0, 0)]
        return sum(step.busy * max(0, min(after.time, end) - max(step.time, start)) for step, after in pairwise(steps))

    def _served(self, whose: Callable[[Arrival], str]) -> dict[str, Served]:
        """By whoever the jobs belong to; the slowdowns are bounded."""
        kinds: dict[str, list[tuple[Arrival, int, int]]] = {}
        for ended in self.ended:
            kinds.setdefault(whose(ended[0]), []).append(ended)
        return {
            name: Served(
                jobs=len(found),
                gpu_hours=round(sum(held * job.milli for job, _, held in found) / WHOLE / 3_600_000, 3),
                average_slowdown=_mean(_slowdown(job, jct) for job, jct, _ in found),
            )
            for name, found in sorted(kinds.items())
        }

    def _waiting(self, sort: Callable[[Arrival], tuple[int, str]]) -> dict[str, Waiting]:
        """By class: `sort` gives its place and its name."""
        classes: dict[tuple[int, str], list[float]] = {}
        for job, jct, held in self.ended:
            classes.setdefault(sort(job), []).append((jct - held) / 1000)
        return {
            name: Waiting(len(waits), _mean(waits), percentile(sorted(waits), 0.99))
            for (_, name), waits in sorted(classes.items())
        }


def _slowdown(job: Arrival, jct: int) -> float:
    """Bounded slowdown (Feitelson et al., JSSPP 1997)."""
    return max(1.0, jct / max(job.duration, SHORT_S * 1000))


def percentile(ordered: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of them does not exceed (nearest rank); 0 if there are none."""
    if not ordered:
        return 0.0
    return ordered[max(0, -(-int(part * 1000) * len(ordered) // 1000) - 1)]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return round(sum(found) / len(found), 3) if found else 0.0


def _jain(values: Sequence[float]) -> float:
    squares = sum(value * value for value in values)
    return round(sum(values) ** 2 / (len(values) * squares), 6) if squares else 1.0
