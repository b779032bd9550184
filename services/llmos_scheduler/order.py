"""The order in which jobs get their GPUs: what an order knows of a job, and the orders that a queue can choose by name.

An order is a pure function of one job and the time: `rank`, the smallest first. `planning` applies it. Times are whole
milliseconds, so that sums are exact and ranks are the same on every machine; service is milli-GPU x milliseconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

HOUR = 3_600_000
DAY = 24 * HOUR
LAST = 1 << 62  # a time that never comes

Rank: TypeAlias = tuple[int, ...]
Preempts: TypeAlias = Literal["never", "rank", "priority"]


@dataclass(slots=True, eq=False)
class Job:
    """A job that waits or runs. `number` is its place in the order of submission, and unique.

    `duration` is the work that it needs in all, `None` if unknown; `done` how much of it was kept before `since`, the
    moment when it last began to run or to wait. `ran` is the time that it ran before `since`, kept or lost; `waited`
    the length of its last wait before `since` (0 while it waits). `milli` is what its time counts for: milli-GPU.
    """

    id: str
    number: int
    milli: int
    submitted: int
    duration: int | None = None
    priority: int = 0
    queue: str = ""
    deadline: int | None = None
    running: bool = False
    since: int = 0
    done: int = 0
    ran: int = 0
    waited: int = 0
    ranked: Rank = ()  # `standing`: its rank while it waits, since when it has waited so, and when that expires
    ranked_since: int = -1
    expires: int = -1

    def run_time(self, now: int) -> int:
        """How long it has run in all."""
        return self.ran + (now - self.since if self.running else 0)

    def wait(self, now: int) -> int:
        """How long it has waited, or waited before its present run."""
        return self.waited if self.running else now - self.since

    def remaining(self, now: int) -> int | None:
        """Work that is left, at least 0; `None` if its duration is unknown."""
        if self.duration is None:
            return None
        return max(0, self.duration - self.done - (now - self.since if self.running else 0))


class Order(Protocol):
    """How a queue sorts its jobs, and what it does with one that does not fit.

    `preempts`: never; by rank (whoever ranks worse gives way, as in SRSF or LAS); or by priority (only a job of lower
    priority that also ranks worse). `skips`: whether later jobs may try when one does not fit, as far as they leave
    its reservation alone; `narrows`: then smallest area first, whatever their rank. `turn`: how long a job that started
    goes on before its rank counts.
    """

    @property
    def preempts(self) -> Preempts: ...

    @property
    def skips(self) -> bool: ...

    @property
    def narrows(self) -> bool: ...

    @property
    def turn(self) -> int: ...

    def rank(self, job: Job, now: int) -> Rank:
        """The smallest goes first. Total: the last member is the job's number."""

    def changes(self, job: Job, now: int) -> int | None:
        """When the job's rank changes by itself next (later than now); `None`: not before it starts or stops."""


def standing(order: Order, job: Job, now: int) -> Rank:
    """The job's rank. That of a job that waits is kept until it changes: most jobs of a long queue wait on."""
    if job.running:
        return order.rank(job, now)
    if job.ranked_since != job.since or not now < job.expires:
        job.ranked, job.ranked_since = order.rank(job, now), job.since
        changes = order.changes(job, now)
        job.expires = LAST if changes is None else changes
    return job.ranked


def next_change(order: Order, job: Job, now: int) -> int:
    """When its rank changes by itself; `LAST` if it does not."""
    if job.running:
        changes = order.changes(job, now)
        return LAST if changes is None else changes
    standing(order, job, now)
    return job.expires


@dataclass(frozen=True, slots=True)
class Fifo:
    """First come, first served: nobody passes the first that does not fit."""

    preempts: Preempts = "never"
    skips: bool = False
    narrows: bool = False
    turn: int = 0

    def rank(self, job: Job, now: int) -> Rank:
        return (job.number,)

    def changes(self, job: Job, now: int) -> int | None:
        return None


@dataclass(frozen=True, slots=True)
class Easy(Fifo):
    """EASY backfill (Lifka 1995): FIFO, but what can't delay the first that waits may pass it, smallest area first."""

    skips: bool = True
    narrows: bool = True


