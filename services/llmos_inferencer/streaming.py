"""What is generated, on its way to who asked: deltas go out in order, without waiting for the bus to confirm each."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from llmos.contracts import subjects
from llmos.contracts.inference import InferenceDelta
from llmos.errors import LlmosError
from llmos.service import Context
from llmos_inferencer.answering import Request
from llmos_inferencer.engine import Piece

DELTA = next(row.ce_type for row in subjects.REPLIES if row.type is InferenceDelta)


class Streams:
    """The deltas of one deployment. A delta that is lost costs nothing: the answer holds everything."""

    def __init__(self, ctx: Context[Any], spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> None:
        self._ctx = ctx
        self._spawn = spawn
        self._waiting: dict[Request, list[Piece]] = {}
        self._sending: Request | None = None
        self._sender: asyncio.Task[None] | None = None

    def say(self, request: Request, piece: Piece) -> None:
        """Send a piece; pieces that wait are sent as one."""
        self._waiting.setdefault(request, []).append(piece)
        if self._sender is None:
            self._sender = self._spawn(self._send())

    async def flush(self, request: Request) -> None:
        """Return when every piece of the request was sent."""
        while self._sender is not None and (request in self._waiting or request is self._sending):
            await asyncio.wait([self._sender])

    async def _send(self) -> None:
        try:
            while self._waiting:
                request = self._sending = next(iter(self._waiting))
                for delta in self._deltas(request, self._waiting.pop(request)):
                    subject = subjects.reply(request.delivery.body.client, request.id)
                    with suppress(LlmosError):  # the bus is away: the answer will hold it
                        await self._ctx.bus.tell(subject, delta, type=DELTA, cause=request.delivery.envelope.id)
                self._sending = None
        finally:
            self._sender = self._sending = None

    def _deltas(self, request: Request, pieces: list[Piece]) -> list[InferenceDelta]:
        """One delta for each run of pieces of one output."""
        runs: list[list[Piece]] = []
        for piece in pieces:
            if runs and runs[-1][0].output == piece.output:
                runs[-1].append(piece)
            else:
                runs.append([piece])
        said = request.said
        request.said += len(runs)
        return [
            InferenceDelta(
                request.id,
                said + at,
                attempt=request.delivery.deliveries,
                output=run[0].output,
                text="".join(piece.text for piece in run),
                token_ids=[token for piece in run for token in piece.token_ids],
                logprobs=[logprob for piece in run for logprob in piece.logprobs],
                finish_reason=run[-1].finish_reason,
            )
            for at, run in enumerate(runs)
        ]
