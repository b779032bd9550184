"""The SDK: publish jobs, follow them, ask deployed models. Async; `llmos.sync` is its blocking face.

async with await Client.connect() as llmos:
    job = await llmos.submit({"name": "intents", "model": {"base": "hf:…"}, "data": {"train": "file:///…"}})
    async for event in llmos.events(job):
        print(event)
    async for said in llmos.stream("chat", Input(messages=[Message("user", "Hello")])):
        print(said)
"""

import asyncio
import os
import platform
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from llmos.artifacts import ArtifactStore, open_store, put_tree
from llmos.bus import Bus
from llmos.clock import Clock, SystemClock
from llmos.contracts import subjects
from llmos.contracts.jobs import (
    ENDED,
    CancelRequested,
    ExplainRequested,
    Explanation,
    JobAdmitted,
    JobList,
    JobRejected,
    JobRequested,
    JobSpec,
    JobsRequested,
    JobView,
)
from llmos.deploying import Deploying
from llmos.errors import Busy, LlmosError, NotFound, Rejected, Unreachable
from llmos.history import ENDS, follow_job
from llmos.ids import is_token, new_id
from llmos.inferring import Inferring
from llmos.operating import Operating, one
from llmos.telemetry import Telemetry

CONNECT_WITHIN_S = 5.0
SETTLED_WITHIN_S = 5.0


