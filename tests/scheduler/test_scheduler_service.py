"""The scheduler on a real nats-server, between scripted workers that speak only the bus."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

import llmos.service
from llmos.bus import Bus, Heard, Message
from llmos.cancel import cancel
from llmos.client import Client
from llmos.clock import SystemClock
from llmos.contracts import subjects
from llmos.contracts.dead import DeadLetter
from llmos.contracts.deployments import DeploymentChanged, ReplicaAssigned, ReplicaReady
from llmos.contracts.jobs import (
    CancelRequested,
    ExplainRequested,
    JobAdmitted,
    JobCancelled,
    JobDeployed,
    JobRejected,
    JobRequested,
    JobsRequested,
    JobSucceeded,
)
from llmos.contracts.models import ModelExported, ModelVersion
from llmos.contracts.nodes import Heartbeat, Inventory, NodeInventoried, NodesRequested, WorkerJoined, WorkerLost
from llmos.contracts.queues import QueueSettings
from llmos.contracts.tasks import (
    TaskAssigned,
    TaskCancelled,
    TaskLost,
    TaskPlaced,
    TaskPreempting,
    TaskStarted,
    TaskStopRequested,
    TaskSucceeded,
)
from llmos.errors import NotFound, Rejected
from llmos.ids import new_id
from llmos.natsserver import NatsServer
from llmos.service import Context, running
from llmos_scheduler.config import SchedulerConfig
from llmos_scheduler.service import Scheduler, serve

OUTPUTS = {
    "check": {"dataset": "sha256:d", "base": "sha256:b"},
    "train": {"model": "sha256:m"},
    "export": {"model": "sha256:o"},
}
SPEC: dict[str, Any] = {"name": "mood", "model": {"base": "hf:org/base"}, "data": {"train": "file:///d.csv"}}
TRACE = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


class Node:
    """One node: an inventory, a worker for every kind, and an inferencer; good unless a test holds a kind back."""

    def __init__(self, bus: Bus, name: str = "a", *, hold: str = "") -> None:
        self.bus = bus
        self.name = name
        self.hold = hold
        self.beating = True
        self.assigned: list[TaskAssigned] = []
        self.traces: list[str] = []
        self.stopped: dict[tuple[str, int], asyncio.Event] = {}
        self.saves: set[tuple[str, int]] = set()
        self._hands: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        await self.bus.emit(NodeInventoried(self.name, 1, Inventory(4, 16 << 30)))
        try:
            async with asyncio.TaskGroup() as group:
                for kind in OUTPUTS:
                    group.create_task(self._work(kind))
                for loop in (self._beat, self._serve, self._obey):
                    group.create_task(loop())
        finally:
            await cancel(*self._hands)

    async def _beat(self) -> None:
        while True:
            if self.beating:
                beat = Heartbeat(self.name, "worker", "i", time.time(), [*OUTPUTS, "serve"])
                await self.bus.bucket("nodes").put(f"{self.name}.worker", beat)
            await asyncio.sleep(0.2)

    async def _work(self, kind: str) -> None:
        consumer, filter = subjects.work_consumer(kind, self.name)
        async for delivery in self.bus.work("WORK", consumer, filter, TaskAssigned, slots=lambda: 8):
            self.assigned.append(delivery.body)
            self.traces.append(delivery.envelope.traceparent)
            hand = asyncio.create_task(self._do(delivery))
            self._hands.add(hand)
            hand.add_done_callback(self._hands.discard)

    async def _do(self, delivery: Any) -> None:
        work: TaskAssigned = delivery.body
        head = (work.task, work.job, work.tenant, work.kind, work.lease, self.name)
        await self.bus.emit(TaskStarted(*head))
        if work.kind == self.hold:
            stop = self.stopped.setdefault((work.task, work.lease), asyncio.Event())
            async with delivery.kept_alive():
                await stop.wait()
            await self.bus.emit(TaskCancelled(*head))
        else:
            if work.kind == "export":
                await self.bus.emit(ModelExported(version_of(work)), id=f"{work.job}.exported")
            await self.bus.emit(TaskSucceeded(*head, OUTPUTS[work.kind]), id=f"{work.task}.{work.lease}.succeeded")
        await delivery.ack()

    async def _obey(self) -> None:
        async for heard in self.bus.follow("CONTROL"):
            stop = msgspec.json.decode(heard.data, type=TaskStopRequested)
            if stop.checkpoint:
                self.saves.add((stop.task, stop.lease))
            self.stopped.setdefault((stop.task, stop.lease), asyncio.Event()).set()

    async def _serve(self) -> None:
        async for heard in self.bus.follow("DEPLOY", [f"llmos.deploy.{self.name}.*"], last_per_subject=True):
            assigned = msgspec.json.decode(heard.data, type=ReplicaAssigned)
            if assigned.version is not None:
                await self.bus.emit(
                    ReplicaReady(
                        assigned.deployment,
                        assigned.tenant,
                        self.name,
                        assigned.generation,
                        assigned.version.model,
                        assigned.version.version,
                        assigned.job,
                    )
                )


def version_of(work: TaskAssigned) -> ModelVersion:
    return ModelVersion(work.spec.name, 1, work.tenant, work.spec.task, "sha256:o", work.job, 0.0)


class History:
    """Everything that was ever said, heard by a bystander."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.heard: list[tuple[Struct, Heard]] = []
        self.news = asyncio.Event()

    async def run(self) -> None:
        async for heard in self.bus.follow("EVENTS"):
            event = heard.event()
            if event is not None:
                self.heard.append((event, heard))
                self.news.set()

    def said(self, kind: type[Any], /, **fields: Any) -> list[Any]:
        return [
            event
            for event, _ in self.heard
            if isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items())
        ]

    async def hears(self, kind: type[Any], /, **fields: Any) -> Any:
        """The first event of a kind, now or within 20 s."""
        async with asyncio.timeout(20):
            while not (found := self.said(kind, **fields)):
                self.news.clear()
                await self.news.wait()
        return found[0]


