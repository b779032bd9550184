"""A world for the scheduler's pure part: a bus that is a list, workers that do what a test says, a clock of its own.

It is handed out by fixtures, because test folders are no packages.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import Struct

from llmos.contracts.deployments import ReplicaAssigned, ReplicaReady
from llmos.contracts.jobs import (
    DataSource,
    DeploySettings,
    JobAdmitted,
    JobSpec,
    ModelSource,
    ResourceRequest,
    RetrySettings,
    TrainSettings,
)
from llmos.contracts.models import ModelExported, ModelVersion
from llmos.contracts.nodes import Gpu, Inventory, NodeInventoried, NodeLost, WorkerJoined, WorkerLost
from llmos.contracts.tasks import (
    TaskAssigned,
    TaskCancelled,
    TaskCheckpointed,
    TaskFailed,
    TaskProgressed,
    TaskStarted,
    TaskSucceeded,
)
from llmos.errors import Problem
from llmos_scheduler.brain import Brain
from llmos_scheduler.core import decide
from llmos_scheduler.effects import AssignReplica, DispatchWork, Effect, Emit, StopTask, WithdrawWork
from llmos_scheduler.records import Job, State, Task
from llmos_scheduler.state import apply

GIB = 1 << 30
START = 1_000_000.0
OUTPUTS = {
    "check": {"dataset": "sha256:d", "base": "sha256:b"},
    "train": {"model": "sha256:m"},
    "export": {"model": "sha256:o"},
}


def make_spec(name: str = "mood", **fields: Any) -> JobSpec:
    """A job spec; `deploy=2` asks for two replicas under the job's name, `replica={…}` is what each of them leases;
    `cpus`, `gpus`, `attempts`, `method`, … are short."""
    wants = {key: fields.pop(key) for key in ResourceRequest.__struct_fields__ if key in fields}
    replica, spread = fields.pop("replica", None), fields.pop("spread", "")
    if isinstance(fields.get("deploy"), int):
        leases = ResourceRequest(**{"memory": GIB, **replica}) if replica is not None else None
        fields["deploy"] = DeploySettings(name, fields["deploy"], leases, spread)
    if "method" in fields:
        fields["train"] = TrainSettings(fields.pop("method"))
    if "attempts" in fields:
        fields["retry"] = RetrySettings(fields.pop("attempts"))
    if isinstance(fields.get("deadline"), int | float):
        fields["deadline"] = datetime.fromtimestamp(fields["deadline"], UTC)
    resources = ResourceRequest(**{"memory": GIB, **wants})
    return JobSpec(
        name=name, model=ModelSource("hf:org/base"), data=DataSource("file:///d.csv"), resources=resources, **fields
    )


@dataclass
class World:
    """The bus, the workers and the time. `log` is EVENTS, `queue` is WORK, `deployed` is DEPLOY."""

    state: State = field(default_factory=State)
    now: float = START
    log: list[tuple[Struct, float, str]] = field(default_factory=list)
    queue: dict[tuple[str, int], tuple[str, TaskAssigned]] = field(default_factory=dict)
    taken: dict[tuple[str, int], tuple[str, TaskAssigned]] = field(default_factory=dict)
    stops: set[tuple[str, int]] = field(default_factory=set)
    saves: set[tuple[str, int]] = field(default_factory=set)  # of the stops, those that ask for a checkpoint first
    ranks: dict[tuple[str, int, int], tuple[str, TaskAssigned]] = field(default_factory=dict)  # of gangs
    deployed: dict[tuple[str, str], ReplicaAssigned] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    compare: bool = False  # at every decision: does a brain made from the state alone decide the same?

    def __post_init__(self) -> None:
        self.brain = Brain(self.state)

    # --- the bus ---

    def say(self, event: Struct, id: str = "") -> None:
        """Store an event and let the scheduler hear it; an id that was used stores nothing."""
        if id and id in self.ids:
            return
        self.ids.add(id)
        self.log.append((event, self.now, id))
        self.state = apply(self.state, event, self.now, id)

    def step(self) -> list[Effect]:
        """One decision, performed."""
        effects = decide(self.state, self.brain, self.now)
        if self.compare:
            self.compare_with_a_new_brain(effects)
        for effect in effects:
            if isinstance(effect, Emit):
                assert effect.id, effect
                assert effect.id not in self.ids, f"said twice: {effect}"
                self.say(effect.event, effect.id)
            else:
                self.perform(effect)
        return effects

    def compare_with_a_new_brain(self, effects: list[Effect]) -> None:
        new = Brain(self.state)
        same = decide(self.state, new, self.now)
        assert [e for e in effects if isinstance(e, Emit)] == [e for e in same if isinstance(e, Emit)]
        assert self.brain.wanted.all() == new.wanted.all()

    def perform(self, effect: Effect) -> None:
        match effect:
            case DispatchWork():
                key = (effect.assignment.task, effect.assignment.lease)
                if effect.assignment.rank:
                    self.ranks[*key, effect.assignment.rank] = (effect.node, effect.assignment)
                elif f"work {key}" not in self.ids:
                    self.ids.add(f"work {key}")
                    self.queue[key] = (effect.node, effect.assignment)
            case WithdrawWork():
                for key in [
                    key for key, (node, _) in self.queue.items() if (key[0], node) == (effect.task, effect.node)
                ]:
                    del self.queue[key]
            case StopTask():
                self.stops.add((effect.task, effect.lease))
                if effect.checkpoint:
                    self.saves.add((effect.task, effect.lease))
            case AssignReplica():
                replica = effect.assignment
                self.deployed[replica.node, replica.deployment] = replica

    def settle(self, rounds: int = 30) -> "World":
        """Decide until there is nothing more to say; it has to come to an end."""
        for _ in range(rounds):
            if not any(isinstance(effect, Emit) for effect in self.step()):
                return self
        raise AssertionError("the scheduler goes on deciding without any news")

    def wait(self, seconds: float) -> "World":
        self.now += seconds
        return self.settle()

    def crash(self) -> None:
        """The scheduler dies and is rebuilt from the log; what it had not written down is gone."""
        rebuilt = State()
        for event, at, id in self.log:
            rebuilt = apply(rebuilt, event, at, id)
        assert rebuilt == self.state
        self.state, self.brain = rebuilt, Brain(rebuilt)

    def snapshot(self) -> bytes:
        """All that counts of the state: everything but the strays."""
        strays, journal = self.state.strays, self.state.journal
        self.state.strays, self.state.journal = {}, None
        try:
            return pickle.dumps(self.state)
        finally:
            self.state.strays, self.state.journal = strays, journal

    # --- nodes ---

    def node(
        self,
        name: str,
        cpus: float = 2.0,
        memory: int = 4 * GIB,
        gpus: int = 0,
        kinds: tuple[str, ...] = ("check", "train", "gang", "export", "serve"),
        model: str = "H100",
        labels: dict[str, str] | None = None,
        gpu_memory: int = 80 * GIB,
    ) -> "World":
        """A node joins, with one worker for all its kinds; `cpus=0` is one without a hw-agent."""
        if cpus:
            devices = [Gpu(f"{name}-gpu{at}", model, gpu_memory, at) for at in range(gpus)]
            self.say(NodeInventoried(name, 1, Inventory(cpus, memory, gpus=devices, labels=labels or {})))
        self.say(WorkerJoined(name, "worker", list(kinds)))
        return self

    def lose(self, name: str) -> "World":
        self.say(WorkerLost(name, "worker"))
        self.say(NodeLost(name))
        return self

    # --- jobs ---

    def submit(self, id: str, **fields: Any) -> Job:
        """A job is admitted; nothing is decided yet."""
        spec = make_spec(fields.pop("name", id), **fields)
        self.say(JobAdmitted(id, spec, self.now, f"00-{'1' * 32}-{'2' * 16}-01"), f"{id}.admitted")
        return self.state.jobs[id]

    def task(self, job: str, kind: str = "") -> Task:
        known = self.state.jobs[job]
        current = known.tasks[kind] if kind else known.current  # type: ignore[index]
        assert current is not None
        return current

    # --- workers ---

    def start(self, key: tuple[str, int]) -> None:
        """The worker takes an assignment from its queue and says so."""
        node, work = self.queue.pop(key)
        self.taken[key] = (node, work)
        self.say(TaskStarted(work.task, work.job, work.tenant, work.kind, work.lease, node))

    def progress(self, key: tuple[str, int], step: int = 1) -> None:
        node, work = self.taken[key]
        self.say(TaskProgressed(work.task, work.job, work.tenant, work.kind, work.lease, node, "train", step, 10))

    def succeed(self, key: tuple[str, int]) -> None:
        """The worker finishes; an exporter registers the version first."""
        node, work = self.taken.pop(key)
        if work.kind == "export":
            self.say(ModelExported(self.version(work.job)), f"{work.task}.{work.lease}.exported")
        done = TaskSucceeded(
            work.task, work.job, work.tenant, work.kind, work.lease, node, OUTPUTS[work.kind], {"accuracy": 0.9}
        )
        self.say(done, f"{work.task}.{work.lease}.succeeded")

    def fail(self, key: tuple[str, int], *, retryable: bool = True) -> None:
        node, work = self.taken.pop(key)
        problem = Problem("broken", "it broke")
        failed = TaskFailed(work.task, work.job, work.tenant, work.kind, work.lease, node, problem, retryable)
        self.say(failed, f"{work.task}.{work.lease}.failed")

    def break_gang(self, key: tuple[str, int]) -> None:
        """A member fails because another one went away."""
        node, work = self.taken.pop(key)
        problem = Problem("gang_broken", "another member went away")
        self.say(TaskFailed(work.task, work.job, work.tenant, work.kind, work.lease, node, problem))

    def obey(self, key: tuple[str, int]) -> None:
        """The worker stops as it was told to, with a checkpoint if it was asked for one."""
        node, work = self.taken.pop(key)
        if key in self.saves and work.kind == "train":
            self.say(TaskCheckpointed(work.task, work.job, work.tenant, work.lease, 7, "sha256:c"))
        stopped = TaskCancelled(work.task, work.job, work.tenant, work.kind, work.lease, node)
        self.say(stopped, f"{work.task}.{work.lease}.cancelled")

    def version(self, job: str) -> ModelVersion:
        spec = self.state.jobs[job].spec
        number = 1 + sum(isinstance(event, ModelExported) for event, _, _ in self.log)
        return ModelVersion(
            spec.name, number, spec.tenant, spec.task, f"sha256:{job}", job, self.now, metrics={"accuracy": 0.9}
        )

    def ready(self, node: str, deployment: str) -> None:
        """The inferencer of a node brought up what it was assigned."""
        assigned = self.deployed[node, deployment]
        assert assigned.version is not None
        version = assigned.version
        self.say(
            ReplicaReady(
                deployment, assigned.tenant, node, assigned.generation, version.model, version.version, assigned.job
            )
        )

    def check(self, job: str) -> "World":
        """A good worker does the job's check; what follows is not decided yet."""
        self.settle()
        (key,) = (key for key, (_, work) in self.queue.items() if (work.job, work.kind) == (job, "check"))
        self.start(key)
        self.succeed(key)
        return self

    def run(self, job: str, *, until: str = "deployed") -> "World":
        """Good workers carry one job on until its state is `until`."""
        for _ in range(20):
            self.settle()
            if self.state.jobs[job].state == until:
                return self
            for key in [key for key, (_, work) in self.queue.items() if work.job == job]:
                self.start(key)
                self.succeed(key)
            for key in [key for key, (_, work) in self.taken.items() if key in self.stops]:
                self.obey(key)
            for (node, name), assigned in self.deployed.items():
                replica = self.state.deployments[name].replicas.get(node)
                if replica is not None and replica.state == "assigned" and assigned.job == job:
                    self.ready(node, name)
        raise AssertionError(f"{job} is {self.state.jobs[job].state}")

    def said(self, kind: type[Struct]) -> list[Any]:
        """Every event of a kind so far."""
        return [event for event, _, _ in self.log if isinstance(event, kind)]


@pytest.fixture(scope="session")
def make_world() -> Callable[[], World]:
    return World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(scope="session")
def spec_of() -> Callable[..., JobSpec]:
    return make_spec
