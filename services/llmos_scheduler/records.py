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
from llmos.contracts.tasks import KINDS, Kind
from llmos.errors import Problem
from llmos_scheduler.resources import Request

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
    """One unit of work. `lease` is its newest; only while `live` does it hold `request` of `node`."""

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
    waiting_since: float = 0.0
    not_before: float = 0.0
    placed_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    seen_at: float = 0.0
    avoid: str = ""  # the node on which the last lease ended badly
    progress: dict[str, float] = field(default_factory=dict)
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
        return next((self.tasks[kind] for kind in KINDS if self.tasks[kind].state != "succeeded"), None)

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
class Deployment:
    """What a deployment should be (`change`, the newest decision) and how far it is.

    `replicas` wanted; `settled` is the last change that came up completely; `leaving` are nodes that still have to take
    their replica down, with the generation of the change that dropped them.
    """

    name: str
    change: DeploymentChanged
    wanted: int
    progress_at: float
    replicas: dict[str, Replica] = field(default_factory=dict)
    leaving: dict[str, int] = field(default_factory=dict)
    settled: DeploymentChanged | None = None

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
class State:
    """Everything: the fold of the EVENTS stream. `alive` and `ended` are indexes (job ids).

    `asked` counts what training asked for, the newest jobs most: the demand to expect.
    """

    jobs: dict[str, Job] = field(default_factory=dict)
    turned_away: dict[str, TurnedAway] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    deployments: dict[str, Deployment] = field(default_factory=dict)
    strays: dict[str, Stray] = field(default_factory=dict)
    alive: dict[str, None] = field(default_factory=dict)
    ended: dict[str, None] = field(default_factory=dict)
    asked: dict[Request, int] = field(default_factory=dict)
    admitted: int = 0
    leases: int = 0

    def living_jobs(self) -> list[Job]:
        return [self.jobs[id] for id in self.alive]

    def live_tasks(self) -> list[Task]:
        """Every task that holds a lease."""
        return [task for job in self.living_jobs() if (task := job.current) is not None and task.live]

    def claimant(self, deployment: str) -> str:
        """The tenant that the deployment's name belongs to: whose it is, or whose living job will make it; or empty."""
        known = self.deployments.get(deployment)
        if known is not None and known.change.nodes:
            return known.change.tenant
        for job in self.living_jobs():
            if job.spec.deploy is not None and job.spec.deploy.name == deployment:
                return job.tenant
        return ""