@asynccontextmanager
async def playing(*peers: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(peer.run()) for peer in peers]
    try:
        yield
    finally:
        ended = [task for task in tasks if task.done()]
        await cancel(*tasks)
        for task in ended:
            task.result()


@pytest.fixture
async def history(bus: Bus) -> AsyncIterator[History]:
    history = History(bus)
    async with playing(history):
        yield history


@pytest.fixture
def config(nats_url: str, tmp_path: Path) -> SchedulerConfig:
    return SchedulerConfig(nats_url=nats_url, node="head", data_dir=tmp_path / "head", drain_s=2.0)


@pytest.fixture
async def worker_bus(nats_url: str) -> AsyncIterator[Bus]:
    bus = await Bus.connect(nats_url, source="worker/a")
    yield bus
    await bus.close()


async def submit(bus: Bus, job: str = "", *, tenant: str = "acme", body: Any = None, **fields: Any) -> str:
    job = job or new_id("j")
    spec = msgspec.json.encode({**SPEC, **fields}) if body is None else body
    await bus.store(f"llmos.job.submit.{tenant}.{job}", spec, {"Nats-Msg-Id": new_id("m"), "traceparent": TRACE})
    return job


async def test_a_plain_message_becomes_a_deployed_model(
    config: SchedulerConfig, bus: Bus, worker_bus: Bus, history: History
) -> None:
    node = Node(worker_bus)
    async with running("scheduler", config, serve), playing(node):
        job = await submit(bus, deploy={"name": "mood"})
        deployed = await history.hears(JobDeployed, job=job)
        view = await bus.call("scheduler", "job", JobRequested(job))
    assert (deployed.model, deployed.version, deployed.nodes, deployed.tenant) == ("mood", 1, ["a"], "acme")
    assert [task.kind for task in node.assigned] == ["check", "train", "export"]
    assert [event.lease for event in history.said(TaskPlaced)] == [1, 2, 3]
    assert (view.state, view.trace) == ("deployed", "ab" * 16)
    assert {trace.split("-")[1] for trace in node.traces} == {"ab" * 16}, "one trace from the submission on"
    said = {heard.envelope.id: heard for _, heard in history.heard}
    for event, heard in history.heard:
        if isinstance(event, TaskPlaced | DeploymentChanged | JobDeployed):
            assert heard.envelope.cause in said, f"{type(event).__name__} has a cause that was said"
            assert heard.envelope.traceparent.split("-")[1] == "ab" * 16


