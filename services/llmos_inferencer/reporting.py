"""The facts that an inferencer states, and how long it insists on stating them."""

from typing import Any

from llmos.contracts.deployments import ReplicaAssigned, ReplicaFailed, ReplicaReady, ReplicaUnloaded
from llmos.contracts.envelope import Envelope
from llmos.contracts.inference import InferenceMetered
from llmos.contracts.models import ModelVersion
from llmos.errors import Busy, Problem
from llmos.ids import new_id
from llmos.service import Context

QUIET_FAILURES = 3  # in a row, 3.5 s with the waits between: a service that restarts is not worth a fact


class Reporter:
    """States facts in the history, each with the assignment that led to it as its cause."""

    def __init__(self, ctx: Context[Any]) -> None:
        self._ctx = ctx
        self._causes: dict[str, Envelope] = {}

    def heard(self, deployment: str, envelope: Envelope) -> None:
        """What is said of a deployment from now on has this cause."""
        self._causes[deployment] = envelope

    def traceparent(self, deployment: str) -> str:
        """The trace of the newest assignment."""
        return self._causes[deployment].traceparent

    async def ready(self, assigned: ReplicaAssigned, version: ModelVersion, seconds: float, memory: int) -> None:
        """A replica answers requests."""
        name, generation = assigned.deployment, assigned.generation
        self._ctx.log.info("replica ready", deployment=name, version=version.version, seconds=round(seconds, 3))
        await self._say(
            ReplicaReady(
                deployment=name,
                tenant=assigned.tenant,
                node=self._ctx.node,
                generation=generation,
                model=version.model,
                version=version.version,
                job=assigned.job,
                load_s=round(seconds, 3),
                memory=memory,
            )
        )

    async def failed(self, assigned: ReplicaAssigned, problem: Problem, *, retryable: bool, failures: int) -> None:
        """A replica could not be brought up; the first few failures that may pass are only logged."""
        name = assigned.deployment
        self._ctx.log.error("replica failed", deployment=name, problem=problem.message, failures=failures)
        if retryable and failures <= QUIET_FAILURES:
            return
        await self._say(
            ReplicaFailed(
                deployment=name,
                tenant=assigned.tenant,
                node=self._ctx.node,
                generation=assigned.generation,
                problem=problem,
                job=assigned.job,
                retryable=retryable,
            )
        )

    async def unloaded(self, assigned: ReplicaAssigned, version: int, reason: str) -> None:
        """A replica, or one version of it, went away."""
        name = assigned.deployment
        self._ctx.log.info("replica unloaded", deployment=name, version=version, reason=reason)
        await self._say(
            ReplicaUnloaded(
                deployment=name,
                tenant=assigned.tenant,
                node=self._ctx.node,
                generation=assigned.generation,
                version=version,
                reason=reason,
            )
        )

    async def metered(self, metered: InferenceMetered | None) -> None:
        """What was served in a period, if anything."""
        if metered is not None:
            await self._say(metered)

    async def _say(self, fact: ReplicaReady | ReplicaFailed | ReplicaUnloaded | InferenceMetered) -> None:
        """Insist, however long the bus is away, until the service stops; one id, so it is stored once."""
        id, cause = new_id(), self._causes[fact.deployment].id
        while True:
            try:
                await self._ctx.bus.emit(fact, id=id, cause=cause)
                return
            except Busy as error:
                self._ctx.log.warning("a fact waits for the bus", fact=type(fact).__name__, error=str(error))
                if self._ctx.stopping.is_set():
                    return