class Client(Operating, Deploying, Inferring):
    """A connection to a stack. Every method may be used from many tasks at once.

    All raise `Busy` when the stack doesn't answer in time, `NotFound` for what doesn't exist, `Rejected` for a request
    that is wrong.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        tenant: str = "default",
        artifacts: str = "",
        telemetry: Telemetry | None = None,
        clock: Clock | None = None,
    ) -> None:
        Operating.__init__(self, bus)
        Inferring.__init__(self, bus, tenant, telemetry or Telemetry("client"), clock or SystemClock())
        self.artifacts = artifacts
        self._opened: ArtifactStore | None = None

    @classmethod
    async def connect(
        cls,
        nats_url: str | None = None,
        tenant: str = "default",
        *,
        data_dir: Path | None = None,
        artifacts: str | None = None,
        within: float = CONNECT_WITHIN_S,
    ) -> "Client":
        """Connect to `nats_url`, else the stack that runs in `data_dir`, else `LLMOS_NATS_URL`, else the stack that
        runs in `LLMOS_DATA_DIR` or `.llmos`.

        `artifacts` is the store's URL (else `LLMOS_ARTIFACTS`, else that stack's); without one only `upload` fails.
        Raises `Unreachable` when there is no stack or it doesn't answer within `within` seconds.
        """
        url, store_url = _find(nats_url, data_dir, artifacts)
        telemetry = Telemetry("client", platform.node())
        try:
            bus = await Bus.connect(
                url,
                source=f"client/{platform.node() or 'somewhere'}",
                telemetry=telemetry,
                credentials=os.environ.get("LLMOS_NATS_CREDENTIALS", ""),
                within=within,
            )
        except Busy as error:
            telemetry.close()
            raise Unreachable(error.problem.message, remedy=error.problem.remedy) from error
        return cls(bus, tenant=tenant, artifacts=store_url, telemetry=telemetry)

    async def close(self) -> None:
        """Disconnect."""
        await self.bus.close()
        self._telemetry.close()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- jobs ---

    async def submit(self, spec: Mapping[str, Any] | JobSpec, job_id: str | None = None) -> str:
        """Publish a job; its id. It is persisted when this returns, and publishing one id again changes nothing.

        Whether the spec is right is said by `JobAdmitted` or `JobRejected` (see `verdict`, `events`, `wait`).
        """
        job = job_id or new_id("job")
        tenant = self.tenant_of(spec)
        body = {"tenant": tenant, **spec} if isinstance(spec, Mapping) else spec
        subject = subjects.job_submit(tenant, job)
        with self._telemetry.span("submit job", kind="producer", job=job):
            await self.bus.publish(subject, body, type="llmos.job.submitted.v1", id=f"{tenant}.{job}")
        return job

    def tenant_of(self, spec: Mapping[str, Any] | JobSpec) -> str:
        """For whom a spec is submitted.

        A tenant that can't be part of a subject is one fault among others: the scheduler then lists them all.
        """
        named = spec.get("tenant") if isinstance(spec, Mapping) else spec.tenant
        return named if isinstance(named, str) and is_token(named) else self.tenant

    async def verdict(self, job: str, tenant: str, within: float) -> JobAdmitted | JobRejected | None:
        """What the scheduler said of a submission; `None` if it has said nothing within so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within), aclosing(follow_job(self.bus, job, tenant=tenant)) as facts:
                async for _, event in facts:
                    if isinstance(event, JobAdmitted | JobRejected):
                        return event
        return None

    async def job(self, job: str) -> JobView:
        """A job as it stands, with its tasks."""
        return cast(JobView, await self._ask("job", JobRequested(one(job, "job"))))

    async def jobs(self, *, tenant: str | None = None, state: str | None = None, limit: int = 100) -> list[JobView]:
        """Jobs, newest first; of every tenant unless one is named."""
        answer: JobList = await self._ask("jobs", JobsRequested(tenant, state, limit))
        return answer.jobs

    async def explain(self, job: str) -> Explanation:
        """Why a job waits, or what it does."""
        return cast(Explanation, await self._ask("explain", ExplainRequested(one(job, "job"))))

    async def cancel(self, job: str, reason: str = "", *, requested_by: str = "") -> JobView:
        """Ask that a job ends; it is `cancelled` once nothing of it runs. Repeating it changes nothing."""
        request = CancelRequested(one(job, "job"), requested_by, reason)
        return cast(JobView, await self._ask("cancel", request))

    async def events(self, job: str, tenant: str = "*") -> AsyncGenerator[Struct, None]:
        """Every fact of a job, from its first one, as typed events; ends after the fact that ends the job.

        `tenant` matters only if two tenants used one id: it then says whose job is meant.
        """
        async with aclosing(follow_job(self.bus, job, tenant=tenant)) as facts:
            async for _, event in facts:
                yield event

    async def wait(self, job: str, timeout: float | None = None) -> JobView:
        """Wait until a job has ended; how it ended. Raises `Busy` after `timeout` seconds; the job goes on."""
        try:
            async with asyncio.timeout(timeout):
                with suppress(LlmosError):  # not admitted yet, or nobody to ask: its facts will tell
                    view = await self.job(job)
                    if view.state in ENDED:
                        return view
                async with aclosing(self.events(job)) as events:
                    async for event in events:
                        if isinstance(event, ENDS):
                            break
        except TimeoutError:
            raise Busy(f"{job} has not ended within {timeout:g} s", remedy="Wait longer; the job goes on.") from None
        return await self.ended(job)

    async def ended(self, job: str) -> JobView:
        """A job whose last fact was heard: the scheduler may need a moment to show it."""
        deadline = self._clock.monotonic() + SETTLED_WITHIN_S
        while True:
            try:
                view = await self.job(job)
            except NotFound:
                if self._clock.monotonic() > deadline:
                    raise
            else:
                if view.state in ENDED or self._clock.monotonic() > deadline:
                    return view
            await asyncio.sleep(0.05)

    # --- models, deployments ---

    # --- artifacts ---

    async def _open_store(self) -> ArtifactStore:
        """The stack's artifact store. Raises `Rejected` when none is known."""
        if not self.artifacts:
            raise Rejected("no artifact store is known", remedy="Set LLMOS_ARTIFACTS to the stack's store.")
        if self._opened is None:
            self._opened = await asyncio.to_thread(open_store, self.artifacts)
        return self._opened

    async def upload(self, path: str | Path) -> str:
        """Store a file, or a directory as a tree; `artifact:sha256:…`, to be used in a spec."""
        store = await self._open_store()
        path = Path(path)
        if path.is_dir():
            return f"artifact:{await put_tree(store, path, kind='upload', meta={'name': path.name})}"
        if not path.is_file():
            raise NotFound(f"there is no file {path}", remedy="Correct the path.")
        return f"artifact:{await store.put_file(path)}"


def _find(nats_url: str | None, data_dir: Path | None, artifacts: str | None) -> tuple[str, str]:
    """The bus and the store to use: what is given, what the environment says, what runs here."""
    from llmos import local

    url = nats_url or ("" if data_dir else os.environ.get("LLMOS_NATS_URL", ""))
    store = artifacts or os.environ.get("LLMOS_ARTIFACTS", "")
    stack = local.find_stack(data_dir)
    if stack is not None and url in ("", stack.nats_url):
        return stack.nats_url, store or stack.artifacts
    if not url:
        raise Unreachable(
            f"no stack runs in {data_dir or local.default_data_dir()}",
            remedy="Start one with `llmos up`, or set LLMOS_NATS_URL to the bus of another.",
        )
    return url, store