async def test_a_body_that_is_no_json_and_a_wrong_spec_are_rejected_by_an_event(
    config: SchedulerConfig, bus: Bus, history: History
) -> None:
    async with running("scheduler", config, serve):
        garbage = await submit(bus, body=b"\x00 not json")
        wrong = await submit(bus, train={"epochs": 0, "epoch": 3}, priority="high")
        faults = {
            job: [str(fault) for fault in (await history.hears(JobRejected, job=job)).faults]
            for job in (garbage, wrong)
        }
    assert faults[garbage][0].startswith(": the message is not JSON")
    assert faults[wrong] == [
        "priority: must be int, not str",
        "train.epoch: no such field; did you mean epochs?",
        "train.epochs: must be at least 1, not 0",
    ]


async def test_a_submission_that_can_not_even_be_answered_is_kept_in_dead(
    config: SchedulerConfig, bus: Bus, history: History
) -> None:
    async with running("scheduler", config, serve):
        await bus.store("llmos.job.submit.acme.no$token", b"{}", {})
        await history.hears(JobAdmitted, job=await submit(bus))
        letter = await bus.last_of("DEAD", "llmos.dead.JOBS.scheduler", DeadLetter)
    assert letter is not None
    assert letter.subject == "llmos.job.submit.acme.no$token"


async def test_a_job_submitted_twice_is_admitted_once(config: SchedulerConfig, bus: Bus, history: History) -> None:
    async with running("scheduler", config, serve):
        job = await submit(bus)
        await submit(bus, job)
        await submit(bus, job, tenant="evil", name="other")
        await history.hears(JobRejected, job=job, tenant="evil")
        await history.hears(JobAdmitted, job=await submit(bus))
        assert (await bus.call("scheduler", "job", JobRequested(job))).tenant == "acme"
    assert len(history.said(JobAdmitted, job=job)) == 1


async def test_a_job_that_was_submitted_while_no_scheduler_ran_is_done_later(
    config: SchedulerConfig, bus: Bus, worker_bus: Bus, history: History
) -> None:
    job = await submit(bus, deploy={"name": "mood"})
    async with playing(Node(worker_bus)), running("scheduler", config, serve):
        await history.hears(JobDeployed, job=job)


async def test_a_running_job_is_cancelled_by_a_call(
    config: SchedulerConfig, bus: Bus, worker_bus: Bus, history: History
) -> None:
    node = Node(worker_bus, hold="train")
    async with running("scheduler", config, serve), playing(node):
        job = await submit(bus)
        await history.hears(TaskStarted, job=job, kind="train")
        view = await bus.call("scheduler", "cancel", CancelRequested(job, "somebody"))
        assert view.state == "cancelling"
        await history.hears(JobCancelled, job=job)
        again = await bus.call("scheduler", "cancel", CancelRequested(job, "somebody"))
    assert again.state == "cancelled"
    assert len(history.said(TaskCancelled, job=job)) == 1


async def test_a_drained_node_gives_its_training_back_and_another_goes_on_with_it(
    config: SchedulerConfig, bus: Bus, worker_bus: Bus, history: History
) -> None:
    first, second = Node(worker_bus, hold="train"), Node(worker_bus, "b")
    async with running("scheduler", config, serve), playing(first):
        job = await submit(bus, retry={"max_attempts": 1})
        started = await history.hears(TaskStarted, job=job, kind="train")
        async with playing(second):
            await history.hears(WorkerJoined, node="b")
            await Client(bus).cordon("a", drain=True)
            asked = await history.hears(TaskPreempting, job=job)
            await history.hears(TaskPlaced, job=job, kind="train", node="b")
            await history.hears(JobSucceeded, job=job)
    assert (asked.lease, asked.reason) == (started.lease, "a is drained")
    assert first.saves == {(started.task, started.lease)}
    assert [event.attempt for event in history.said(TaskPlaced, job=job, kind="train")] == [1, 1]