@dataclass(frozen=True, slots=True)
class Priority(Fifo):
    """Priority, with ageing: each `level` of waiting is worth one priority, for as long as the job is in the system.

    So a job is passed only by jobs submitted less than (difference of priorities x `level`) after it: the bound that
    keeps everything from starving. Since all age alike, ranks never change.
    """

    skips: bool = True
    level: int = HOUR

    def rank(self, job: Job, now: int) -> Rank:
        return (job.submitted - job.priority * self.level, job.number)


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Turns: a job whose turn is over goes to the back of the line, and runs on if nobody else fits."""

    turn: int = HOUR
    preempts: Preempts = "rank"
    skips: bool = True
    narrows: bool = False

    def rank(self, job: Job, now: int) -> Rank:
        turns = (now - job.since) // self.turn if job.running else 0
        return (job.since + turns * self.turn, job.number)

    def changes(self, job: Job, now: int) -> int | None:
        return job.since + ((now - job.since) // self.turn + 1) * self.turn if job.running else None


@dataclass(frozen=True, slots=True)
class SmallestArea(Fifo):
    """Smallest area first (work x milli-GPU), without preemption; unknown durations last. `patience`: see `overdue`."""

    skips: bool = True
    patience: int = 50

    def rank(self, job: Job, now: int) -> Rank:
        return (*overdue(job, now, self.patience), *area(job, now), job.number)

    def changes(self, job: Job, now: int) -> int | None:
        due = job.since + late_after(job, self.patience)
        return due if due > now and not job.running else None


@dataclass(frozen=True, slots=True)
class ShortestService(SmallestArea):
    """Smallest remaining service first (SRSF; Tiresias, NSDI 2019): the preemptive kind of smallest area first."""

    preempts: Preempts = "rank"


@dataclass(frozen=True, slots=True)
class LeastAttained:
    """Least attained service in levels (Tiresias, NSDI 2019), for unknown durations.

    Level k ends at `first` x `factor`^k of service; within a level who runs goes on, then the oldest. A job that has
    waited `patience` times as long as it had run (and at least an hour) is promoted to the first level.
    """

    first: int = HOUR // 60 * 1000
    factor: int = 4
    patience: int = 50
    preempts: Preempts = "rank"
    skips: bool = True
    narrows: bool = False
    turn: int = 0

    def rank(self, job: Job, now: int) -> Rank:
        return (self._level(self._service(job, now))[0], not job.running, job.number)

    def changes(self, job: Job, now: int) -> int | None:
        if not job.running:
            due = job.since + max(HOUR, self.patience * job.ran)
            return due if due > now and job.ran else None
        service = self._service(job, now)
        return now + -(-(self._level(service)[1] - service) // job.milli)

    def _service(self, job: Job, now: int) -> int:
        promoted = job.wait(now) >= max(HOUR, self.patience * job.ran)
        return (job.run_time(now) - (job.ran if promoted else 0)) * job.milli

    def _level(self, service: int) -> tuple[int, int]:
        """The level of this much service, and the service at which it ends."""
        level, end = 0, self.first
        while service >= end:
            level, end = level + 1, end * self.factor
        return level, end


@dataclass(frozen=True, slots=True)
class Deadline(Fifo):
    """Earliest deadline first, with preemption. A job without one, or that can't meet its own, counts as due
    `patience` after its submission, so that it does not wait for ever and does not make others late meanwhile.
    """

    preempts: Preempts = "rank"
    skips: bool = True
    patience: int = 7 * DAY

    def rank(self, job: Job, now: int) -> Rank:
        due = job.submitted + self.patience
        if job.deadline is not None and now + (job.remaining(now) or 0) <= job.deadline:
            due = min(due, job.deadline)
        return (due, job.number)

    def changes(self, job: Job, now: int) -> int | None:
        if job.deadline is None or job.running:
            return None
        late = job.deadline - (job.remaining(now) or 0) + 1
        return late if late > now else None


def area(job: Job, now: int) -> Rank:
    """Remaining service; what is unknown comes after everything known."""
    left = job.remaining(now)
    return (1, job.milli) if left is None else (0, left * job.milli)


def overdue(job: Job, now: int, patience: int) -> Rank:
    """(0, when submitted) once it waited `patience` times its duration (at least a day) at a stretch, (1, 0) before."""
    return (0, job.submitted) if job.wait(now) >= late_after(job, patience) else (1, 0)


def late_after(job: Job, patience: int) -> int:
    """The wait after which the job is overdue."""
    return max(DAY, patience * (job.duration or 0))


ORDERS: Mapping[str, Callable[[], Order]] = {
    "fifo": Fifo,
    "easy": Easy,
    "priority": Priority,
    "priority-preempt": lambda: Priority(preempts="priority"),
    "round-robin": RoundRobin,
    "saf": SmallestArea,
    "srsf": ShortestService,
    "las": LeastAttained,
    "deadline": Deadline,
}
