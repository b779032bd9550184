"""What the bus keeps, read for a client: everything said of one job, and which deployments there are."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import cast

import msgspec
from msgspec import Struct, field

from llmos.bus import Bus, Heard
from llmos.contracts import jobs
from llmos.contracts.deployments import ReplicaAssigned, ReplicaFailed, ReplicaReady, ReplicaUnloaded
from llmos.contracts.subjects import token
from llmos.contracts.tasks import KINDS
from llmos.errors import Busy
from llmos.ids import is_token

READ_WITHIN_S = 10.0

# The facts after which nothing more is said of a job.
ENDS = (
    jobs.JobRejected,
    jobs.JobCancelled,
    jobs.JobFailed,
    jobs.JobRefused,
    jobs.JobSucceeded,
    jobs.JobDeployed,
)


def job_filters(job: str, tenant: str = "*") -> list[str]:
    """Filter subjects of EVENTS that hold all facts of a job; those of models and replicas hold other jobs' too."""
    return [
        f"llmos.evt.job.*.{tenant}.{token(job)}",
        *(f"llmos.evt.task.*.{tenant}.{job}-{kind}" for kind in KINDS),
        f"llmos.evt.model.*.{tenant}.*",
        f"llmos.evt.deployment.*.{tenant}.*",
        f"llmos.evt.replica.*.{tenant}.*",
    ]


def job_of(event: Struct) -> str:
    """The id of the job that an event is about; empty for an event about something else."""
    return str(getattr(event, "job", "") or getattr(getattr(event, "version", None), "job", ""))


def tenant_in(heard: Heard) -> str:
    """The tenant that an event's subject names."""
    return heard.subject.split(".")[4]


async def follow_job(
    bus: Bus, job: str, start: int = 1, *, tenant: str = "*"
) -> AsyncGenerator[tuple[Heard, Struct], None]:
    """Every fact of a job from stream sequence `start` on, with its place in EVENTS, until the job has ended.

    A job that nobody has submitted is waited for. Ids are unique among all tenants: whoever used one first owns it, and
    without `tenant` the first fact says who that is. The rejection that tells another tenant so is none of the job's.
    """
    async with aclosing(_closable(bus.follow("EVENTS", job_filters(job, tenant), start=start))) as history:
        async for heard in history:
            event = heard.event()
            if event is None or job_of(event) != job:
                continue
            tenant = tenant_in(heard) if tenant == "*" else tenant
            if tenant_in(heard) != tenant:
                continue
            yield heard, event
            if isinstance(event, ENDS):
                return


async def read_job(bus: Bus, job: str) -> list[tuple[Heard, Struct]]:
    """Every fact of a job until this moment; empty for a job of which nothing was said."""
    if not is_token(job):
        return []
    first = await read(bus, "EVENTS", job_filters(job)[:1])
    if not first:
        return []
    kept = await read(bus, "EVENTS", job_filters(job), start=first[0].sequence)
    facts = [(heard, event) for heard in kept if (event := heard.event()) is not None]
    owner = tenant_in(first[0])
    return [(heard, event) for heard, event in facts if job_of(event) == job and tenant_in(heard) == owner]


async def read(
    bus: Bus, stream: str, filters: Sequence[str], *, start: int = 1, last_per_subject: bool = False
) -> list[Heard]:
    """What a stream holds at this moment of `filters`. Raises `Busy` when the bus is silent."""
    newest = max([await bus.last_sequence(stream, subject) for subject in filters])
    found: list[Heard] = []
    if newest < start:
        return found
    try:
        async with (
            aclosing(_closable(bus.follow(stream, filters, start=start, last_per_subject=last_per_subject))) as kept,
            asyncio.timeout(READ_WITHIN_S),
        ):
            async for heard in kept:
                found.append(heard)
                if heard.sequence >= newest or heard.pending == 0:
                    break
    except TimeoutError:
        raise Busy(f"the stream {stream} did not answer", remedy="Check the bus.") from None
    return found


class DeploymentView(Struct, frozen=True, omit_defaults=True):
    """A deployment: the version it should serve, and how far each node is.

    `replicas` maps a node to `assigned`, `ready`, `failed` or `unloaded`. `canary` is a version (0: none) that answers
    `weight` percent of the requests.
    """

    deployment: str
    tenant: str
    generation: int
    model: str
    version: int
    job: str = ""
    replicas: dict[str, str] = field(default_factory=dict)
    canary: int = 0
    weight: int = 0


Fact = ReplicaReady | ReplicaFailed | ReplicaUnloaded
_STATES: dict[type[Struct], str] = {ReplicaReady: "ready", ReplicaFailed: "failed", ReplicaUnloaded: "unloaded"}


async def read_deployments(bus: Bus, name: str = "*") -> list[DeploymentView]:
    """The deployments that should be served now (all, or one), by name."""
    desired = await read(bus, "DEPLOY", [f"llmos.deploy.*.{name}"], last_per_subject=True)
    if not desired:
        return []
    facts = await read(bus, "EVENTS", [f"llmos.evt.replica.*.*.{name}"])
    return fold_deployments(
        (msgspec.json.decode(heard.data, type=ReplicaAssigned) for heard in desired),
        (cast(Fact, event) for heard in facts if isinstance(event := heard.event(), tuple(_STATES))),
    )


def fold_deployments(desired: Iterable[ReplicaAssigned], facts: Iterable[Fact]) -> list[DeploymentView]:
    """Join what nodes should serve with what they said, oldest first. Facts of older generations don't count.

    Nor does the unloading of the version that a newer one replaced: a node says it after the newer one is ready.
    """
    present = [wish for wish in desired if wish.desired == "present" and wish.version is not None]
    wished = {(wish.deployment, wish.node): wish.version.version for wish in present if wish.version is not None}
    said = {
        (fact.deployment, fact.node, fact.generation): _STATES[type(fact)]
        for fact in facts
        if not (isinstance(fact, ReplicaUnloaded) and fact.version != wished.get((fact.deployment, fact.node)))
    }
    views: dict[str, DeploymentView] = {}
    for wish in sorted(present, key=lambda wish: (wish.deployment, -wish.generation, wish.node)):
        assert wish.version is not None
        view = views.setdefault(
            wish.deployment,
            DeploymentView(
                wish.deployment,
                wish.tenant,
                wish.generation,
                wish.version.model,
                wish.version.version,
                wish.job,
                canary=wish.canary.version if wish.canary else 0,
                weight=wish.weight,
            ),
        )
        view.replicas[wish.node] = said.get((wish.deployment, wish.node, wish.generation), "assigned")
    return list(views.values())


def _closable(items: AsyncIterator[Heard]) -> AsyncGenerator[Heard, None]:
    return cast(AsyncGenerator[Heard, None], items)