async def test_a_replica_that_leases_its_hardware_takes_it_from_training(
    config: SchedulerConfig, bus: Bus, worker_bus: Bus, history: History
) -> None:
    node = Node(worker_bus, hold="train")
    async with running("scheduler", config, serve), playing(node):
        training = await submit(bus, resources={"cpus": 3.5, "memory": "1GiB"})
        await history.hears(TaskStarted, job=training, kind="train")
        served = await submit(
            bus,
            train={"method": "none"},
            resources={"cpus": 0.1, "memory": "1MiB"},
            deploy={"name": "mood", "resources": {"cpus": 2, "memory": "1GiB"}},
        )
        asked = await history.hears(TaskPreempting, job=training)
        deployed = await history.hears(JobDeployed, job=served)
    assert asked.reason.endswith("serves requests")
    assert deployed.nodes == ["a"]


async def test_the_scheduler_answers_what_it_is_asked(
    config: SchedulerConfig, bus: Bus, worker_bus: Bus, history: History
) -> None:
    async with running("scheduler", config, serve), playing(Node(worker_bus, hold="train")):
        job = await submit(bus)
        await history.hears(TaskStarted, job=job, kind="train")
        await history.hears(TaskPlaced, job=job, kind="train")
        (listed,) = (await bus.call("scheduler", "jobs", JobsRequested(tenant="acme"))).jobs
        shown = await bus.call("scheduler", "job", JobRequested(job))
        why = await bus.call("scheduler", "explain", ExplainRequested(job))
        nodes = {node.node: node for node in (await bus.call("scheduler", "nodes", NodesRequested())).nodes}
        with pytest.raises(NotFound, match="there is no job 'nope'"):
            await bus.call("scheduler", "job", JobRequested("nope"))
    assert (listed.job, listed.state) == (job, "training")
    assert [task.state for task in shown.tasks] == ["succeeded", "running", "pending"]
    assert why.summary == "Train runs on a."
    assert nodes["a"].tasks == [f"{job}-train"]
    assert nodes["a"].cpus_leased == 1.0
    assert nodes["head"].services == ["scheduler"]


async def test_operators_change_nodes_queues_and_reservations_by_calls(
    config: SchedulerConfig, bus: Bus, worker_bus: Bus, history: History
) -> None:
    async with running("scheduler", config, serve), playing(Node(worker_bus)):
        await history.hears(JobSucceeded, job=await submit(bus))
        client = Client(bus)
        cordoned = await client.cordon("a", drain=True, reason="fan", requested_by="ann")
        waits = await client.plan(SPEC)
        free = await client.uncordon("a")
        would = await client.plan(SPEC)
        with pytest.raises(Rejected, match=r"train\.epochs: must be at least 1"):
            await client.plan({**SPEC, "train": {"epochs": 0}})
        queues = await client.set_queues([QueueSettings("lab", quota=2)])
        made = await client.reserve("exam", ["a"], queue="lab")
        (known,) = await client.reservations()
        await client.unreserve("exam")
        left = await client.reservations()
        with pytest.raises(NotFound, match="no node 'nope'"):
            await client.cordon("nope")
    assert (cordoned.cordoned, cordoned.draining, cordoned.reason) == (True, True, "fan")
    assert (waits.starts_on, would.starts_on) == ([], ["a"])
    assert not free.cordoned
    assert [(queue.name, queue.quota) for queue in queues] == [("lab", 2)]
    assert (made, left) == (known, [])
    assert made.active


# --- crashes ---


class Killed(Exception):  # no error: the end of a process
    """The process is gone."""


class FatalBus:
    """A bus on which the scheduler dies at its n-th deed: just before it, or after it but before it learns so."""

    def __init__(self, bus: Bus, deed: int, *, after: bool) -> None:
        self._bus = bus
        self._left = deed
        self._after = after
        self.died = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._bus, name)
        return self._deadly(found) if name in ("emit", "purge") else found

    async def store_many(self, messages: Sequence[Message]) -> list[Any]:
        """Each message is a deed; what was not sent before the death never is."""
        last = self._left <= len(messages)
        stored = await self._bus.store_many(messages[: self._left - (not self._after)] if last else messages)
        self._left -= len(messages)
        if last and messages:
            self.died = True
            raise Killed
        return stored

    def _deadly(self, deed: Callable[..., Any]) -> Callable[..., Any]:
        async def perform(*args: Any, **named: Any) -> Any:
            self._left -= 1
            last = self._left == 0
            if last and not self._after:
                self.died = True
                raise Killed
            result = await deed(*args, **named)
            if last:
                self.died = True
                raise Killed
            return result

        return perform


