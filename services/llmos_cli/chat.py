"""`llmos chat`: talk with a model that generates text, word for word as it comes."""

import asyncio
import os
import signal
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

from llmos_cli.exits import Exit, say
from llmos_cli.generating import Generating
from llmos_cli.options import Target

if TYPE_CHECKING:
    from llmos.client import Client
    from llmos.contracts.inference import Message


def chat(
    deployment: str,
    /,
    prompt: str | None = None,
    *,
    system: str = "",
    timeout: float = 300.0,
    generating: Generating = Generating(),
    target: Target = Target(),
) -> int:
    """Talk with a deployed model. Ctrl-C ends an answer; Ctrl-D, or Ctrl-C at the prompt, the talk.

    Parameters
    ----------
    deployment
        The name under which the model is served.
    prompt
        Ask only this; without it, every line of stdin is a turn.
    system
        What the model is told before the talk.
    timeout
        Give an answer up after so many seconds.
    """
    return asyncio.run(_chat(deployment, prompt, system, timeout, generating, target))


async def _chat(
    deployment: str, prompt: str | None, system: str, timeout: float, generating: Generating, target: Target
) -> int:
    from llmos.contracts.inference import Message

    messages = [Message("system", system)] if system else []
    turns = Turns()
    async with await target.connect() as client:
        while True:
            asked = prompt if prompt is not None else await turns.next()
            if asked is None:
                return Exit.OK
            if asked.strip():
                messages.append(Message("user", asked))
                text = await _answer(client, deployment, messages, timeout, generating)
                messages.append(Message("assistant", text))
            if prompt is not None:
                return Exit.OK


class Turns:
    """The lines of stdin, waited for on the loop: a thread that waits for a line could not be interrupted."""

    def __init__(self) -> None:
        self._file = sys.stdin.fileno()
        self._read = b""
        self._ended = False

    async def next(self) -> str | None:
        """The next line, `None` at the end."""
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        while b"\n" not in self._read and not self._ended:
            await self._readable()
            data = os.read(self._file, 65_536)
            self._read += data
            self._ended = not data
        line, _, self._read = self._read.partition(b"\n")
        return line.decode(errors="replace") if line or not self._ended else None

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()

        def notice() -> None:
            if not readable.done():
                readable.set_result(None)

        try:
            loop.add_reader(self._file, notice)
        except PermissionError:
            return  # a regular file: there is nothing to wait for
        try:
            await readable
        finally:
            loop.remove_reader(self._file)


async def _answer(
    client: "Client", deployment: str, messages: "list[Message]", timeout: float, generating: Generating
) -> str:
    """Print an answer while it comes; what was said of it before an interrupt, if there was one."""
    from llmos.contracts.inference import InferenceDelta, Input

    said: list[str] = []

    async def listen() -> str:
        given = Input(messages=list(messages))
        stream = client.stream(deployment, given, params=generating.params(), timeout=timeout)
        async with aclosing(stream) as parts:
            async for part in parts:
                if isinstance(part, InferenceDelta):
                    said.append(part.text)
                    print(part.text, end="", flush=True)
                else:
                    print()
                    tokens, who = part.usage.completion_tokens, f"{part.model} version {part.version}"
                    say(f"{tokens} tokens, the first after {part.ttft_ms:.0f} ms, {who} on {part.node}")
        return "".join(said)

    task = asyncio.create_task(listen())
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        if not task.cancelled():
            raise
        print()
        say("cancelled")
        return "".join(said)
    finally:
        loop.remove_signal_handler(signal.SIGINT)
