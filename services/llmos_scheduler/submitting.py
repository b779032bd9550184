"""Taking submissions: judged one after another, admitted or rejected by the batch, before the queue forgets them."""

import asyncio
from contextlib import aclosing, suppress
from typing import Any

from llmos.bus import Delivery
from llmos.cancel import cancel
from llmos.contracts.jobs import JobAdmitted
from llmos.errors import LlmosError, Rejected
from llmos.ids import is_token
from llmos.service import Context
from llmos.telemetry import traceparent
from llmos_scheduler.admission import admit
from llmos_scheduler.effects import Emit
from llmos_scheduler.following import Following
from llmos_scheduler.performing import Performing

ADMISSION_S = 4.0  # a submission in the hands of a scheduler that died comes again after so long
MOST = 256  # submissions at hand


class Submitting:
    """The leader's work on JOBS."""

    def __init__(self, ctx: Context[Any], following: Following, performing: Performing) -> None:
        self._ctx = ctx
        self._following = following
        self._performing = performing
        self._waiting: list[Delivery[bytes]] = []
        self._arrived = asyncio.Event()
        self._batch: list[tuple[Delivery[bytes], Emit]] = []  # judged, and not yet said
        self._claimed: set[tuple[str, str]] = set()  # by the batch

    async def run(self) -> None:
        """Take submissions until cancelled; what is not decided then is given back."""
        taking = asyncio.create_task(self._take())
        handling: list[Delivery[bytes]] = []
        try:
            while True:
                arrived = asyncio.create_task(self._arrived.wait())
                await asyncio.wait({taking, arrived}, return_when=asyncio.FIRST_COMPLETED)
                await cancel(arrived)
                if taking.done():
                    taking.result()
                self._arrived.clear()
                handling, self._waiting = self._waiting, []
                for delivery in handling:
                    await self.on_job_submitted(delivery)
                await self._flush()
        finally:
            await cancel(taking)
            for delivery in [*handling, *self._waiting]:
                with suppress(LlmosError):  # the first word counts: those that were acked are done
                    await delivery.nak()

    async def _take(self) -> None:
        submissions = self._ctx.bus.work(
            "JOBS",
            "scheduler",
            "llmos.job.submit.*.*",
            bytes,
            slots=lambda: MOST - len(self._waiting),
            ack_wait=ADMISSION_S,
        )
        async with aclosing(submissions):
            async for delivery in submissions:
                self._waiting.append(delivery)
                self._arrived.set()

    async def on_job_submitted(self, delivery: Delivery[bytes]) -> None:
        """Somebody published a job: it is admitted or rejected, once."""
        tenant, job = delivery.subject.split(".")[3:5]
        if not (is_token(tenant) and is_token(job)):
            await delivery.dead("tenant and job id must be 1 to 128 letters, digits, '_' or '-'")
            return
        fact = self._judge(delivery, tenant, job)
        if fact is not None and not self._claimed.isdisjoint(
            _claims(fact)
        ):  # a state with the batch may judge otherwise
            await self._flush()
            fact = self._judge(delivery, tenant, job)
        if fact is None:
            await delivery.ack()
            return
        self._batch.append((delivery, fact))
        self._claimed |= _claims(fact)

    def _judge(self, delivery: Delivery[bytes], tenant: str, job: str) -> Emit | None:
        envelope = delivery.envelope
        with self._ctx.telemetry.span(
            "job.admit", parent=envelope.traceparent, kind="consumer", job=job, tenant=tenant
        ):
            return admit(
                self._following.state,
                tenant=tenant,
                job=job,
                data=delivery.body,
                now=self._ctx.clock.now(),
                cause=envelope.id,
                traceparent=traceparent(),
            )

    async def _flush(self) -> None:
        """Say what was judged; the submissions after it are judged by a state that holds it."""
        batch, self._batch, self._claimed = self._batch, [], set()
        if not batch:
            return
        outcomes = await self._performing.say([fact for _, fact in batch])
        await self._following.came_back(max((at for at in outcomes if isinstance(at, int)), default=0))
        for (delivery, _), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Rejected):
                await delivery.dead(str(outcome))
            else:
                await delivery.ack()


def _claims(fact: Emit) -> set[tuple[str, str]]:
    """What later submissions may be judged by: the job, and the deployment that it will make."""
    event = fact.event
    if not isinstance(event, JobAdmitted):
        return {("job", getattr(event, "job", ""))}
    deploy = event.spec.deploy
    return {("job", event.job)} | ({("deployment", deploy.name)} if deploy is not None else set())
