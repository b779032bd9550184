"""A trace of jobs in virtual time, planned by the scheduler's own `plan`. Pure: no clock, no files, no randomness.

Times are whole milliseconds. Every decision is a function of the jobs and nodes given, so a replay repeats itself to
the byte. Jobs are numbered by submission time, then by their place in the trace.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Literal

from llmos.errors import Rejected
from llmos_scheduler.gangs import Gangs, Places
from llmos_scheduler.order import LAST, ORDERS, Job
from llmos_scheduler.plan import Rules, next_look, plan
from llmos_scheduler.queues import HALF_LIFE, Queue, Tree, Usage


@dataclass(frozen=True, slots=True)
class Arrival:
    """A row of the trace; `duration` is the work in milliseconds, if it runs without being preempted."""

    id: str
    submitted: int
    duration: int
    gpus: int
    priority: int = 0
    queue: str = ""
    deadline: int | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a trace is replayed. `blind`: the scheduler is not told durations. `order` is for queues that name none.

    `checkpoint_every` is run time between checkpoints (0: a preempted job saves first and loses nothing);
    `restart_cost` is what a resumed job spends before it goes on. A run is not preempted before it made
    its first checkpoint, nor before `min_run`, so that every run gets somewhere.
    """

    order: str = "srsf"
    blind: bool = False
    queues: tuple[Queue, ...] = ()
    min_run: int = 0
    checkpoint_every: int = 0
    restart_cost: int = 0
    half_life: int = HALF_LIFE


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; rejected is a job larger than the cluster or than its queue's limit.

    `places` are the GPUs that it got or gave up.
    """

    time: int
    kind: Literal["start", "preemption", "end", "rejected"]
    job: Arrival
    places: Places = field(default_factory=dict)


class Replay:
    """One run over the trace; iterate over `events` once. Raises `Rejected` for an unknown order or duplicate job."""

    def __init__(self, nodes: Sequence[tuple[str, int]], arrivals: Sequence[Arrival], setting: Setting) -> None:
        self.gangs = Gangs(nodes)
        self.setting = setting
        self.arrivals = sorted(arrivals, key=lambda arrival: arrival.submitted)
        if len({arrival.id for arrival in arrivals}) < len(arrivals):
            raise Rejected("job ids must be unique")
        named = {queue.name: queue for queue in setting.queues}
        for arrival in self.arrivals:
            named.setdefault(arrival.queue, Queue(arrival.queue))
        for queue in named.values():
            if (queue.order or setting.order) not in ORDERS:
                raise Rejected(
                    f"there is no policy {queue.order or setting.order!r}", remedy=f"Choose of {', '.join(ORDERS)}."
                )
        self.tree = Tree(named.values(), (self.gangs.total,))
        self.orders = {name: ORDERS[queue.order or setting.order]() for name, queue in named.items()}
        self.usage = Usage(setting.half_life)
        self.rules = Rules(min_run=max(setting.min_run, setting.checkpoint_every + setting.restart_cost))
        self.jobs: dict[str, Job] = {}
        self._places: dict[str, Places] = {}
        self._traced: dict[str, Arrival] = {}
        self._ends: list[tuple[int, int, Job]] = []  # when, number, job: as of its `since`
        self._now = 0

    def events(self) -> Iterator[Event]:
        """What happens, in order of time; at one moment first ends, then arrivals, preemptions, starts."""
        position, wake = 0, LAST
        while True:
            upcoming = self.arrivals[position].submitted if position < len(self.arrivals) else LAST
            now = min(upcoming, self._next_end(), wake)
            if now == LAST:
                return
            self._advance(now)
            while self._next_end() == now:
                yield self._end(heappop(self._ends)[2])
            while position < len(self.arrivals) and self.arrivals[position].submitted == now:
                arrival = self.arrivals[position]
                if self.tree.possible(arrival.queue, arrival.gpus):
                    self._arrive(arrival, position)
                else:
                    yield Event(now, "rejected", arrival)
                position += 1
            yield from self._plan()
            wake = next_look(self.jobs.values(), self.orders, now, self.rules)

    def _advance(self, now: int) -> None:
        if len(self.orders) > 1:  # with one queue, nobody asks for its history
            held: dict[str, int] = {}
            for job in self.jobs.values():
                if job.running:
                    held[job.queue] = held.get(job.queue, 0) + job.gpus
            self.usage.advance(now - self._now, held)
        self._now = now

    def _plan(self) -> Iterator[Event]:
        self.tree.clear(self.usage.average())
        for job in self.jobs.values():
            if job.running:
                job.unsaved = self._lost(job)
        made = plan(self.jobs.values(), self.tree, self.orders, self._now, self.rules)
        for job in made.stops:
            yield self._preempt(job)
        for job in made.starts:
            yield self._start(job)

    def _arrive(self, arrival: Arrival, number: int) -> None:
        self._traced[arrival.id] = arrival
        self.jobs[arrival.id] = Job(
            id=arrival.id,
            number=number,
            gpus=arrival.gpus,
            submitted=arrival.submitted,
            duration=None if self.setting.blind else arrival.duration,
            priority=arrival.priority,
            queue=arrival.queue,
            deadline=arrival.deadline,
            since=self._now,
        )

    def _start(self, job: Job) -> Event:
        job.waited, job.since, job.running = self._now - job.since, self._now, True
        left = self._traced[job.id].duration - job.done
        heappush(self._ends, (self._now + self._cost(job) + left, job.number, job))
        places = self._places[job.id] = self.gangs.take(job.gpus)
        return Event(self._now, "start", self._traced[job.id], places)

    def _preempt(self, job: Job) -> Event:
        job.done += self._progress(job) - self._lost(job)
        return Event(self._now, "preemption", self._traced[job.id], self._leave(job))

    def _end(self, job: Job) -> Event:
        del self.jobs[job.id]
        return Event(self._now, "end", self._traced[job.id], self._leave(job))

    def _leave(self, job: Job) -> Places:
        job.ran, job.waited, job.unsaved = job.run_time(self._now), 0, 0
        job.since, job.running = self._now, False
        places = self._places.pop(job.id)
        self.gangs.give_back(places)
        return places

    def _next_end(self) -> int:
        """When the next running job ends; entries of runs that were preempted are dropped."""
        while self._ends:
            time, _, job = self._ends[0]
            if job.running and time == self._end_of(job):
                return time
            heappop(self._ends)
        return LAST

    def _end_of(self, job: Job) -> int:
        return job.since + self._cost(job) + self._traced[job.id].duration - job.done

    def _cost(self, job: Job) -> int:
        """What this run spends before it makes progress: `ran` is 0 in a job's first."""
        return self.setting.restart_cost if job.ran else 0

    def _progress(self, job: Job) -> int:
        return max(0, self._now - job.since - self._cost(job))

    def _lost(self, job: Job) -> int:
        """Work of this run that no checkpoint holds."""
        every = self.setting.checkpoint_every
        return self._progress(job) % every if every else 0