@asynccontextmanager
async def mortal(config: SchedulerConfig, deed: int, *, after: bool) -> AsyncIterator[tuple[FatalBus, asyncio.Event]]:
    """A scheduler that dies at its n-th deed. Yields its bus and the event of its end."""
    made: list[FatalBus] = []

    async def serve_and_die(ctx: Context[SchedulerConfig]) -> None:
        fatal = FatalBus(ctx.bus, deed, after=after)
        made.append(fatal)
        ctx.bus = fatal  # type: ignore[assignment]
        try:
            await Scheduler(ctx).run()
        except Killed:
            return

    async with running("scheduler", config, serve_and_die) as ctx:
        await asyncio.sleep(0)
        yield made[0], ctx.stopping


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_wherever_the_scheduler_dies_its_job_is_done_once(
    config: SchedulerConfig, bus: Bus, worker_bus: Bus, history: History, *, after: bool
) -> None:
    node = Node(worker_bus)
    deaths = 0
    async with playing(node):
        for number, deed in enumerate((1, *range(1, 30))):  # the very first one is to notice the workers
            name = f"m{number}"
            job = await submit(bus, name=name, deploy={"name": name})
            async with mortal(config, deed, after=after) as (fatal, ended):
                done = asyncio.create_task(history.hears(JobDeployed, job=job))
                end = asyncio.create_task(ended.wait())
                await asyncio.wait({done, end}, return_when=asyncio.FIRST_COMPLETED)
                await cancel(end, done)
            deaths += fatal.died
            async with running("scheduler", config, serve):
                await history.hears(JobDeployed, job=job)
            if not fatal.died:
                break
            facts = Counter(type(event).__name__ for event, _ in history.heard if getattr(event, "job", "") == job)
            assert facts == {
                "JobAdmitted": 1, "TaskPlaced": 3, "TaskStarted": 3, "TaskSucceeded": 3,
                "DeploymentChanged": 1, "ReplicaReady": 1, "JobDeployed": 1,
            }, f"died {'after' if after else 'before'} its deed {deed}"  # fmt: skip
    assert deaths >= 11, "a job needs ten deeds"
    assert max(Counter((work.task, work.lease) for work in node.assigned).values()) == 1


async def test_a_scheduler_that_starts_while_work_runs_places_nothing_twice(
    config: SchedulerConfig, bus: Bus, worker_bus: Bus, history: History
) -> None:
    node = Node(worker_bus, hold="train")
    async with playing(node):
        async with running("scheduler", config, serve):
            job = await submit(bus)
            await history.hears(TaskStarted, job=job, kind="train")
        for _ in range(3):
            async with running("scheduler", config, serve):
                view = await bus.call("scheduler", "job", JobRequested(job))
                assert view.state == "training"
        async with running("scheduler", config, serve):
            await bus.call("scheduler", "cancel", CancelRequested(job))
            await history.hears(JobCancelled, job=job)
    assert len(history.said(TaskPlaced, job=job, kind="train")) == 1


