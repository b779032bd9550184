"""Scripted peers: a scheduler and an inferencer that speak only the bus and do what a test tells them.

They stand in for services in tests of whatever talks to those services, so that such a test needs no training.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec import Struct

from llmos.bus import Bus
from llmos.cancel import cancel
from llmos.contracts import deployments, inference, jobs, models, nodes, queues, subjects, tasks
from llmos.contracts.envelope import Envelope
from llmos.errors import NotFound, Problem

NODE = "scripted"
Step = Struct | asyncio.Event
Handler = Callable[[Any, Envelope], Awaitable[Struct]]
Story = Callable[[str, jobs.JobSpec], Iterator[Step]]


def deployed(job: str, spec: jobs.JobSpec) -> Iterator[Step]:
    """The facts of a job that goes well."""
    for kind in tasks.KINDS:
        where: dict[str, Any] = {"task": f"{job}-{kind}", "job": job, "tenant": spec.tenant, "kind": kind, "lease": 1}
        yield tasks.TaskPlaced(**where, attempt=1, node=NODE)
        yield tasks.TaskStarted(**where, node=NODE)
        for step in (1, 2):
            yield tasks.TaskProgressed(
                **where,
                node=NODE,
                phase=kind,
                step=step,
                steps=2,
                fraction=step / 2,
                eta=2.0 - step,
                metrics={"loss": 1 / step},
            )
        yield tasks.TaskSucceeded(**where, node=NODE, metrics={"accuracy": 0.9})
    yield models.ModelExported(version_of(job, spec))
    yield jobs.JobDeployed(job, spec.tenant, spec.name, 1, [NODE])


def rejected(job: str, spec: jobs.JobSpec) -> Iterator[Step]:
    """The facts of a job whose data is wrong."""
    faults = [jobs.Fault(spec.data.train, "no 'label'; there is 'text'", line) for line in (2, 7)]
    yield jobs.JobRejected(job, spec.tenant, faults, spec.name)


def refused(job: str, spec: jobs.JobSpec) -> Iterator[Step]:
    """The facts of a job whose model does not pass its gate."""
    yield jobs.JobRefused(job, spec.tenant, ["accuracy 0.50 is below 0.90"], {"accuracy": 0.5})


def version_of(job: str, spec: jobs.JobSpec, version: int = 1) -> models.ModelVersion:
    """A registered version with plausible content."""
    return models.ModelVersion(
        model=spec.name, version=version, tenant=spec.tenant, task=spec.task, artifact="sha256:" + "a" * 64, job=job,
        created_at=1_790_000_000.0, labels=["no", "yes"], metrics={"accuracy": 0.9}, size=1234,
    )  # fmt: skip


class ScriptedScheduler:
    """Takes submissions, tells `story` of each as events, and answers what a scheduler is asked.

    A spec that is no `JobSpec` is rejected with the first fault. `heard` holds the submissions as they came.
    """

    def __init__(self, bus: Bus, story: Story = deployed) -> None:
        self.bus = bus
        self.story = story
        self.jobs: dict[str, jobs.JobView] = {}
        self.heard: list[tuple[str, dict[str, str], Any]] = []
        self.cancelled: list[jobs.CancelRequested] = []
        self.asked: list[Struct] = []  # what operators asked for
        inventory = nodes.Inventory(cpus=2, memory=8 << 30, cpu_model="scripted")
        self.node = nodes.NodeView(NODE, True, inventory, ["trainer"])
        self.queues: list[queues.QueueView] = []
        self.reservations: list[queues.ReservationView] = []
        self._stories: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled."""
        calls: dict[str, Handler] = {
            "jobs": self._jobs,
            "job": self._job,
            "explain": self._explain,
            "cancel": self._cancel,
            "nodes": self._nodes,
            "plan": self._plan,
            "shift": self._shift,
            "rollback": self._shift,
            "cordon": self._cordon,
            "uncordon": self._uncordon,
            "queues": self._queues,
            "set_queues": self._set_queues,
            "reserve": self._reserve,
            "unreserve": self._unreserve,
            "reservations": self._reservations,
        }
        parts = [asyncio.create_task(self.bus.serve("scheduler", calls)), asyncio.create_task(self._take())]
        try:
            await asyncio.gather(*parts)
        finally:
            await cancel(*parts, *self._stories)

    async def _take(self) -> None:
        async for delivery in self.bus.work("JOBS", "scheduler", "llmos.job.submit.*.*", msgspec.Raw, slots=lambda: 8):
            job = delivery.subject.rsplit(".", 1)[-1]
            self.heard.append((delivery.subject, delivery.headers, msgspec.json.decode(delivery.data)))
            await delivery.ack()
            try:
                spec = msgspec.json.decode(delivery.data, type=jobs.JobSpec)
            except msgspec.ValidationError as error:
                await self.bus.emit(jobs.JobRejected(job, "default", [jobs.Fault("spec", str(error))]))
                continue
            task = asyncio.create_task(self._tell(job, spec, delivery.envelope))
            self._stories.add(task)
            task.add_done_callback(self._stories.discard)

    async def _tell(self, job: str, spec: jobs.JobSpec, cause: Envelope) -> None:
        view = jobs.JobView(job, spec.name, spec.tenant, spec.queue, "queued", spec.priority, time.time(), spec=spec)
        self.jobs[job] = view
        steps = self.story(job, spec)
        first = next(steps)
        if not isinstance(first, jobs.JobRejected):
            await self.bus.emit(jobs.JobAdmitted(job, spec, time.time()), cause=cause.id, traceparent=cause.traceparent)
        for step in (first, *steps):
            if isinstance(step, asyncio.Event):
                await step.wait()
                continue
            self._note(job, step)
            await self.bus.emit(step, cause=cause.id, traceparent=cause.traceparent)

    def _note(self, job: str, event: Struct) -> None:
        view = self.jobs[job]
        change: dict[str, Any] = {}
        if isinstance(event, tasks.TaskStarted):
            change = {"state": {"check": "checking", "train": "training", "export": "exporting"}[event.kind]}
        elif isinstance(event, jobs.JobDeployed | jobs.JobSucceeded):
            state = "deployed" if isinstance(event, jobs.JobDeployed) else "succeeded"
            change = {"state": state, "model": event.model, "version": event.version, "metrics": {"accuracy": 0.9}}
        elif isinstance(event, jobs.JobRejected):
            change = {"state": "rejected", "faults": event.faults}
        elif isinstance(event, jobs.JobRefused):
            change = {"state": "refused", "reasons": event.reasons, "metrics": event.metrics}
        elif isinstance(event, jobs.JobFailed):
            change = {"state": "failed", "problem": event.problem}
        elif isinstance(event, jobs.JobCancelled):
            change = {"state": "cancelled"}
        self.jobs[job] = msgspec.structs.replace(view, **change)

    def _find(self, job: str) -> jobs.JobView:
        if job not in self.jobs:
            raise NotFound(f"there is no job {job!r}", remedy="See `llmos get jobs`.", param="job")
        return self.jobs[job]

    async def _jobs(self, request: jobs.JobsRequested, _: Envelope) -> jobs.JobList:
        found = [
            view
            for view in reversed(self.jobs.values())
            if request.tenant in (None, view.tenant) and request.state in (None, view.state)
        ]
        return jobs.JobList(found[: request.limit])

    async def _job(self, request: jobs.JobRequested, _: Envelope) -> jobs.JobView:
        return self._find(request.job)

    async def _explain(self, request: jobs.ExplainRequested, _: Envelope) -> jobs.Explanation:
        view = self._find(request.job)
        return jobs.Explanation(
            view.job, view.state, "it waits for a node with 1 GPU", ["scripted: 0 GPUs"], remedies=["Add a node."]
        )

    async def _cancel(self, request: jobs.CancelRequested, _: Envelope) -> jobs.JobView:
        view = self._find(request.job)
        self.cancelled.append(request)
        if view.state not in jobs.ENDED:
            self.jobs[view.job] = view = msgspec.structs.replace(view, state="cancelling")
            await self.bus.emit(jobs.JobCancelling(view.job, view.tenant, request.requested_by, request.reason))
            await self.bus.emit(jobs.JobCancelled(view.job, view.tenant))
            self._note(view.job, jobs.JobCancelled(view.job, view.tenant))
        return view

    async def _nodes(self, _: nodes.NodesRequested, __: Envelope) -> nodes.NodeList:
        return nodes.NodeList([self.node])

    async def _shift(
        self, request: deployments.ShiftRequested | deployments.RollbackRequested, _: Envelope
    ) -> deployments.DeploymentChanged:
        self.asked.append(request)
        spec = jobs.JobSpec(request.deployment, jobs.ModelSource("hf:a/b"), jobs.DataSource("file:///a"))
        version = version_of("job-1", spec)
        changed = deployments.DeploymentChanged(request.deployment, "default", 2, "job-1", version, [NODE])
        if isinstance(request, deployments.ShiftRequested) and request.version and request.weight < 100:
            return msgspec.structs.replace(changed, canary=request.version, weight=request.weight)
        return changed

    async def _plan(self, request: jobs.PlanRequested, _: Envelope) -> jobs.Explanation:
        self.asked.append(request)
        waits = [jobs.Obstacle("resources", "2 GPUs, 1 of 2 are free", "2 x H100", 1, ["job-7"])]
        soon = time.time() + 60
        return jobs.Explanation("", "queued", "It would wait.", waits_for=waits, held_by=["job-7"], earliest_start=soon)

    async def _cordon(self, request: nodes.CordonRequested, _: Envelope) -> nodes.NodeView:
        self.asked.append(request)
        if request.node != NODE:
            raise NotFound(f"there is no node {request.node!r}", remedy="See `llmos get nodes`.", param="node")
        change = {"cordoned": True, "draining": request.drain, "reason": request.reason}
        self.node = msgspec.structs.replace(self.node, **change)
        return self.node

    async def _uncordon(self, request: nodes.UncordonRequested, _: Envelope) -> nodes.NodeView:
        self.asked.append(request)
        self.node = msgspec.structs.replace(self.node, cordoned=False, draining=False, reason="")
        return self.node

    async def _queues(self, _: queues.QueuesRequested, __: Envelope) -> queues.QueueList:
        return queues.QueueList(self.queues)

    async def _set_queues(self, request: queues.SetQueuesRequested, _: Envelope) -> queues.QueueList:
        self.asked.append(request)
        self.queues = [msgspec.convert(queue, queues.QueueView, from_attributes=True) for queue in request.queues]
        return queues.QueueList(self.queues)

    async def _reserve(self, request: queues.ReserveRequested, _: Envelope) -> queues.ReservationView:
        self.asked.append(request)
        view = msgspec.convert(request, queues.ReservationView, from_attributes=True)
        self.reservations.append(msgspec.structs.replace(view, active=request.start <= time.time()))
        return self.reservations[-1]

    async def _unreserve(self, request: queues.UnreserveRequested, _: Envelope) -> queues.ReservationView:
        self.asked.append(request)
        for view in self.reservations:
            if view.reservation == request.reservation:
                self.reservations.remove(view)
                return view
        raise NotFound(f"there is no reservation {request.reservation!r}", remedy="See `llmos get reservations`.")

    async def _reservations(self, _: queues.ReservationsRequested, __: Envelope) -> queues.ReservationList:
        return queues.ReservationList(self.reservations)


