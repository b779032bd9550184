"""What the planner is told and what it answers: work with its amounts, plans, and why work waits.

Times are whole milliseconds; nodes and work are named by strings; everything here is plain data.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from llmos_scheduler.cluster import Shape
from llmos_scheduler.order import HOUR, Job

Places: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]  # (node, indexes into its machine's devices), by member
Reason: TypeAlias = Literal["rank", "priority", "reclaim", "latency", "reservation"]


@dataclass(slots=True, eq=False, kw_only=True)
class Work(Job):
    """A task, or one replica of a deployment: a `Job` with what it asks of nodes.

    `shape` is asked of each of `nodes` different nodes, all at once or none (`nodes` 0: the GPUs of `shape` may lie on
    any number of nodes, and it asks for nothing else). `latency`: serves requests, so it preempts preemptible training
    at once and is never preempted by it. `saved`: when its last checkpoint of this run was (-1: loses nothing).
    Wishes: `avoid` is the node where it failed last, `near` the nodes that hold its artifacts, `spread` a label over
    whose values it is spread from `apart`; it never goes to a node of `apart`, since its siblings are there, nor
    to one that another work of its `family` gets in the same plan.
    Facts of a preemption: `room` are the nodes on which room was or is being made for it while it waits; `gives_way`,
    while it runs, is the id of the work for which it was asked to stop.
    """

    milli: int = field(init=False)
    gpu_milli: int = field(init=False)  # milli-GPU that it holds in all
    shape: Shape = field(default_factory=Shape)
    nodes: int = 1
    tenant: str = ""
    preemptible: bool = True
    latency: bool = False
    saved: int = -1
    avoid: str = ""
    near: frozenset[str] = frozenset()
    spread: str = ""
    apart: frozenset[str] = frozenset()
    family: str = ""
    room: frozenset[str] = frozenset()
    gives_way: str = ""

    def __post_init__(self) -> None:
        self.gpu_milli = self.shape.demand * max(1, self.nodes)
        self.milli = max(1, self.gpu_milli)

    def lost(self, now: int) -> int:
        """Work that stopping it now would lose."""
        return max(0, now - max(self.saved, self.since)) if self.running and self.saved >= 0 else 0


@dataclass(frozen=True, slots=True)
class Rules:
    """`min_run`: how long work runs before policy may preempt it; `hold`: how long work may be passed by others while
    nobody knows when it could start (milliseconds). `order` is that of queues which name none, `placement` the ranking
    of nodes."""

    min_run: int = 0
    hold: int = HOUR
    order: str = "priority"
    placement: str = "gradient"


@dataclass(frozen=True, slots=True)
class Start:
    """Give the work a lease on these places: they are free now."""

    work: Work
    places: Places


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the running work to give way to `by`, which starts in a later plan, when the places are free."""

    work: Work
    by: Work
    reason: Reason


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now. `more`: the limit was reached, plan again once these are carried out."""

    starts: list[Start] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    more: bool = False


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that waiting work waits for. `node_class` and `nodes`: which hardware, and how many nodes of it;
    `held_by`: ids of the work that holds it."""

    kind: Literal["quota", "limit", "priority", "resources", "gang", "reservation", "cordon"]
    message: str
    node_class: str = ""
    nodes: int = 0
    held_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why work waits, or where it starts. `causes` is empty only if it starts or preempts now.

    `earliest` is when it can start at the latest by what is known of durations, `None` if unknown; `would_run`: ids of
    running work, any one of which would let it run by ending.
    """

    starts_on: tuple[str, ...] = ()
    preempts: tuple[str, ...] = ()
    causes: tuple[Cause, ...] = ()
    earliest: int | None = None
    would_run: tuple[str, ...] = ()

    @property
    def held_by(self) -> tuple[str, ...]:
        """Who holds what it waits for, each once."""
        return tuple(dict.fromkeys(id for cause in self.causes for id in cause.held_by))


@dataclass(frozen=True, slots=True)
class Reservation:
    """Nodes that only these queues (and all below them) and tenants may start work on from `start` to `end`."""

    name: str
    nodes: frozenset[str]
    queues: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()
    start: int = 0
    end: int | None = None

    def admits(self, above: Iterable[str], tenant: str) -> bool:
        """Whether work of the tenant, in a queue with these paths (itself and those above it), may use the nodes: both
        have to be named, but no queues, or no tenants, means any."""
        return (not self.queues or not self.queues.isdisjoint(above)) and (not self.tenants or tenant in self.tenants)
