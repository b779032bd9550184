"""A trace of jobs in virtual time, planned by the scheduler's own `plan`. Pure: no clock, no files, no randomness.

Times are whole milliseconds. Every decision is a function of the jobs and nodes given, so a replay repeats itself to
the byte. Jobs are numbered by submission time, then by their place in the trace.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

from llmos.errors import Rejected
from llmos_scheduler.cluster import WHOLE, Cluster, Machine, Shape
from llmos_scheduler.order import LAST
from llmos_scheduler.planner import Planner
from llmos_scheduler.queues import Queue, check_queues
from llmos_scheduler.shares import Shares
from llmos_scheduler.usage import DAY, Usage, amounts
from llmos_scheduler.work import Places, Rules, Work


@dataclass(frozen=True, slots=True)
class Arrival:
    """A row of the trace; `duration` is the work in milliseconds, if it runs without being preempted.

    `shape` is asked of each of `nodes` nodes; without one only `gpus` are, of as few nodes as possible.
    """

    id: str
    submitted: int
    duration: int
    gpus: int
    priority: int = 0
    queue: str = ""
    deadline: int | None = None
    tenant: str = ""
    shape: Shape | None = None
    nodes: int = 1

    @property
    def milli(self) -> int:
        """milli-GPU that it holds in all."""
        return self.gpus * WHOLE if self.shape is None else self.shape.demand * self.nodes


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
    half_life: int = DAY


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; rejected is a job larger than the cluster or than its queue's limit.

    `places` are the GPUs that it got or gave up.
    """

    time: int
    kind: Literal["start", "preemption", "end", "rejected"]
    job: Arrival
    places: Places = ()


@dataclass(slots=True, eq=False, kw_only=True)
class Traced(Work):
    """A job of the trace while it waits or runs. The planner does not look at `traced` or `setting`."""

    traced: Arrival
    setting: Setting
    last: Places = ()

    def cost(self) -> int:
        """What this run spends before it makes progress: `ran` is 0 in a job's first."""
        return self.setting.restart_cost if self.ran else 0

    def progress(self, now: int) -> int:
        return max(0, now - self.since - self.cost())

    def lost(self, now: int) -> int:
        """Work of this run that no checkpoint holds."""
        every = self.setting.checkpoint_every
        return self.progress(now) % every if every and self.running else 0

    def end(self) -> int:
        """When this run ends if nothing stops it."""
        return self.since + self.cost() + self.traced.duration - self.done


class Replay:
    """One run over the trace; iterate over `events` once. Raises `Rejected` for an unknown order or duplicate job."""

    def __init__(self, machines: Mapping[str, Machine], arrivals: Sequence[Arrival], setting: Setting) -> None:
        self.setting = setting
        self.gpus = sum(len(machine.devices) for machine in machines.values())
        self.widest = max((len(machine.devices) for machine in machines.values()), default=0)
        self.arrivals = sorted(arrivals, key=lambda arrival: arrival.submitted)
        if len({arrival.id for arrival in arrivals}) < len(arrivals):
            raise Rejected("job ids must be unique")
        self.usage = Usage(setting.half_life)
        rules = Rules(
            min_run=max(setting.min_run, setting.checkpoint_every + setting.restart_cost),
            order=setting.order,
            placement="best-fit",
        )
        check_queues(setting.queues, self.gpus)
        self.planner = Planner(machines, setting.queues, rules, usage=self.usage)
        self._limits = Shares(setting.queues, (0, 0, 0))
        self._empty = Cluster(machines.values())
        self._holding: dict[Shape, int] = {}  # how many nodes could hold it
        self.jobs: dict[str, Traced] = {}
        self._ends: list[tuple[int, int, Traced]] = []  # when, number, job: as of its `since`

    def events(self) -> Iterator[Event]:
        """What happens, in order of time; at one moment first ends, then arrivals, then preemptions and starts."""
        position, wake = 0, LAST
        while True:
            upcoming = self.arrivals[position].submitted if position < len(self.arrivals) else LAST
            now = min(upcoming, self._next_end(), wake)
            if now == LAST:
                return
            while self._next_end() == now:
                yield self._end(heappop(self._ends)[2], now)
            while position < len(self.arrivals) and self.arrivals[position].submitted == now:
                arrival = self.arrivals[position]
                if self._possible(arrival):
                    self._arrive(arrival, position)
                else:
                    yield Event(now, "rejected", arrival)
                position += 1
            yield from self._plan(now)
            wake = self.planner.next_look(now)

    def _possible(self, arrival: Arrival) -> bool:
        """Whether the nodes and its queue's limits could ever hold the job."""
        if arrival.milli > self.gpus * WHOLE or not self._limits.possible(arrival.queue, arrival.milli):
            return False
        if arrival.shape is None:
            return True
        found = self._holding.get(arrival.shape)
        if found is None:
            found = self._holding[arrival.shape] = int(self._empty.fitting(arrival.shape)[0].sum())
        return found >= arrival.nodes

    def _plan(self, now: int) -> Iterator[Event]:
        while True:
            made = self.planner.plan(now)
            for stop in made.stops:
                yield self._preempt(stop.work, stop.by, now)
            for start in made.starts:
                yield self._start(start.work, start.places, now)
            if not made.stops and not made.more:
                return

    def _arrive(self, arrival: Arrival, number: int) -> None:
        job = self.jobs[arrival.id] = Traced(
            id=arrival.id,
            number=number,
            submitted=arrival.submitted,
            duration=None if self.setting.blind else arrival.duration,
            priority=arrival.priority,
            queue=arrival.queue,
            tenant=arrival.tenant,
            deadline=arrival.deadline,
            since=arrival.submitted,
            shape=arrival.shape or Shape(gpus=arrival.gpus),
            nodes=arrival.nodes if arrival.shape or arrival.gpus <= self.widest else 0,
            traced=arrival,
            setting=self.setting,
        )
        self.planner.wait(job)

    def _start(self, work: Work, places: Places, now: int) -> Event:
        job = self.jobs[work.id]
        job.waited, job.since, job.room, job.last = now - job.since, now, frozenset(), places
        self.planner.run(job, places)
        self.usage.change(job.queue, amounts(job.shape, job.nodes), now)
        heappush(self._ends, (job.end(), job.number, job))
        return Event(now, "start", job.traced, places)

    def _preempt(self, work: Work, by: Work, now: int) -> Event:
        job = self.jobs[work.id]
        by.room |= {node for node, _ in job.last}
        job.done += job.progress(now) - job.lost(now)
        event = Event(now, "preemption", job.traced, job.last)
        self._stop(job, now)
        self.planner.wait(job)
        self.planner.wait(by)
        return event

    def _end(self, job: Traced, now: int) -> Event:
        self._stop(job, now)
        del self.jobs[job.id]
        return Event(now, "end", job.traced, job.last)

    def _stop(self, job: Traced, now: int) -> None:
        job.ran, job.waited, job.since = job.run_time(now), 0, now
        self.planner.leave(job.id)
        job.running = False
        self.usage.change(job.queue, amounts(job.shape, job.nodes), now, -1)

    def _next_end(self) -> int:
        """When the next running job ends; entries of runs that were preempted are dropped."""
        while self._ends:
            time, _, job = self._ends[0]
            if job.running and time == job.end():
                return time
            heappop(self._ends)
        return LAST