class ScriptedInferencer:
    """Answers the requests of one deployment: texts with `good` are `yes`. `requests` holds what came."""

    def __init__(self, bus: Bus, deployment: str, *, problem: Problem | None = None, silent: bool = False) -> None:
        self.bus = bus
        self.deployment = deployment
        self.problem = problem
        self.silent = silent
        self.requests: list[inference.InferenceRequested] = []

    async def deploy(self) -> None:
        """Say, as the scheduler and the inferencer would, that the deployment is there."""
        version = version_of(
            "job-1", jobs.JobSpec(self.deployment, jobs.ModelSource("hf:a/b"), jobs.DataSource("file:///a"))
        )
        assigned = deployments.ReplicaAssigned(self.deployment, NODE, 1, version=version, job="job-1")
        await self.bus.publish(subjects.deploy(NODE, self.deployment), assigned, type="llmos.replica.assigned.v1")
        await self.bus.emit(
            deployments.ReplicaReady(self.deployment, "default", NODE, 1, self.deployment, 1, job="job-1")
        )

    async def run(self) -> None:
        """Serve until cancelled."""
        consumer, filter = subjects.infer_consumer(self.deployment, "interactive")
        async for delivery in self.bus.work("INFER", consumer, filter, inference.InferenceRequested, slots=lambda: 8):
            self.requests.append(delivery.body)
            if not self.silent:
                id = delivery.subject.rsplit(".", 1)[-1]
                answer = self._answer(id, delivery.body.inputs)
                subject = subjects.reply(delivery.body.client, id)
                await self.bus.tell(subject, answer, type="llmos.inference.answered.v1", cause=delivery.envelope.id)
            await delivery.ack()

    def _answer(self, id: str, texts: Sequence[str | inference.Input]) -> inference.InferenceAnswered:
        if self.problem is not None:
            return inference.InferenceAnswered(id, self.deployment, problem=self.problem)
        outputs = [
            inference.Output("yes" if "good" in str(text) else "no", 0.75, [inference.LabelScore("yes", 0.75)])
            for text in texts
        ]
        return inference.InferenceAnswered(id, self.deployment, 1, NODE, outputs, 0.1, 0.2)


@asynccontextmanager
async def playing(*peers: ScriptedScheduler | ScriptedInferencer) -> AsyncIterator[None]:
    """Run peers for the length of a block; what they raise is raised at its end."""
    running = [asyncio.create_task(peer.run()) for peer in peers]
    try:
        yield
    finally:
        ended = [task for task in running if task.done()]
        await cancel(*running)
        for task in ended:
            task.result()
