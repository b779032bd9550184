"""A network cable for tests: a TCP proxy before a server that can be cut, plugged in again, or made deaf one way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from llmos.cancel import cancel


class Cable:
    """Forwards connections to one port of loopback. `url` is the near end."""

    def __init__(self, port: int) -> None:
        self._far = port
        self._ends: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._plugged = True
        self.deaf = False  # what the server says is thrown away
        self.url = ""

    def cut(self) -> None:
        """Break every connection, and refuse new ones until `plug`."""
        self._plugged = False
        for end in self._ends:
            end.transport.abort()

    def plug(self) -> None:
        """Let connections through again."""
        self._plugged = True

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        if not self._plugged:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._far)
        except OSError:
            writer.transport.abort()
            return
        self._ends |= {writer, far_writer}
        ways = [self._carry(reader, far_writer, False), self._carry(far_reader, writer, True)]
        tasks = {asyncio.create_task(way) for way in ways}
        self._tasks |= tasks
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        self._ends -= {writer, far_writer}
        writer.transport.abort()
        far_writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, inward: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if not (inward and self.deaf):
                    writer.write(data)
                    await writer.drain()

    async def close(self) -> None:
        """Stop carrying."""
        self.cut()
        await cancel(*self._tasks)


@asynccontextmanager
async def cable(url: str) -> AsyncIterator[Cable]:
    """A cable to the server at `url`."""
    line = Cable(int(url.rsplit(":", 1)[1]))
    server = await asyncio.start_server(line.accept, "127.0.0.1", 0)
    line.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        server.close()
        await line.close()
