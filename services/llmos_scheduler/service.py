"""The shell: follows the history, asks `decide` what follows from it, performs that, and waits until its own facts have
come back before it asks again. It keeps nothing that it could not rebuild from the stream.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec import Struct

from llmos.bus import Delivery, Heard
from llmos.cancel import cancel
from llmos.contracts import subjects
from llmos.contracts.deployments import ReplicaAssigned
from llmos.contracts.envelope import Envelope
from llmos.contracts.jobs import (
    CancelRequested,
    ExplainRequested,
    Explanation,
    JobCancelling,
    JobList,
    JobRequested,
    JobsRequested,
    JobView,
)
from llmos.contracts.nodes import HEARTBEAT_S, Heartbeat
from llmos.contracts.tasks import TaskAssigned, TaskCheckpointed, TaskProgressed, TaskStopRequested
from llmos.errors import Busy, LlmosError, NotFound, Rejected
from llmos.ids import is_token
from llmos.service import Context
from llmos.telemetry import traceparent
from llmos_scheduler.admission import admit
from llmos_scheduler.brain import Brain
from llmos_scheduler.config import SchedulerConfig
from llmos_scheduler.core import decide
from llmos_scheduler.effects import AssignReplica, Command, DispatchWork, Effect, Emit, StopTask, WithdrawWork
from llmos_scheduler.explain import explain
from llmos_scheduler.operators import Operators
from llmos_scheduler.presence import Beat, hear, notice
from llmos_scheduler.records import Job, State, TurnedAway
from llmos_scheduler.reporting import Reporting
from llmos_scheduler.state import apply
from llmos_scheduler.views import view_job, view_jobs

TICK_S = 0.5  # time alone can make something due
RETRY_S = 1.0
ADMISSION_S = 4.0  # a submission in the hands of a scheduler that died comes again after so long
DEAF_S = 2.5 * HEARTBEAT_S  # without our own heartbeat for so long, we can't judge the silence of others
_QUIET = (TaskProgressed, TaskCheckpointed)  # nothing is to be decided because of these
_TYPES = {row.type: row.ce_type for row in subjects.COMMANDS}


async def serve(ctx: Context[SchedulerConfig]) -> None:
    """Run the scheduler until `ctx.stopping` is set."""
    await Scheduler(ctx).run()


class Scheduler:
    """One scheduler; a stack has one at a time. Ids that are functions of the facts keep an overlap of two from saying
    anything twice, but both could lease the same resources."""

    def __init__(self, ctx: Context[SchedulerConfig]) -> None:
        self._ctx = ctx
        self._state = State()
        self._brain = Brain(State())  # of the state, once it is caught up
        self._applied = 0  # sequence of the newest event in the state
        self._said = 0  # sequence of the newest event that we emitted
        self._live_from = 0  # what was stored before our start is not reported again
        self._changed = asyncio.Event()  # something to decide
        self._moved = asyncio.Event()  # `_applied` grew
        self._beats: dict[str, Beat] = {}
        self._self_heard = 0.0
        self._since = 0.0
        self._reporting = Reporting(ctx.telemetry, ctx.log)

    async def run(self) -> None:
        """Catch up with the history, then hear, decide and answer until told to stop. Safe to kill at any point."""
        history = await self._ctx.bus.stream_state("EVENTS")
        self._live_from = history.last
        if history.first > history.last:  # nothing is left of it
            self._applied = history.last
        running = [asyncio.create_task(self._follow())]
        stopping = asyncio.create_task(self._ctx.stopping.wait())
        try:
            catching_up = asyncio.create_task(self._catch_up())
            running.append(catching_up)
            await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
            if catching_up.done() and not stopping.done():
                catching_up.result()
                running.remove(catching_up)
                running += [
                    asyncio.create_task(loop()) for loop in (self._watch, self._take, self._answer, self._decide)
                ]
                self._ctx.announce()
                await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
            for task in running:
                if task.done():
                    task.result()  # a loop that ended has failed: that ends the process
        finally:
            await cancel(stopping, *running)

    # --- hearing ---

    async def _follow(self) -> None:
        async for heard in self._ctx.bus.follow("EVENTS"):
            self.on_event(heard)

    def on_event(self, heard: Heard) -> None:
        """The next fact of the history."""
        if heard.sequence <= self._applied:
            raise Busy(
                "the history on the bus was made anew", remedy="Start the scheduler again; it reads the new one."
            )
        event = heard.event()
        if event is not None:
            self._state = apply(self._state, event, heard.time, heard.envelope.id)
            if heard.sequence > self._live_from:
                self._reporting.on_event(self._state, event, heard.time)
        self._applied = heard.sequence
        self._moved.set()
        if not isinstance(event, _QUIET):
            self._changed.set()

    async def _catch_up(self) -> None:
        await self._came_back(self._live_from)
        self._brain = Brain(self._state)
        self._since = self._self_heard = self._ctx.clock.now()
        self._ctx.log.info(
            "caught up", sequence=self._applied, jobs=len(self._state.jobs), alive=len(self._state.alive)
        )

    async def _came_back(self, sequence: int) -> None:
        """Wait until the state holds the event of this sequence."""
        while self._applied < sequence:
            self._moved.clear()
            await self._moved.wait()

    async def _watch(self) -> None:
        own = f"{self._ctx.node}.{self._ctx.name}"
        async for key, heartbeat in self._ctx.bus.bucket("nodes").watch(Heartbeat):
            now = self._ctx.clock.now()
            known = self._beats.get(key)
            if heartbeat is None:
                if known is not None:
                    self._beats[key] = Beat(known.heartbeat, known.heard_at, retired=True)
            elif (
                key == f"{heartbeat.node}.{heartbeat.service}"
                and is_token(heartbeat.node)
                and is_token(heartbeat.service)
            ):
                self._beats[key] = hear(known, heartbeat, now)
            if key == own:
                if now - self._self_heard > DEAF_S:
                    self._since = now
                self._self_heard = now
            if known is None or heartbeat is None or known.retired:
                self._changed.set()

    def _heard_since(self, now: float) -> float:
        return now if now - self._self_heard > DEAF_S else self._since

    async def _take(self) -> None:
        submissions = self._ctx.bus.work(
            "JOBS", "scheduler", "llmos.job.submit.*.*", bytes, slots=lambda: 64, ack_wait=ADMISSION_S
        )
        async for delivery in submissions:
            await self.on_job_submitted(delivery)

    async def on_job_submitted(self, delivery: Delivery[bytes]) -> None:
        """Somebody published a job: it is admitted or rejected, once, before the queue forgets it."""
        tenant, job = delivery.subject.split(".")[3:5]
        if not (is_token(tenant) and is_token(job)):
            await delivery.dead("tenant and job id must be 1 to 128 letters, digits, '_' or '-'")
            return
        envelope = delivery.envelope
        with self._ctx.telemetry.span(
            "job.admit", parent=envelope.traceparent, kind="consumer", job=job, tenant=tenant
        ):
            fact = admit(
                self._state,
                tenant=tenant,
                job=job,
                data=delivery.body,
                now=self._ctx.clock.now(),
                cause=envelope.id,
                traceparent=traceparent(),
            )
            if fact is not None:
                # The next submission is judged by a state that holds this one.
                try:
                    await self._came_back(await self._emit(fact))
                except Rejected as error:
                    await delivery.dead(str(error))
                    return
        await delivery.ack()

    # --- deciding ---

    async def _decide(self) -> None:
        brain = self._brain
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            await self._came_back(self._said)
            now = self._ctx.clock.now()
            since = self._heard_since(now)
            effects: Sequence[Effect] = list(notice(self._state, self._beats, now, since=since))
            if not effects:  # who is there counts before what to do with them
                effects = decide(self._state, brain, now, since=since)
            if not await self._perform(effects):
                brain.ask_again()

    async def _perform(self, effects: Sequence[Effect]) -> bool:
        """Whether all of it was done."""
        for effect in effects:
            try:
                if isinstance(effect, Emit):
                    self._said = max(self._said, await self._emit(effect))
                else:
                    await self._command(effect)
            except Rejected as error:  # it never will be: the others must not wait for it
                self._ctx.log.error("the bus refuses", effect=type(effect).__name__, error=str(error))
            except LlmosError as error:
                # What follows may rest on it: the next decision asks for all of it again.
                self._ctx.log.error("not done", effect=type(effect).__name__, error=str(error))
                await asyncio.sleep(RETRY_S)
                return False
        return True

    async def _emit(self, fact: Emit) -> int:
        """Say a fact until the bus confirms it: an unconfirmed one may be stored, and the state has to know."""
        while True:
            try:
                return await self._ctx.bus.emit(fact.event, id=fact.id, cause=fact.cause, traceparent=fact.traceparent)
            except Busy as error:
                self._ctx.log.warning("the bus does not confirm; trying again", id=fact.id, error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _command(self, command: Command) -> None:
        match command:
            case WithdrawWork():
                await self._ctx.bus.purge("WORK", subjects.work(command.kind, command.node, command.task))
            case DispatchWork():
                task = command.assignment
                with self._ctx.telemetry.span(
                    "task.assign", parent=command.traceparent, kind="producer", task=task.task, node=command.node
                ):
                    await self._publish(subjects.work(task.kind, command.node, task.task), task, command.key)
            case StopTask():
                stop = TaskStopRequested(command.task, command.lease, command.reason, command.checkpoint)
                await self._publish(subjects.control_stop(command.task), stop, "", command.traceparent)
            case AssignReplica():
                replica = command.assignment
                subject = subjects.deploy(replica.node, replica.deployment)
                await self._publish(subject, replica, command.key, command.traceparent)

    async def _publish(
        self, subject: str, body: TaskAssigned | TaskStopRequested | ReplicaAssigned, id: str, trace: str = ""
    ) -> None:
        await self._ctx.bus.publish(subject, body, type=_TYPES[type(body)], id=id, traceparent=trace)

    # --- answering ---

    async def _answer(self) -> None:
        handlers: dict[str, Callable[[Any, Envelope], Awaitable[Struct]]] = {
            "jobs": self.on_jobs_requested,
            "job": self.on_job_requested,
            "explain": self.on_explain_requested,
            "cancel": self.on_cancel_requested,
        }
        operators = Operators(lambda: self._state, lambda: self._brain, self._said_and_heard, self._ctx.clock)
        await self._ctx.bus.serve("scheduler", handlers | operators.handlers())

    async def _said_and_heard(self, fact: Emit) -> None:
        await self._came_back(await self._emit(fact))

    def _find(self, job: str) -> Job | TurnedAway:
        found = self._state.jobs.get(job) or self._state.turned_away.get(job)
        if found is None:
            raise NotFound(f"there is no job {job!r}", remedy="`llmos get jobs` lists the jobs.", param="job")
        return found

    async def on_jobs_requested(self, request: JobsRequested, _envelope: Envelope) -> Struct:
        return JobList(view_jobs(self._state, request))

    async def on_job_requested(self, request: JobRequested, _envelope: Envelope) -> JobView:
        return view_job(self._find(request.job))

    async def on_explain_requested(self, request: ExplainRequested, _envelope: Envelope) -> Explanation:
        return explain(self._state, self._brain, self._find(request.job), self._ctx.clock.now())

    async def on_cancel_requested(self, request: CancelRequested, envelope: Envelope) -> JobView:
        """The job is cancelled as soon as what runs has stopped; one that has ended stays as it ended."""
        job = self._find(request.job)
        if isinstance(job, Job) and not job.ended and job.cancelling_at is None:
            event = JobCancelling(job.id, job.tenant, request.requested_by, request.reason)
            await self._came_back(await self._emit(Emit(event, f"{job.id}.cancelling", envelope.id, job.traceparent)))
        return view_job(self._find(request.job))
