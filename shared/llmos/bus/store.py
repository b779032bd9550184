"""Publishing what must not be lost: acked by the stream, and repeated under one id until it is."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import nats.errors
from msgspec import Struct
from nats.aio.msg import Msg

from llmos.bus.api import WRONG_LAST, ApiError
from llmos.bus.client import Client, reaching
from llmos.errors import Busy, LlmosError, Rejected

PUBLISH_TIMEOUT_S = 2.0
AGAIN_S = 0.1
AT_ONCE = 512  # messages of a batch that are under way
_FULL = 10077  # "maximum bytes exceeded" and its kin
_IN_PROCESS = (10158, 10164)  # a cluster still stores the first of two (with one id, with one condition)


_NOT_SENT = Busy("it was not sent")


class Ack(NamedTuple):
    """Where a message is stored, and whether one with its id was there before."""

    sequence: int
    duplicate: bool


class Full(Busy):
    """The stream takes no more for now."""


class InProcess(Busy):
    """A cluster still stores another message under the same condition."""


class Conflict(LlmosError):
    """Somebody else wrote first: read again, decide again."""

    code = "conflict"


class Fence(NamedTuple):
    """A condition: store the message only while `sequence` is the newest of `subject` in its stream (0: there is none).

    The server compares before it looks for duplicates, so a message that was stored may be refused when it is repeated.
    A stream with replicas takes one fenced message at a time.
    """

    subject: str
    sequence: int

    def headers(self) -> dict[str, str]:
        return {
            "Nats-Expected-Last-Subject-Sequence": str(self.sequence),
            "Nats-Expected-Last-Subject-Sequence-Subject": self.subject,
        }


class Message(NamedTuple):
    """What is to be stored, ready to be sent."""

    subject: str
    data: bytes
    headers: dict[str, str]


async def store(
    nc: Client,
    subject: str,
    data: bytes,
    headers: dict[str, str],
    *,
    within: float,
    ensure: Callable[[], Awaitable[None]],
) -> Ack:
    """Publish until a stream has it. With a `Nats-Msg-Id` it is stored once, however often it was sent.

    While the connection is away, nothing is sent. Raises `ApiError` when the stream refuses it, `Full` when there is
    no room, `Busy` when it was not confirmed `within` seconds: then it may or may not be stored.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + within
    while True:
        try:
            await nc.stand(deadline)
            with reaching(subject):
                left = max(0.05, min(PUBLISH_TIMEOUT_S, deadline - clock()))
                answer = await nc.request(subject, data, timeout=left, headers=headers)
            return _read(subject, answer.data)
        except Full:
            raise
        except Busy as error:
            if nc.is_closed or clock() + AGAIN_S > deadline:
                raise Busy(f"the bus did not confirm {subject}: {error.problem.message}", remedy="Retry.") from error
            await asyncio.sleep(AGAIN_S)
            if isinstance(error.__cause__, nats.errors.NoRespondersError):  # the stream is gone: a memory stream's end
                with suppress(LlmosError, TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        await ensure()


async def store_many(
    nc: Client, messages: Sequence[Message], *, within: float, ensure: Callable[[], Awaitable[None]]
) -> list[Ack | LlmosError]:
    """As `store` for many, sent in their order without waiting for one another; what became of each.

    One that has to be repeated is stored after those that followed it. `Conflict` and `Rejected` are final.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + within
    outcomes: list[Ack | LlmosError] = [_NOT_SENT] * len(messages)
    left = list(range(len(messages)))
    while True:
        for window in _windows(left, 1 if nc.fenced_in_turn else AT_ONCE):
            try:
                await nc.stand(deadline)
            except Busy as error:
                for at in left:
                    outcomes[at] = error if outcomes[at] is _NOT_SENT else outcomes[at]
                return outcomes
            answers = await nc.request_many([messages[at] for at in window], PUBLISH_TIMEOUT_S)
            for at, answer in zip(window, answers, strict=True):
                outcomes[at] = _outcome(messages[at].subject, answer)
        left = [at for at in left if isinstance(outcomes[at], Busy) and not isinstance(outcomes[at], Full)]
        if not left or nc.is_closed or clock() + AGAIN_S > deadline:
            return outcomes
        if any(isinstance(outcomes[at], InProcess) for at in left):
            nc.fenced_in_turn = True
            continue
        await asyncio.sleep(AGAIN_S)
        with suppress(LlmosError, TimeoutError):  # a memory stream may have ended with its server
            async with asyncio.timeout_at(deadline):
                await ensure()


def _windows(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _outcome(subject: str, answer: Msg | nats.errors.Error) -> Ack | LlmosError:
    try:
        with reaching(subject):
            if isinstance(answer, nats.errors.Error):
                raise answer
        return _read(subject, answer.data)
    except ApiError as error:
        return refusal(subject, error)
    except LlmosError as error:
        return error


def refusal(subject: str, error: ApiError) -> LlmosError:
    """What a stream's refusal means to who published."""
    if error.err_code == WRONG_LAST:
        return Conflict(f"{subject} was not stored: {error.problem.message}")
    return Rejected(f"the bus refused {subject}: {error.problem.message}")


class _Answer(Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Answer).decode


def _read(subject: str, data: bytes) -> Ack:
    try:
        answer = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        answer = _Answer()
    error = answer.error
    if error is None:
        if not answer.seq:
            raise Busy(f"what answered {subject} is no stream")
        return Ack(answer.seq, answer.duplicate)
    if error.get("err_code") == _FULL:
        raise Full(f"{subject} is full: {error.get('description')}", remedy="Retry later.")
    if error.get("err_code") in _IN_PROCESS:
        raise InProcess(str(error.get("description")))
    if int(error.get("code", 0)) >= 500:
        raise Busy(str(error.get("description")))
    raise ApiError(subject, error)
