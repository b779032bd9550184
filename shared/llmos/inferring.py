"""Asking deployed models: one answer, or a stream of what is generated while it is generated."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress

import msgspec
from msgspec.structs import replace

from llmos.artifacts import ArtifactStore
from llmos.bus import Bus
from llmos.cancel import cancel
from llmos.clock import Clock
from llmos.contracts import subjects
from llmos.contracts.inference import (
    Class,
    ClientPresent,
    InferenceAnswered,
    InferenceCancelRequested,
    InferenceDelta,
    InferenceParams,
    InferenceRequested,
    Input,
)
from llmos.errors import Busy, LlmosError, NotFound, Rejected, from_problem
from llmos.history import read_deployments
from llmos.ids import new_id
from llmos.operating import one
from llmos.telemetry import Telemetry

INFER_WITHIN_S = 10.0
STREAM_WITHIN_S = 300.0
KEEP_S = 6.0  # a stream is given up when its client was silent for three times so long
LARGE = 256 << 10  # bytes of an image or a recording that go to the artifact store instead of into the message
REQUESTED, ANSWERED, DELTA = "llmos.inference.requested.v1", "llmos.inference.answered.v1", "llmos.inference.delta.v1"


class Restarted(LlmosError):
    """A replica died in the middle of a stream, and what another generated differs from what was already passed on: ask
    again. With temperature 0, or a seed, it does not differ.
    """

    code = "restarted"


class Inferring(ABC):
    """The part of `Client` that asks models; it raises as the client does."""

    def __init__(self, bus: Bus, tenant: str, telemetry: Telemetry, clock: Clock) -> None:
        self.bus = bus
        self.tenant = tenant
        self._telemetry = telemetry
        self._clock = clock
        self._deployed: set[str] = set()
        self._streaming = 0
        self._presence: asyncio.Task[None] | None = None

    @abstractmethod
    async def _open_store(self) -> ArtifactStore:
        """The artifact store. Raises `Rejected` when none is known."""

    async def infer(
        self,
        deployment: str,
        inputs: Sequence[str | Input],
        *,
        top: int = 0,
        params: InferenceParams | None = None,
        priority: Class = "interactive",
        timeout: float = INFER_WITHIN_S,
    ) -> InferenceAnswered:
        """Ask a deployed model; one output per input (`params.n` of them for generated text), in order.

        `top` limits the labels listed (0: all). Large images and recordings go through the artifact store. Raises
        `NotFound` when nothing is deployed under that name, `Busy` when no replica answers within `timeout` seconds.
        """
        request = await self._request(deployment, inputs, top, params, timeout)
        id = new_id("r")
        with self._telemetry.span("infer", kind="client", model=deployment):
            try:
                answer = await self.bus.ask(
                    subjects.infer(deployment, id, priority),
                    request,
                    type=REQUESTED,
                    id=id,
                    answer=InferenceAnswered,
                    timeout=timeout,
                    ttl=timeout,
                )
            except TimeoutError:
                raise await self._silence(deployment, timeout) from None
            except asyncio.CancelledError:
                await self._recall(id)
                raise
        if answer.problem is not None:
            raise from_problem(answer.problem)
        return answer

    async def stream(
        self,
        deployment: str,
        input: str | Input,
        *,
        params: InferenceParams | None = None,
        priority: Class = "interactive",
        timeout: float = STREAM_WITHIN_S,
    ) -> AsyncGenerator[InferenceDelta | InferenceAnswered, None]:
        """Ask a model that generates; what it says while it says it, and last the whole answer.

        The texts of an output's deltas add up to its text in the answer, whatever happens to replicas or connections
        meanwhile. Leaving the iteration cancels the request. Raises as `infer` does, and `Restarted`.
        """
        given = replace(params or InferenceParams(), stream=True)
        request = replace(await self._request(deployment, [input], 0, given, timeout), keep=KEEP_S)
        id = new_id("r")
        subject = subjects.infer(deployment, id, priority)
        said = self.bus.ask_stream(subject, request, type=REQUESTED, id=id, timeout=timeout, ttl=timeout)
        joined, answered = Joined(), False
        try:
            async with self._present(), aclosing(said) as replies:
                async for kind, data in replies:
                    if kind == DELTA:
                        delta = joined.add(msgspec.json.decode(data, type=InferenceDelta))
                        if delta is not None:
                            yield delta
                    elif kind == ANSWERED:
                        answered = True
                        answer = msgspec.json.decode(data, type=InferenceAnswered)
                        if answer.problem is not None:
                            raise from_problem(answer.problem)
                        for rest in joined.finish(answer):
                            yield rest
                        yield answer
                        return
        except TimeoutError:
            raise await self._silence(deployment, timeout) from None
        finally:
            if not answered:
                await self._recall(id)

    # --- inside ---

    async def _request(
        self,
        deployment: str,
        inputs: Sequence[str | Input],
        top: int,
        params: InferenceParams | None,
        timeout: float,
    ) -> InferenceRequested:
        await self._check_deployed(deployment)
        return InferenceRequested(
            client=self.bus.client,
            inputs=[await self._light(each) for each in inputs],
            tenant=self.tenant,
            top=top,
            deadline=self._clock.now() + timeout,
            params=params or InferenceParams(),
        )

    async def _light(self, given: str | Input) -> str | Input:
        """The input, with what is too large for a message in the artifact store."""
        if isinstance(given, str) or len(given.image) + len(given.audio) <= LARGE:
            return given
        if given.image and given.audio:
            raise Rejected("an input is a picture or a recording, not both")
        address = await (await self._open_store()).put_bytes(given.image or given.audio)
        return replace(given, image=b"", audio=b"", artifact=address)

    async def _check_deployed(self, deployment: str) -> None:
        if deployment in self._deployed:
            return
        if not await read_deployments(self.bus, one(deployment, "deployment")):
            raise NotFound(
                f"nothing is deployed as {deployment!r}", remedy="See `llmos get deployments`.", param="deployment"
            )
        self._deployed.add(deployment)

    async def _silence(self, deployment: str, timeout: float) -> LlmosError:
        """What to raise when nobody answered in time."""
        self._deployed.discard(deployment)
        await self._check_deployed(deployment)
        return Busy(
            f"no replica of {deployment} answered within {timeout:g} s",
            remedy="See `llmos get deployments`; retry later or with a longer timeout.",
        )

    async def _recall(self, id: str) -> None:
        """Nobody waits for the answer any more."""
        with suppress(LlmosError):  # the bus is away: the deadline, or our silence, ends it
            body = InferenceCancelRequested(id, "the client went away")
            await self.bus.tell(subjects.control_cancel(id), body, type="llmos.inference.cancel-requested.v1")

    @asynccontextmanager
    async def _present(self) -> AsyncIterator[None]:
        """Say that this client is there, for as long as one of its streams is open."""
        self._streaming += 1
        if self._presence is None:
            self._presence = asyncio.create_task(self._be_present())
        try:
            yield
        finally:
            self._streaming -= 1
            if not self._streaming and self._presence is not None:
                presence, self._presence = self._presence, None
                await cancel(presence)

    async def _be_present(self) -> None:
        client, kind = self.bus.client, "llmos.client.present.v1"
        while True:
            await asyncio.sleep(KEEP_S / 2)
            with suppress(LlmosError):  # said again in a moment
                await self.bus.tell(subjects.control_keep(client), ClientPresent(client), type=kind)


class Joined:
    """Deltas as they came, made into ones that add up: repeated text is dropped, missing text comes with the answer."""

    def __init__(self) -> None:
        self._said: dict[int, str] = {}  # what was passed on of each output
        self._heard: dict[int, str] = {}  # what this attempt has said of it
        self._attempt = 1
        self._next = 0
        self._gap = False

    def add(self, delta: InferenceDelta) -> InferenceDelta | None:
        """The delta to pass on, if any. Raises `Restarted`."""
        if delta.attempt < self._attempt:
            return None
        if delta.attempt > self._attempt:
            self._attempt, self._next, self._gap, self._heard = delta.attempt, 0, False, {}
        if delta.sequence < self._next:
            return None
        self._gap = self._gap or delta.sequence > self._next
        self._next = delta.sequence + 1
        if self._gap:  # the answer brings what is missing
            return None
        heard = self._heard[delta.output] = self._heard.get(delta.output, "") + delta.text
        said = self._said.get(delta.output, "")
        if not heard.startswith(said) and not said.startswith(heard):
            raise Restarted("the replica died, and the text that is generated anew differs", remedy="Ask again.")
        if len(heard) < len(said) or (len(heard) == len(said) and delta.text):
            return None
        self._said[delta.output] = heard
        return replace(delta, text=heard[len(said) :])

    def finish(self, answer: InferenceAnswered) -> list[InferenceDelta]:
        """What the answer holds beyond what was passed on. Raises `Restarted`."""
        rest: list[InferenceDelta] = []
        for at, output in enumerate(answer.outputs):
            said = self._said.get(at, "")
            if not output.text.startswith(said):
                raise Restarted("the replica died, and the text that was generated anew differs", remedy="Ask again.")
            if len(output.text) > len(said):
                rest.append(
                    InferenceDelta(
                        answer.id,
                        self._next + len(rest),
                        answer.attempt,
                        at,
                        output.text[len(said) :],
                        finish_reason=output.finish_reason,
                    )
                )
        return rest
