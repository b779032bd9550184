"""Doing what was decided: facts first, all of them at one wait, then the commands that rest on what is known."""

import asyncio
from collections.abc import Sequence
from typing import Any

from llmos.bus import Conflict, Message
from llmos.contracts import subjects
from llmos.contracts.deployments import ReplicaAssigned
from llmos.contracts.tasks import TaskAssigned, TaskStopRequested
from llmos.errors import LlmosError, Rejected
from llmos.service import Context
from llmos_scheduler.effects import AssignReplica, Command, DispatchWork, Emit, StopTask, WithdrawWork
from llmos_scheduler.leading import Leadership

RETRY_S = 1.0
_TYPES = {row.type: row.ce_type for row in subjects.COMMANDS}


class Performing:
    """The hands of the leader."""

    def __init__(self, ctx: Context[Any], leadership: Leadership) -> None:
        self._ctx = ctx
        self._leadership = leadership

    async def say(self, facts: Sequence[Emit]) -> list[int | Rejected]:
        """Store facts until the bus confirms each: an unconfirmed one may be stored, and the state has to know.

        Their sequences; `Rejected` for one that never can be. They are sent in order, and none may rest on another:
        one that had to be repeated is stored later. A deposed leader does not come back from here.
        """
        outcomes: dict[int, int | Rejected] = {}
        left = dict(enumerate(facts))
        while left:
            messages: dict[int, Message] = {}
            for at, fact in left.items():
                try:
                    messages[at] = self._ctx.bus.fact(
                        fact.event,
                        id=fact.id,
                        cause=fact.cause,
                        traceparent=fact.traceparent,
                        fence=self._leadership.fence,
                    )
                except Rejected as error:
                    outcomes[at] = error
            stored = await self._ctx.bus.store_many(list(messages.values()))
            for at, result in zip(messages, stored, strict=True):
                if isinstance(result, Conflict):
                    await self._leadership.step_down()
                if isinstance(result, int | Rejected):
                    outcomes[at] = result
            left = {at: fact for at, fact in left.items() if at not in outcomes}
            if left:
                self._ctx.log.warning("the bus does not confirm; trying again", facts=len(left))
                await asyncio.sleep(RETRY_S)
        for at, fact in enumerate(facts):
            result = outcomes[at]
            if isinstance(result, Rejected):  # it never will be: the others must not wait for it
                self._ctx.log.error("the bus refuses", fact=fact.id, error=str(result))
        return [outcomes[at] for at in range(len(facts))]

    async def do(self, commands: Sequence[Command]) -> bool:
        """Withdrawals, then everything else at once; whether all of it was done.

        What was not is wanted still, and is asked for again. Commands can't be fenced, so the leadership is confirmed
        before; one that is late all the same carries a lease that its receiver compares, or repeats what holds.
        """
        try:
            await self._leadership.confirm()
            withdrawals = [
                subjects.work(command.kind, command.node, command.task)
                for command in commands
                if isinstance(command, WithdrawWork)
            ]
            await asyncio.gather(*(self._ctx.bus.purge("WORK", subject) for subject in withdrawals))
        except LlmosError as error:
            self._ctx.log.error("not done", commands=len(commands), error=str(error))
            return False
        messages = []
        for command in commands:
            try:
                messages += self._messages(command)
            except Rejected as error:
                self._ctx.log.error("the bus refuses", command=type(command).__name__, error=str(error))
        done = True
        for message, result in zip(messages, await self._ctx.bus.store_many(messages), strict=True):
            if isinstance(result, LlmosError):
                self._ctx.log.error("not done", subject=message.subject, error=str(result))
                done = done and isinstance(result, Rejected)
        return done

    def _messages(self, command: Command) -> list[Message]:
        match command:
            case DispatchWork():
                task = command.assignment
                with self._ctx.telemetry.span(
                    "task.assign", parent=command.traceparent, kind="producer", task=task.task, node=command.node
                ):
                    return [self._message(subjects.work(task.kind, command.node, task.task), task, command.key)]
            case StopTask():
                stop = TaskStopRequested(command.task, command.lease, command.reason, command.checkpoint)
                return [self._message(subjects.control_stop(command.task), stop, "", command.traceparent)]
            case AssignReplica():
                replica = command.assignment
                subject = subjects.deploy(replica.node, replica.deployment)
                return [self._message(subject, replica, command.key, command.traceparent)]
            case WithdrawWork():
                return []

    def _message(
        self, subject: str, body: TaskAssigned | TaskStopRequested | ReplicaAssigned, id: str, trace: str = ""
    ) -> Message:
        return self._ctx.bus.message(subject, body, type=_TYPES[type(body)], id=id, traceparent=trace)