class SlowEars:
    """A bus on which what was said is heard late; it remembers the ids of the facts."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.said: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def follow(self, *args: Any, **named: Any) -> AsyncIterator[Heard]:
        async for heard in self._bus.follow(*args, **named):
            await asyncio.sleep(0.03)
            yield heard

    async def store_many(self, messages: Sequence[Message]) -> list[Any]:
        self.said += [message.headers["ce-id"] for message in messages if message.subject.startswith("llmos.evt.")]
        return await self._bus.store_many(messages)


async def test_nothing_is_decided_before_the_scheduler_has_heard_itself(
    config: SchedulerConfig, bus: Bus, worker_bus: Bus, history: History
) -> None:
    ears: list[SlowEars] = []

    async def serve_slowly(ctx: Context[SchedulerConfig]) -> None:
        ears.append(SlowEars(ctx.bus))
        ctx.bus = ears[0]  # type: ignore[assignment]
        await Scheduler(ctx).run()

    async with running("scheduler", config, serve_slowly), playing(Node(worker_bus)):
        jobs = [await submit(bus, name=f"m{number}", deploy={"name": f"m{number}"}) for number in range(3)]
        for job in jobs:
            await history.hears(JobDeployed, job=job)
    assert [id for id, times in Counter(ears[0].said).items() if times > 1] == []


async def test_a_killed_nats_server_loses_no_job(
    nats_server: NatsServer, config: SchedulerConfig, bus: Bus, worker_bus: Bus, history: History
) -> None:
    async with running("scheduler", config, serve), playing(Node(worker_bus)):
        jobs = [await submit(bus, name=f"m{number}", deploy={"name": f"m{number}"}) for number in range(4)]
        await history.hears(TaskPlaced, job=jobs[0], kind="train")
        await nats_server.kill()
        await nats_server.start()
        for job in jobs:
            await history.hears(JobDeployed, job=job)
    for job in jobs:
        assert len(history.said(JobDeployed, job=job)) == 1
    assert history.said(TaskLost) == []


# --- lost nodes ---


class SteppedClock(SystemClock):
    """The machine's clock, and what a test adds to it."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


@pytest.fixture
def quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmos.service, "HEARTBEAT_S", 0.1)


@pytest.mark.usefixtures("quick_heartbeats")
async def test_a_lost_node_s_work_goes_to_another_node(
    config: SchedulerConfig, nats_url: str, bus: Bus, worker_bus: Bus, history: History
) -> None:
    clock = SteppedClock()
    async with AsyncExitStack() as stack:
        other_bus = await Bus.connect(nats_url, source="worker/b")
        stack.push_async_callback(other_bus.close)
        await stack.enter_async_context(running("scheduler", config, serve, clock=clock))
        node = Node(worker_bus, "a", hold="train")
        dying = asyncio.create_task(node.run())
        job = await submit(bus)
        await history.hears(TaskStarted, job=job, kind="train", node="a")
        await cancel(dying)
        await stack.enter_async_context(playing(Node(other_bus, "b")))
        for _ in range(30):
            clock.ahead += 3
            await asyncio.sleep(0.15)
            if history.said(TaskPlaced, job=job, kind="export"):
                break
        (lost,) = history.said(TaskLost, job=job)
        placed = history.said(TaskPlaced, job=job, kind="train")
    assert lost.reason == "the node a is gone"
    assert [event.node for event in placed] == ["a", "b"]
    assert placed[0].lease < placed[1].lease
    assert len(history.said(WorkerLost, node="a")) == 1


async def test_a_scheduler_that_slept_blames_nobody_for_the_silence(
    config: SchedulerConfig, bus: Bus, worker_bus: Bus, history: History
) -> None:
    clock = SteppedClock()
    async with running("scheduler", config, serve, clock=clock), playing(Node(worker_bus, hold="train")):
        job = await submit(bus)
        await history.hears(TaskStarted, job=job, kind="train")
        clock.ahead += 3600
        await asyncio.sleep(1.5)
    assert history.said(WorkerLost) == []
    assert history.said(TaskLost) == []


async def test_a_malformed_heartbeat_and_a_malformed_event_stop_nothing(
    config: SchedulerConfig, bus: Bus, worker_bus: Bus, history: History
) -> None:
    async with running("scheduler", config, serve), playing(Node(worker_bus)):
        await bus.store("$KV.nodes.x.y", b'"\xff', {})
        await bus.store("$KV.nodes.liar.trainer", msgspec.json.encode(Heartbeat("a", "trainer", "i", 0.0)), {})
        for body in (b"\xff", b"{}", b'{"a":' * 10_000):
            await bus.store("llmos.evt.task.started.acme.t", body, {})
        job = await submit(bus, deploy={"name": "mood"})
        await history.hears(JobDeployed, job=job)
