"""What the scheduler remembers: jobs with their tasks, nodes with their workers, deployments with their replicas.

Plain records without behaviour beyond questions about themselves. Only `state.apply` writes them.
Times are Unix seconds as the bus stamped them, memory is in bytes.
"""

from dataclasses import dataclass, field
from typing import Literal

from llmos.contracts.deployments import DeploymentChanged
from llmos.contracts.jobs import Fault, JobSpec, JobState
from llmos.contracts.models import ModelVersion
from llmos.contracts.nodes import Inventory
from llmos.contracts.queues import QueueSettings, ReservationMade
from llmos.contracts.tasks import Kind, Member
from llmos.errors import Problem
from llmos_scheduler.predict import Durations
from llmos_scheduler.resources import Request
from llmos_scheduler.usage import Usage

TaskState = Literal[
    "pending",  # an earlier task has to succeed first
    "waiting",  # for a node
    "placed",  # leased, and no worker said yet that it took it up
    "running",
    "succeeded", "failed", "rejected", "refused", "cancelled",  # ended
]  # fmt: skip
STAGES: dict[Kind, JobState] = {"check": "checking", "train": "training", "export": "exporting"}


@dataclass(slots=True)
class Task:
    """One unit of work. `lease` is its newest; only while `live` does it hold `request` of each of `members`, the first
    of which is `node` with `devices`.

    `saved_at` is when this lease's last checkpoint was stored; `done` are the seconds of work that earlier leases left
    saved, `ran` those that they lasted, `waited` those of the last wait.
    """

    id: str
    job: str
    kind: Kind
    request: Request
    state: TaskState = "pending"
    attempt: int = 0  # number of the newest attempt
    failures: int = 0  # attempts that ended badly
    idle: int = 0  # leases in a row that ended before any worker took the task up
    lease: int = 0
    node: str = ""
    devices: list[str] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)
    preempting_at: float | None = None  # its lease was asked back
    gives_way: str = ""  # the work that it gives way to, as in `State.rooms`; its own id if to nobody
    preempting_why: str = ""
    preemptions: int = 0
    saved_at: float | None = None
    expected: float | None = None  # seconds of work in all, as the job says or as earlier runs of its like took
    done: float = 0.0
    ran: float = 0.0
    waited: float = 0.0
    waiting_since: float = 0.0
    not_before: float = 0.0
    placed_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    seen_at: float = 0.0
    avoid: str = ""  # the node on which the last lease ended badly
    progress: dict[str, int | float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    problem: Problem | None = None
    faults: list[Fault] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def live(self) -> bool:
        """Whether its lease holds."""
        return self.state in ("placed", "running")


@dataclass(slots=True)
class Job:
    """An admitted job. `ended` is empty while it is alive; `moved_by` is the id of the event that moved it last."""

    id: str
    spec: JobSpec
    number: int  # order of admission
    submitted_at: float
    traceparent: str = ""
    tasks: dict[Kind, Task] = field(default_factory=dict)
    ended: JobState | Literal[""] = ""
    ended_at: float | None = None
    cancelling_at: float | None = None
    exported_at: float | None = None
    version: ModelVersion | None = None
    problem: Problem | None = None
    moved_by: str = ""

    @property
    def tenant(self) -> str:
        return self.spec.tenant

    @property
    def current(self) -> Task | None:
        """The task that the job is at; `None` when all have succeeded."""
        return next((task for task in self.tasks.values() if task.state != "succeeded"), None)

    @property
    def deadline(self) -> float | None:
        return self.spec.deadline.timestamp() if self.spec.deadline else None

    @property
    def state(self) -> JobState:
        """The word for where the job is; `queued` while its next task waits for a node."""
        if self.ended:
            return self.ended
        if self.cancelling_at is not None:
            return "cancelling"
        task = self.current
        if task is None:
            return "deploying" if self.spec.deploy else "exporting"
        return "queued" if task.state == "waiting" else STAGES[task.kind]


@dataclass(slots=True)
class TurnedAway:
    """A submission that was never admitted."""

    job: str
    tenant: str
    name: str
    faults: list[Fault]
    at: float


@dataclass(slots=True)
class Worker:
    """A service of a node. `epoch` counts how often it joined."""

    service: str
    kinds: list[str]
    memory: int = 0
    alive: bool = True
    epoch: int = 1


@dataclass(slots=True)
class Node:
    """A node: its inventory (once a hw-agent told it) and its workers."""

    name: str
    inventory: Inventory | None = None
    workers: dict[str, Worker] = field(default_factory=dict)
    losses: int = 0
    lost: bool = False
    cordoned: bool = False
    draining: bool = False
    reason: str = ""  # why it was cordoned

    @property
    def alive(self) -> bool:
        return any(worker.alive for worker in self.workers.values())

    def runs(self, kind: str) -> bool:
        """Whether a living worker of the node takes this kind of work (`check`, `train`, `export`, `serve`)."""
        return any(worker.alive and kind in worker.kinds for worker in self.workers.values())


@dataclass(slots=True)
class Replica:
    """One node's part of a deployment, at the deployment's present generation."""

    node: str
    state: Literal["assigned", "ready", "failed"] = "assigned"
    failures: int = 0
    retryable: bool = True
    problem: Problem | None = None


@dataclass(slots=True)
class Vacating:
    """The lease of a replica that was told to go: held until it says that it went, or is late in saying so."""

    request: Request
    devices: list[str]
    at: float


@dataclass(slots=True)
class Deployment:
    """What a deployment should be (`change`, the newest decision) and how far it is.

    `replicas` wanted; `settled` is the last change that came up completely, `before` the last one with another version;
    `leaving` are nodes that still have to take their replica down, with the generation of the change that dropped them.
    `request` is what each replica leases (of the nodes in `change.leases`); `vacating` are leases of such replicas that
    still leave.
    """

    name: str
    change: DeploymentChanged
    wanted: int
    progress_at: float
    replicas: dict[str, Replica] = field(default_factory=dict)
    leaving: dict[str, int] = field(default_factory=dict)
    settled: DeploymentChanged | None = None
    before: DeploymentChanged | None = None
    request: Request | None = None
    number: int = 0  # of the job that changed it last
    vacating: dict[str, Vacating] = field(default_factory=dict)

    def settle(self) -> None:
        """The newest change came up completely."""
        if self.settled is not None and self.settled.version != self.change.version:
            self.before = self.settled
        self.settled = self.change

    @property
    def ready(self) -> bool:
        """Whether every wanted replica answers requests."""
        up = sum(replica.state == "ready" for replica in self.replicas.values())
        return up == len(self.replicas) == self.wanted


@dataclass(slots=True)
class Stray:
    """A worker that works under a lease that ended: it has to be told to stop."""

    task: str
    lease: int
    heard_at: float


@dataclass(slots=True)
class Journal:
    """What changed since somebody last looked and cleared it: names of jobs, nodes and deployments, in order."""

    jobs: dict[str, None] = field(default_factory=dict)
    nodes: dict[str, None] = field(default_factory=dict)
    deployments: dict[str, None] = field(default_factory=dict)
    settings: bool = False  # queues, reservations, the demand to expect


@dataclass(slots=True)
class State:
    """Everything: the fold of the EVENTS stream. `alive` and `ended` are indexes (job ids), as are `leased` (jobs whose
    task holds a lease) and `claims` (living jobs by the deployment that they are to make).

    `asked` counts what training asked for, the newest jobs most; `expected` is what the planner has learnt of it.
    `rooms` are the nodes on which others were asked to make room, by the work that it is for: a task, or
    `deployment/<name>/<n>` (its n-th replica, the first being 0).
    `journal` is there when somebody looks at what changes; it is no part of the state.
    """

    jobs: dict[str, Job] = field(default_factory=dict)
    turned_away: dict[str, TurnedAway] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    deployments: dict[str, Deployment] = field(default_factory=dict)
    strays: dict[str, Stray] = field(default_factory=dict)
    alive: dict[str, None] = field(default_factory=dict)
    ended: dict[str, None] = field(default_factory=dict)
    leased: dict[str, None] = field(default_factory=dict)
    claims: dict[str, dict[str, None]] = field(default_factory=dict)
    queues: list[QueueSettings] = field(default_factory=list)
    reservations: dict[str, ReservationMade] = field(default_factory=dict)
    rooms: dict[str, list[str]] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    durations: Durations = field(default_factory=Durations)
    asked: dict[Request, int] = field(default_factory=dict)
    expected: dict[Request, int] = field(default_factory=dict)
    next_lesson: int = 1
    admitted: int = 0
    leases: int = 0
    journal: Journal | None = field(default=None, compare=False, repr=False)

    def living_jobs(self) -> list[Job]:
        return [self.jobs[id] for id in self.alive]

    def live_tasks(self) -> list[Task]:
        """Every task that holds a lease."""
        return [task for id in self.leased if (task := self.jobs[id].current) is not None]

    def drains(self, node: str) -> bool:
        """Whether the node is to be cleared."""
        known = self.nodes.get(node)
        return known is not None and known.draining

    def claimant(self, deployment: str) -> str:
        """The tenant that the deployment's name belongs to: whose it is, or whose living job will make it; or empty."""
        known = self.deployments.get(deployment)
        if known is not None and known.wanted:
            return known.change.tenant
        return next((self.jobs[id].tenant for id in self.claims.get(deployment, ())), "")
