"""Publishing what must not be lost: acked by the stream, and repeated under one id until it is."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import nats.errors
from msgspec import Struct

from llmos.bus.api import ApiError
from llmos.bus.client import Client, reaching
from llmos.errors import Busy, LlmosError

PUBLISH_TIMEOUT_S = 2.0
AGAIN_S = 0.1
_FULL = 10077  # "maximum bytes exceeded" and its kin
_IN_PROCESS = 10158  # a cluster still stores the first of two


class Ack(NamedTuple):
    """Where a message is stored, and whether one with its id was there before."""

    sequence: int
    duplicate: bool


class Full(Busy):
    """The stream takes no more for now."""


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
    if error.get("err_code") == _IN_PROCESS or int(error.get("code", 0)) >= 500:
        raise Busy(str(error.get("description")))
    raise ApiError(subject, error)
